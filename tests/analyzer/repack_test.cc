// SPDX-License-Identifier: Apache-2.0
// Calls and stacks of small recordings, packed harder by the final pass.
#include "analyzer/finalize/repack_pass.h"
#include "schema/event_batch.h"
#include "tests/analyzer/analyzer_fixture.h"

namespace heapledger::analyzer {
namespace {

class RepackTest : public AnalyzerTest {
 protected:
  // Pieces of a program over and over, so that there is something to find; not finalized.
  void write_churn() {
    TraceBuilder trace;
    const uint32_t stack = trace.stack({"churn churn.cc:1", "main"});
    trace.grow(0x21000);
    uint64_t seed = 1;
    for (uint64_t i = 0, at = 0; i < 20000; ++i, ++at) {
      seed = seed * 6364136223846793005 + 1442695040888963407;
      if (i % 16 == 0) at = (seed >> 33) % 500;
      const uint64_t block = kHeap + 16 + at * at % 61 * 1040;
      trace.alloc(block, 1 + at * at * at % 997, stack).free(block);
    }
    trace.write("trace.db");
  }
  static std::vector<schema::CallRow> rows(schema::Database& db) {
    std::vector<schema::CallRow> all;
    schema::Statement select = db.prepare("SELECT data FROM event_batch ORDER BY id");
    while (select.step()) {
      const std::vector<schema::CallRow> batch = schema::decode_calls(select.column_blob(0));
      all.insert(all.end(), batch.begin(), batch.end());
    }
    return all;
  }
  static int64_t bytes(schema::Database& db) {
    return db.query_int("SELECT sum(length(data)) FROM event_batch").value_or(0);
  }
};

// Goal: the same calls in less room; a large recording is left alone. Method: both limits.
TEST_F(RepackTest, CallsStayWhatTheyAre) {
  write_churn();
  schema::Database db = schema::open_trace("trace.db", schema::OpenMode::kReadWrite);
  const std::vector<schema::CallRow> before = rows(db);
  const int64_t bytes_before = bytes(db);
  RepackPass(db, static_cast<int64_t>(before.size()) - 1).finish();
  EXPECT_EQ(bytes(db), bytes_before);
  RepackPass(db, static_cast<int64_t>(before.size())).finish();
  EXPECT_LT(bytes(db), bytes_before);
  EXPECT_EQ(rows(db), before);
}

// Goal: what cannot be read is neither lost nor in the way. Method: a damaged batch.
TEST_F(RepackTest, ADamagedBatchStays) {
  write_churn();
  schema::Database db = schema::open_trace("trace.db", schema::OpenMode::kReadWrite);
  db.exec("UPDATE event_batch SET data = substr(data, 1, length(data) - 3) WHERE id = 1");
  const auto damaged = db.query_text("SELECT hex(data) FROM event_batch WHERE id = 1");
  RepackPass(db).finish();
  EXPECT_EQ(db.query_text("SELECT hex(data) FROM event_batch WHERE id = 1"), damaged);
}

}  // namespace
}  // namespace heapledger::analyzer
