// SPDX-License-Identifier: Apache-2.0
// What the virtual tables `event`, `fault` and `site` have in common: an SQLite module that shows
// the rows of packed batches. Included by schema/event_vtab.cc alone, after SQLite's header.
//
// A query becomes a list of filters (xBestIndex writes it into idxStr, two characters a filter;
// xFilter reads it with the values). Filters only narrow: SQLite checks every condition again on
// the rows it gets, so a value of an unexpected type is simply not used. Batches are chosen by the
// plain columns of their table (process, and the range of one column: time, or a site's stack);
// within a batch the columns that filters need are decoded first, and the others only where a row
// is left.
//
// Table, the parameter, is one batch at a time:
//     kDeclaration, kBatchesSql           CREATE TABLE text; SELECT id, process, least and greatest
//                                         of the range, data... with ?1 process, ?2 ?3 bounds
//     kRangeColumn, kProcessColumn        their places in the declaration
//     static can_filter(column)           whether `column = value` narrows
//     static filter_value(column, value)  what cell() must be, or nothing
//     static needs(column)                columns to decode for it, as decode() wants them
//     decode(statement, needs), rows(), result(context, column, row)
//     range_value(row), cell(column, row) as integers
// No exception leaves a callback. Thread safety: as SQLite's connection.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "schema/vtab_callbacks.h"

namespace heapledger::schema {

template <typename Table>
class VtabModule {
 public:
  static const sqlite3_module* module() { return eponymous_module<VtabModule>(); }

 private:
  friend const sqlite3_module* eponymous_module<VtabModule>();

  static constexpr int64_t kRangeMin = std::numeric_limits<int64_t>::min();
  static constexpr int64_t kRangeMax = std::numeric_limits<int64_t>::max();
  static constexpr int kRowBits = 20;  // Of a rowid; the others are the batch.

  struct Vtab : sqlite3_vtab {
    sqlite3* db = nullptr;
  };
  struct Equality {
    int column;
    int64_t value;
  };
  struct Cursor : sqlite3_vtab_cursor {
    Table table;
    sqlite3_stmt* batches = nullptr;
    bool at_end = true;
    int64_t batch = 0;
    int64_t process = 0;
    size_t position = 0;  // Into `selected`, or the row itself where all are.
    bool all_selected = true;
    std::vector<uint32_t> selected;
    int64_t range_min = kRangeMin;
    int64_t range_max = kRangeMax;
    std::vector<Equality> equalities;
    uint64_t columns_used = 0;

    ~Cursor() { sqlite3_finalize(batches); }
    size_t row() const { return all_selected ? position : selected[position]; }
    size_t count() const { return all_selected ? table.rows() : selected.size(); }
  };

  static Cursor& cursor_of(sqlite3_vtab_cursor* cursor) { return *static_cast<Cursor*>(cursor); }

  static int connect(sqlite3* db, void*, int, const char* const*, sqlite3_vtab** out, char**) {
    return connect_as<Vtab>(db, Table::kDeclaration, out);
  }

  static int disconnect(sqlite3_vtab* vtab) {
    delete static_cast<Vtab*>(vtab);
    return SQLITE_OK;
  }

  // The letter of a condition in idxStr, 0 if it does not narrow. Strict comparisons are taken as
  // their weak forms.
  static char filter_letter(int column, unsigned char op) {
    if (op == SQLITE_INDEX_CONSTRAINT_EQ) {
      const bool own = column == Table::kRangeColumn || column == Table::kProcessColumn;
      return own || Table::can_filter(column) ? '=' : '\0';
    }
    if (column != Table::kRangeColumn) return '\0';
    if (op == SQLITE_INDEX_CONSTRAINT_GE || op == SQLITE_INDEX_CONSTRAINT_GT) return '>';
    if (op == SQLITE_INDEX_CONSTRAINT_LE || op == SQLITE_INDEX_CONSTRAINT_LT) return '<';
    return '\0';
  }

