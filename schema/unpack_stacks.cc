// SPDX-License-Identifier: Apache-2.0
// The half of schema/stack_batch.h that needs SQLite.
#include <string>

#include "schema/error.h"
#include "schema/stack_batch.h"
#include "schema/trace_db.h"

namespace heapledger::schema {

void unpack_stacks(Database& db) {
  // A trace of the first version has none.
  if (!db.query_int("SELECT 1 FROM sqlite_schema WHERE name = 'stack_batch'")) return;
  Statement batches = db.prepare("SELECT id, stacks, data FROM stack_batch ORDER BY id");
  Statement insert = db.prepare("INSERT INTO stack VALUES (?, ?, ?)");
  while (batches.step()) {
    const int64_t first = batches.column_int(0);
    std::vector<StackRow> rows;
    try {
      rows = decode_stacks(static_cast<uint32_t>(first), batches.column_blob(2));
    } catch (const Error& error) {
      constexpr uint32_t kIncompleteFrame = 1;
      rows.assign(static_cast<size_t>(batches.column_int(1)), {0, kIncompleteFrame});
      db.prepare("INSERT INTO mark(time_ns, process, kind, text) VALUES(0, 1, 'note', ?)")
          .run_with("stacks from " + std::to_string(first) + " on, " + std::to_string(rows.size()) +
                    " of them, could not be read: " + error.what());
    }
    for (size_t i = 0; i < rows.size(); ++i) {
      insert.run_with(first + static_cast<int64_t>(i), rows[i].parent, rows[i].frame);
    }
  }
  db.exec("DELETE FROM stack_batch");
}

}  // namespace heapledger::schema
