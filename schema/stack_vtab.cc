// SPDX-License-Identifier: Apache-2.0
#include "schema/stack_vtab.h"

#ifdef HL_SQLITE_EXTENSION
#include <sqlite3ext.h>
SQLITE_EXTENSION_INIT3
#else
#include <sqlite3.h>
#endif

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <vector>

#include "schema/stack_batch.h"
#include "schema/vtab_callbacks.h"

namespace heapledger::schema {
namespace {

constexpr size_t kKeptRowsMax = size_t{1} << 22;  // 32 MiB.
constexpr int64_t kIdMax = std::numeric_limits<uint32_t>::max();

struct Batch {
  int64_t first = 0;
  std::vector<StackRow> rows;
  int64_t end() const { return first + static_cast<int64_t>(rows.size()); }
};
using BatchPtr = std::shared_ptr<const Batch>;

struct Vtab : sqlite3_vtab {
  sqlite3* db = nullptr;
  sqlite3_stmt* before = nullptr;  // The last batch that begins at or before an id,
  sqlite3_stmt* after = nullptr;   // and the first one after it.
  std::map<int64_t, BatchPtr> kept;
  size_t kept_rows = 0;

  ~Vtab() {
    sqlite3_finalize(before);
    sqlite3_finalize(after);
  }
};

struct Cursor : sqlite3_vtab_cursor {
  BatchPtr batch;  // Null: at the end.
  int64_t id = 0;
  int64_t last = 0;  // Wanted.
};

Vtab& vtab_of(sqlite3_vtab_cursor* cursor) { return *static_cast<Vtab*>(cursor->pVtab); }
Cursor& cursor_of(sqlite3_vtab_cursor* cursor) { return *static_cast<Cursor*>(cursor); }

int fail(Vtab& vtab) {
  set_message(&vtab, sqlite3_errmsg(vtab.db));
  return SQLITE_ERROR;
}

// The batch that a prepared query gives for `id`, decoded; null if there is none.
int load(Vtab& vtab, sqlite3_stmt*& query, const char* sql, int64_t id, BatchPtr& out) {
  out = nullptr;
  if (query == nullptr && sqlite3_prepare_v2(vtab.db, sql, -1, &query, nullptr) != SQLITE_OK) {
    return fail(vtab);
  }
  sqlite3_bind_int64(query, 1, id);
  const int code = sqlite3_step(query);
  if (code == SQLITE_ROW) {
    auto batch = std::make_shared<Batch>();
    batch->first = std::clamp<int64_t>(sqlite3_column_int64(query, 0), 0, kIdMax);
    const auto count = static_cast<size_t>(std::max<int64_t>(sqlite3_column_int64(query, 1), 0));
    const auto* data = static_cast<const uint8_t*>(sqlite3_column_blob(query, 2));
    const auto bytes = static_cast<size_t>(sqlite3_column_bytes(query, 2));
    std::string why;
    batch->rows = decode_stacks_or_incomplete(static_cast<uint32_t>(batch->first), count,
                                              std::span(data, bytes), why);
    out = std::move(batch);
  }
  sqlite3_reset(query);
  if (code != SQLITE_ROW && code != SQLITE_DONE) return fail(vtab);
  if (out == nullptr) return SQLITE_OK;
  if (vtab.kept_rows > kKeptRowsMax) {
    vtab.kept.clear();
    vtab.kept_rows = 0;
  }
  if (vtab.kept.try_emplace(out->first, out).second) vtab.kept_rows += out->rows.size();
  return SQLITE_OK;
}

// The batch with `id`; if none has it, the next one that has any, when `or_later`.
int find(Vtab& vtab, int64_t id, bool or_later, BatchPtr& out) {
  auto place = vtab.kept.upper_bound(id);
  if (place != vtab.kept.begin() && id < (--place)->second->end()) {
    out = place->second;
    return SQLITE_OK;
  }
  int code = load(vtab, vtab.before,
                  "SELECT id, stacks, data FROM main.stack_batch WHERE id <= ?1 "
                  "ORDER BY id DESC LIMIT 1",
                  id, out);
  if (code != SQLITE_OK || (out != nullptr && id < out->end())) return code;
  out = nullptr;
  for (int64_t from = id; or_later; from = out->first) {
    code = load(vtab, vtab.after,
                "SELECT id, stacks, data FROM main.stack_batch WHERE id > ?1 ORDER BY id LIMIT 1",
                from, out);
    if (code != SQLITE_OK || out == nullptr || !out->rows.empty()) break;
  }
  return code;
}

// Puts the cursor at `id` or, if it goes on beyond it, at the next that there is.
int seek(Cursor& cursor, int64_t id) {
  cursor.batch = nullptr;
  if (id > cursor.last) return SQLITE_OK;
  const int code = find(vtab_of(&cursor), id, id < cursor.last, cursor.batch);
  if (code != SQLITE_OK || cursor.batch == nullptr) return code;
  cursor.id = std::max(id, cursor.batch->first);
  if (cursor.id > cursor.last) cursor.batch = nullptr;
  return SQLITE_OK;
}

struct Callbacks {
  static int connect(sqlite3* db, void*, int, const char* const*, sqlite3_vtab** out, char**) {
    return connect_as<Vtab>(db, "CREATE TABLE stack(id INTEGER, parent INTEGER, frame INTEGER)",
                            out);
  }