  static int best_index(sqlite3_vtab* vtab, sqlite3_index_info* info) {
    return guarded(vtab, [&] {
      // A guess at a large trace, so that the planner puts these tables on the outside of a join.
      double rows = 1e7;
      double batches = 1;  // The part of them that must be looked at.
      std::string plan;
      for (int i = 0; i < info->nConstraint; ++i) {
        const auto& constraint = info->aConstraint[i];
        if (constraint.usable == 0 || constraint.iColumn < 0) continue;
        const char letter = filter_letter(constraint.iColumn, constraint.op);
        if (letter == '\0') continue;
        const char* collation = sqlite3_vtab_collation(info, i);
        if (collation != nullptr && std::string(collation) != "BINARY") continue;
        plan += static_cast<char>('a' + constraint.iColumn);
        plan += letter;
        info->aConstraintUsage[i].argvIndex = static_cast<int>(plan.size() / 2);
        const bool chooses_batches = constraint.iColumn == Table::kProcessColumn ||
                                     constraint.iColumn == Table::kRangeColumn;
        if (chooses_batches) batches /= letter == '=' ? 10 : 3;
        rows /= letter == '=' ? 30 : 3;
      }
      info->estimatedRows = static_cast<sqlite3_int64>(rows) + 1;
      info->estimatedCost = 1e7 * batches + rows;
      info->idxStr = sqlite3_mprintf("%s", plan.c_str());
      info->needToFreeIdxStr = 1;
      if (info->idxStr == nullptr) return SQLITE_NOMEM;
      // xFilter learns which columns are used through idxNum: there are fewer than 31.
      info->idxNum = static_cast<int>(info->colUsed & 0x7fffffff);
      return SQLITE_OK;
    });
  }

  static int open(sqlite3_vtab* vtab, sqlite3_vtab_cursor** out) {
    return guarded(vtab, [&] {
      *out = new Cursor();
      return SQLITE_OK;
    });
  }

  static int close(sqlite3_vtab_cursor* cursor) {
    delete static_cast<Cursor*>(cursor);
    return SQLITE_OK;
  }

  // A number as a bound on integers; nothing if it is none.
  static std::optional<int64_t> range_bound(sqlite3_value* value, bool lower) {
    if (sqlite3_value_type(value) == SQLITE_INTEGER) return sqlite3_value_int64(value);
    if (sqlite3_value_type(value) != SQLITE_FLOAT) return std::nullopt;
    const double number =
        lower ? std::floor(sqlite3_value_double(value)) : std::ceil(sqlite3_value_double(value));
    if (!(std::abs(number) < 0x1p62)) return std::nullopt;
    return static_cast<int64_t>(number);
  }

  static void add_filter(Cursor& cursor, int column, char letter, sqlite3_value* value,
                         std::optional<int64_t>& process) {
    if (column == Table::kRangeColumn) {
      const auto low = range_bound(value, true);
      const auto high = range_bound(value, false);
      if (letter != '<' && low && *low > cursor.range_min) cursor.range_min = *low;
      if (letter != '>' && high && *high < cursor.range_max) cursor.range_max = *high;
    } else if (column == Table::kProcessColumn) {
      if (sqlite3_value_type(value) == SQLITE_INTEGER) process = sqlite3_value_int64(value);
    } else if (const auto wanted = Table::filter_value(column, value)) {
      cursor.equalities.push_back({column, *wanted});
    }
  }

  static int filter(sqlite3_vtab_cursor* base, int columns_used, const char* plan, int count,
                    sqlite3_value** values) {
    return guarded(base->pVtab, [&] {
      Cursor& cursor = cursor_of(base);
      cursor.range_min = kRangeMin;
      cursor.range_max = kRangeMax;
      cursor.equalities.clear();
      cursor.columns_used = static_cast<uint64_t>(columns_used);
      std::optional<int64_t> process;
      for (int i = 0; i < count; ++i) {
        add_filter(cursor, plan[2 * i] - 'a', plan[2 * i + 1], values[i], process);
      }
      sqlite3* db = static_cast<Vtab*>(base->pVtab)->db;
      if (cursor.batches == nullptr) {
        const int code = sqlite3_prepare_v2(db, Table::kBatchesSql, -1, &cursor.batches, nullptr);
        if (code != SQLITE_OK) {
          set_message(base->pVtab, sqlite3_errmsg(db));
          return code;
        }
      }
      sqlite3_reset(cursor.batches);
      sqlite3_clear_bindings(cursor.batches);
      if (process) sqlite3_bind_int64(cursor.batches, 1, *process);
      sqlite3_bind_int64(cursor.batches, 2, cursor.range_min);
      sqlite3_bind_int64(cursor.batches, 3, cursor.range_max);
      return next_batch(cursor);
    });
  }

