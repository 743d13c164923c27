// SPDX-License-Identifier: Apache-2.0
// The halves of schema/stack_batch.h and schema/site_batch.h that need SQLite.
#include <algorithm>
#include <string>

#include "schema/error.h"
#include "schema/site_batch.h"
#include "schema/stack_batch.h"
#include "schema/trace_db.h"

namespace heapledger::schema {
namespace {

int64_t rows_of(Database& db, const std::string& table, const std::string& count) {
  const std::string sql = "SELECT sum(" + count + ") FROM " + table;
  return db.query_int(sql).value_or(0);
}

bool has_table(Database& db, const std::string& name) {
  return db.query_int("SELECT 1 FROM sqlite_schema WHERE name = '" + name + "'").has_value();
}

void note(Database& db, int64_t process, const std::string& text) {
  db.prepare("INSERT INTO mark(time_ns, process, kind, text) VALUES(0, ?, 'note', ?)")
      .run_with(process, text);
}

}  // namespace

void unpack_stacks(Database& db, int64_t plain_max) {
  if (!has_table(db, "stack")) return;  // Done already.
  const bool plain = rows_of(db, "stack_batch", "stacks") <= plain_max ||
                     db.query_int("SELECT 1 FROM stack LIMIT 1").has_value();
  Statement batches = db.prepare("SELECT id, stacks, data FROM stack_batch ORDER BY id");
  Statement insert = db.prepare("INSERT INTO stack VALUES (?, ?, ?)");
  while (batches.step()) {
    const auto first = static_cast<uint32_t>(batches.column_int(0));
    const auto count = static_cast<size_t>(batches.column_int(1));
    std::string why;
    const std::vector<StackRow> rows =
        decode_stacks_or_incomplete(first, count, batches.column_blob(2), why);
    if (!why.empty()) {
      note(db, 1,
           "stacks from " + std::to_string(first) + " on, " + std::to_string(count) +
               " of them, could not be read: " + why);
    }
    if (!plain) continue;
    for (size_t i = 0; i < rows.size(); ++i) {
      insert.run_with(first + static_cast<int64_t>(i), rows[i].parent, rows[i].frame);
    }
  }
  batches.reset();
  insert = Statement();
  batches = Statement();
  if (plain) {
    db.exec("DELETE FROM stack_batch");
  } else {
    db.exec("DROP TABLE stack");
  }
}

void write_sites(Database& db, int64_t process, std::span<const SiteRow> rows) {
  Statement insert = db.prepare("INSERT INTO site_batch VALUES (NULL, ?, ?, ?, ?, ?)");
  for (size_t at = 0; at < rows.size(); at += kBatchSites) {
    const auto batch = rows.subspan(at, std::min(kBatchSites, rows.size() - at));
    insert.run_with(process, batch.size(), batch.front()[kSiteStack], batch.back()[kSiteStack],
                    encode_sites(batch));
  }
}

void unpack_sites(Database& db, int64_t plain_max) {
  if (rows_of(db, "site_batch", "sites") > plain_max) {
    db.exec("DROP TABLE site");
    return;
  }
  std::string places = "?";
  for (size_t i = 0; i < kSiteColumns; ++i) places += ", ?";
  Statement insert = db.prepare("INSERT INTO site VALUES (" + places + ")");
  Statement batches = db.prepare("SELECT process, data FROM site_batch ORDER BY id");
  while (batches.step()) {
    for (const SiteRow& row : decode_sites(batches.column_blob(1))) {
      insert.bind(1, batches.column_int(0));
      for (size_t i = 0; i < kSiteColumns; ++i) insert.bind(static_cast<int>(i) + 2, row[i]);
      insert.run();
    }
  }
  batches.reset();
  db.exec("DELETE FROM site_batch");
}

}  // namespace heapledger::schema