  static int disconnect(sqlite3_vtab* vtab) {
    delete static_cast<Vtab*>(vtab);
    return SQLITE_OK;
  }

  // idxNum 1: one id, the argument; 0: all.
  static int best_index(sqlite3_vtab*, sqlite3_index_info* info) {
    info->estimatedCost = 1e6;
    info->estimatedRows = 1000000;
    for (int i = 0; i < info->nConstraint; ++i) {
      const auto& constraint = info->aConstraint[i];
      const bool is_id = constraint.iColumn <= 0 && constraint.op == SQLITE_INDEX_CONSTRAINT_EQ;
      if (!is_id || constraint.usable == 0) continue;
      info->aConstraintUsage[i].argvIndex = 1;
      info->idxNum = 1;
      info->idxFlags = SQLITE_INDEX_SCAN_UNIQUE;
      info->estimatedCost = 5;
      info->estimatedRows = 1;
      break;
    }
    const bool by_id = info->nOrderBy == 1 && info->aOrderBy[0].iColumn <= 0;
    if (by_id && info->aOrderBy[0].desc == 0) info->orderByConsumed = 1;
    return SQLITE_OK;
  }

  static int open(sqlite3_vtab*, sqlite3_vtab_cursor** out) {
    *out = new (std::nothrow) Cursor();
    return *out == nullptr ? SQLITE_NOMEM : SQLITE_OK;
  }

  static int close(sqlite3_vtab_cursor* cursor) {
    delete static_cast<Cursor*>(cursor);
    return SQLITE_OK;
  }

  static int filter(sqlite3_vtab_cursor* base, int plan, const char*, int, sqlite3_value** values) {
    return guarded(base->pVtab, [&] {
      Cursor& cursor = cursor_of(base);
      cursor.batch = nullptr;
      int64_t first = 0;
      cursor.last = kIdMax;
      if (plan == 1) {
        // SQLite compares once more: 7.0 is 7, and text that is no number is no id.
        const int type = sqlite3_value_numeric_type(values[0]);
        if (type != SQLITE_INTEGER && type != SQLITE_FLOAT) return SQLITE_OK;
        first = cursor.last = sqlite3_value_int64(values[0]);
      }
      return seek(cursor, first);
    });
  }

  static int next(sqlite3_vtab_cursor* base) {
    Cursor& cursor = cursor_of(base);
    if (++cursor.id < cursor.batch->end() && cursor.id <= cursor.last) return SQLITE_OK;
    return guarded(base->pVtab, [&] { return seek(cursor, cursor.id); });
  }

  static int eof(sqlite3_vtab_cursor* base) { return cursor_of(base).batch == nullptr ? 1 : 0; }

  static int column(sqlite3_vtab_cursor* base, sqlite3_context* context, int column) {
    const Cursor& cursor = cursor_of(base);
    const StackRow& row = cursor.batch->rows[static_cast<size_t>(cursor.id - cursor.batch->first)];
    sqlite3_result_int64(context, column == 0 ? cursor.id : column == 1 ? row.parent : row.frame);
    return SQLITE_OK;
  }

  static int rowid(sqlite3_vtab_cursor* base, sqlite3_int64* out) {
    *out = cursor_of(base).id;
    return SQLITE_OK;
  }
};

}  // namespace

const sqlite3_module* stack_module() { return eponymous_module<Callbacks>(); }

}  // namespace heapledger::schema
