// SPDX-License-Identifier: Apache-2.0
#include "analyzer/finalize/repack_pass.h"

#include "schema/error.h"
#include "schema/packed_columns.h"

namespace heapledger::analyzer {
namespace {

std::vector<uint8_t> harder_or_nothing(const std::vector<uint8_t>& blob) {
  try {
    return schema::packed_harder(blob).value_or(std::vector<uint8_t>());
  } catch (const schema::Error&) {
    return {};
  }
}

}  // namespace

RepackPass::RepackPass(schema::Database& db, int64_t events_max) : db_(db) {
  const auto events = db.query_int("SELECT sum(events) FROM event_batch").value_or(0);
  if (events > events_max) return;
  for (const std::string table : {"event_batch", "stack_batch"}) {
    schema::Statement select = db.prepare("SELECT id, data FROM " + table);
    while (select.step()) {
      const std::span<const uint8_t> blob = select.column_blob(1);
      batches_.push_back({table, select.column_int(0), {blob.begin(), blob.end()}});
    }
  }
  worker_.start([this] {
    for (Batch& batch : batches_) batch.blob = harder_or_nothing(batch.blob);
  });
}

void RepackPass::finish() {
  worker_.wait();
  for (const Batch& batch : batches_) {
    if (batch.blob.empty()) continue;
    db_.prepare("UPDATE " + batch.table + " SET data = ? WHERE id = ?")
        .run_with(batch.blob, batch.id);
  }
  batches_.clear();
}

}  // namespace heapledger::analyzer