  // Moves to the first selected row of the next batch that has one.
  static int next_batch(Cursor& cursor) {
    for (;;) {
      cursor.at_end = true;
      cursor.position = 0;
      const int code = sqlite3_step(cursor.batches);
      if (code == SQLITE_DONE) {
        sqlite3_reset(cursor.batches);  // Ends the read transaction.
        return SQLITE_OK;
      }
      if (code != SQLITE_ROW) {
        set_message(cursor.pVtab, sqlite3_errmsg(static_cast<Vtab*>(cursor.pVtab)->db));
        return code;
      }
      cursor.batch = sqlite3_column_int64(cursor.batches, 0);
      cursor.process = sqlite3_column_int64(cursor.batches, 1);
      try {
        select_rows(cursor);
      } catch (const std::bad_alloc&) {
        throw;
      } catch (const std::exception& error) {
        set_message(cursor.pVtab,
                    ("batch " + std::to_string(cursor.batch) + ": " + error.what()).c_str());
        return SQLITE_CORRUPT;
      }
      if (cursor.count() > 0) {
        cursor.at_end = false;
        return SQLITE_OK;
      }
    }
  }

  static void select_rows(Cursor& cursor) {
    const bool range_matters = sqlite3_column_int64(cursor.batches, 2) < cursor.range_min ||
                               sqlite3_column_int64(cursor.batches, 3) > cursor.range_max;
    uint32_t first = range_matters ? Table::needs(Table::kRangeColumn) : 0;
    for (const Equality& equality : cursor.equalities) first |= Table::needs(equality.column);
    uint32_t all = first;
    for (int column = 0; column < 31; ++column) {
      if (cursor.columns_used >> column & 1) all |= Table::needs(column);
    }
    cursor.all_selected = !range_matters && cursor.equalities.empty();
    cursor.selected.clear();
    if (!cursor.all_selected) {
      cursor.table.decode(cursor.batches, first);
      const size_t rows = cursor.table.rows();
      for (size_t row = 0; row < rows; ++row) {
        if (matches(cursor, range_matters, row))
          cursor.selected.push_back(static_cast<uint32_t>(row));
      }
      if (cursor.selected.empty() || all == first) return;
    }
    cursor.table.decode(cursor.batches, all);
  }

  static bool matches(const Cursor& cursor, bool range_matters, size_t row) {
    if (range_matters) {
      const int64_t value = cursor.table.range_value(row);
      if (value < cursor.range_min || value > cursor.range_max) return false;
    }
    for (const Equality& equality : cursor.equalities) {
      if (cursor.table.cell(equality.column, row) != equality.value) return false;
    }
    return true;
  }

  static int next(sqlite3_vtab_cursor* base) {
    Cursor& cursor = cursor_of(base);
    if (++cursor.position < cursor.count()) return SQLITE_OK;
    return guarded(base->pVtab, [&] { return next_batch(cursor); });
  }

  static int eof(sqlite3_vtab_cursor* base) { return cursor_of(base).at_end ? 1 : 0; }

  static int column(sqlite3_vtab_cursor* base, sqlite3_context* context, int column) {
    const Cursor& cursor = cursor_of(base);
    if (column == Table::kProcessColumn) {
      sqlite3_result_int64(context, cursor.process);
    } else {
      cursor.table.result(context, column, cursor.row());
    }
    return SQLITE_OK;
  }

  static int rowid(sqlite3_vtab_cursor* base, sqlite3_int64* out) {
    const Cursor& cursor = cursor_of(base);
    *out = cursor.batch << kRowBits | static_cast<int64_t>(cursor.row());
    return SQLITE_OK;
  }
};

}  // namespace heapledger::schema
