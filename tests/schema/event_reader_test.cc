// SPDX-License-Identifier: Apache-2.0
#include "schema/event_reader.h"

#include <algorithm>
#include <random>

#include "schema/error.h"
#include "tests/schema/plausible_calls.h"
#include "tests/schema/trace_fixture.h"

namespace heapledger::schema {
namespace {

class EventReader : public TraceTest {
 protected:
  EventReader() : db_(create_trace(path_, false)) {}

  std::vector<CallRow> read(int64_t process, ReadOptions options = {}) {
    CallReader reader(db_, process, std::move(options));
    std::vector<CallRow> rows;
    CallRow row;
    while (reader.next(row)) rows.push_back(row);
    return rows;
  }

  // Deals the rows out to so many batches at random, and returns them as they should come back.
  std::vector<CallRow> add_overlapping(std::vector<CallRow> rows, size_t batches, uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<std::vector<CallRow>> dealt(batches);
    std::stable_sort(rows.begin(), rows.end(), call_before);
    for (const CallRow& row : rows) dealt[random() % batches].push_back(row);
    std::vector<CallRow> in_order;
    for (const auto& batch : dealt) {
      if (batch.empty()) continue;
      add_calls(db_, 1, batch);
      in_order.insert(in_order.end(), batch.begin(), batch.end());
    }
    // Ties: by rank, then by batch, which is the order they stand in now.
    std::stable_sort(in_order.begin(), in_order.end(), call_before);
    return in_order;
  }

  Database db_;
};

TEST_F(EventReader, GivesBatchesThatFollowEachOther) {
  PlausibleCalls calls(1);
  std::vector<CallRow> all;
  for (int i = 0; i < 5; ++i) {
    const std::vector<CallRow> rows = calls.take(1000);
    add_calls(db_, 1, rows);
    all.insert(all.end(), rows.begin(), rows.end());
  }
  EXPECT_EQ(read(1), all);
  EXPECT_TRUE(read(2).empty());
}

TEST_F(EventReader, MergesOverlappingBatchesAsASortWould) {
  const std::vector<CallRow> rows = add_overlapping(PlausibleCalls(2).take(5000), 7, 3);
  EXPECT_EQ(read(1), rows);
}

TEST_F(EventReader, OrdersEqualTimesByWhatEndsABlockThenByBatch) {
  // Few distinct times, so that nearly every row is in a tie across batches.
  std::vector<CallRow> rows = PlausibleCalls(4).take(2000);
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].time_ns = rows[i].ended_ns = static_cast<int64_t>(i / 40);
  }
  rows = add_overlapping(rows, 5, 6);
  EXPECT_EQ(read(1), rows);
}

TEST_F(EventReader, MergesASmallLateBatchIntoALargeOne) {
  std::vector<CallRow> rows = PlausibleCalls(5).take(3000);
  std::vector<CallRow> late = {rows[100], rows[2000]};
  std::vector<CallRow> rest = rows;
  rest.erase(rest.begin() + 2000);
  rest.erase(rest.begin() + 100);
  add_calls(db_, 1, rest);
  add_calls(db_, 1, late);
  EXPECT_EQ(read(1), rows);
}

TEST_F(EventReader, GivesRunsThatAddUpToTheRows) {
  const std::vector<CallRow> rows = add_overlapping(PlausibleCalls(6).take(4000), 3, 8);
  CallReader reader(db_, 1);
  CallRow first;
  ASSERT_TRUE(reader.next(first));  // The two ways may be mixed.
  EXPECT_EQ(first, rows[0]);
  size_t at = 1;
  CallRun run;
  while (reader.next_run(run)) {
    ASSERT_LT(run.begin, run.end);
    for (size_t i = run.begin; i < run.end; ++i) ASSERT_EQ(run.batch->row(i), rows[at++]);
  }
  EXPECT_EQ(at, rows.size());
  EXPECT_FALSE(reader.next_run(run));
  EXPECT_FALSE(reader.next(first));
}

TEST_F(EventReader, GivesARangeOfTimeInclusively) {
  const std::vector<CallRow> rows = add_overlapping(PlausibleCalls(7).take(3000), 4, 9);
  ReadOptions options;
  options.time_min_ns = rows[700].time_ns;
  options.time_max_ns = rows[1900].time_ns;
  std::vector<CallRow> wanted;
  std::copy_if(rows.begin(), rows.end(), std::back_inserter(wanted), [&](const CallRow& row) {
    return row.time_ns >= options.time_min_ns && row.time_ns <= options.time_max_ns;
  });
  ASSERT_GE(wanted.size(), 1201u);
  EXPECT_EQ(read(1, options), wanted);
}

TEST_F(EventReader, LeavesOutColumnsThatWereNotAskedFor) {
  const std::vector<CallRow> rows = PlausibleCalls(8).take(10);
  add_calls(db_, 1, rows);
  ReadOptions options;
  options.columns = kColumnStack;
  const std::vector<CallRow> some = read(1, options);
  ASSERT_EQ(some.size(), rows.size());
  EXPECT_EQ(some[3].stack, rows[3].stack);
  EXPECT_EQ(some[3].time_ns, rows[3].time_ns);
  EXPECT_EQ(some[3].kind, rows[3].kind);
  EXPECT_EQ(some[3].address, 0u);
}

TEST_F(EventReader, ReportsADamagedBatchAndGoesOn) {
  PlausibleCalls calls(9);
  const std::vector<CallRow> first = calls.take(100), second = calls.take(50),
                             third = calls.take(70);
  add_calls(db_, 1, first);
  const int64_t bad = add_calls(db_, 1, second);
  add_calls(db_, 1, third);
  damage(db_, "event_batch", bad);
  std::vector<Damage> found;
  ReadOptions options;
  options.damage = [&](const Damage& damage) { found.push_back(damage); };
  std::vector<CallRow> rest = first;
  rest.insert(rest.end(), third.begin(), third.end());
  EXPECT_EQ(read(1, options), rest);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].batch, bad);
  EXPECT_EQ(found[0].rows, 50);
  EXPECT_EQ(found[0].reason, "the checksum of column 15 is wrong");
}

TEST_F(EventReader, ThrowsDamageWhereNobodyWantsIt) {
  const int64_t bad = add_calls(db_, 1, PlausibleCalls(1).take(10));
  damage(db_, "event_batch", bad);
  try {
    read(1);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("(while reading batch 1)"), std::string::npos);
  }
}

TEST_F(EventReader, CallsABatchDamagedWhoseTableRowIsWrong) {
  add_calls(db_, 1, PlausibleCalls(1).take(10));
  db_.exec("UPDATE event_batch SET events = 11");
  EXPECT_THROW(read(1), Error);
  db_.exec("UPDATE event_batch SET events = 10, time_min_ns = time_max_ns");
  EXPECT_THROW(read(1), Error);
}

TEST_F(EventReader, GivesFaultsInOrderWithTheirAttribution) {
  std::mt19937_64 random(1);
  std::vector<FaultRow> even, odd;
  std::vector<FaultAttribution> attribution;
  for (int i = 0; i < 1000; ++i) {
    FaultRow row;
    row.time_ns = 10 * i;
    row.address = random();
    row.major = i % 3 == 0;
    if (i % 2 == 0) {
      even.push_back(row);
      attribution.push_back({random(), static_cast<uint32_t>(i), Touch::kFirst});
    } else {
      odd.push_back(row);
    }
  }
  add_faults(db_, 1, even, attribution);
  add_faults(db_, 1, odd);
  FaultReader reader(db_, 1);
  AttributedFault row;
  for (size_t i = 0; i < 1000; ++i) {
    ASSERT_TRUE(reader.next(row));
    EXPECT_EQ(row.fault, i % 2 == 0 ? even[i / 2] : odd[i / 2]);
    EXPECT_EQ(row.attributed, i % 2 == 0);
    EXPECT_EQ(row.attribution, i % 2 == 0 ? attribution[i / 2] : FaultAttribution{});
  }
  EXPECT_FALSE(reader.next(row));
}

TEST_F(EventReader, CallsFaultsDamagedWhoseAttributionIsOfAnotherLength) {
  FaultRow row;
  add_faults(db_, 1, {row, row, row}, {{1, 2, Touch::kCow}});
  std::vector<Damage> found;
  ReadOptions options;
  options.damage = [&](const Damage& damage) { found.push_back(damage); };
  FaultReader reader(db_, 1, options);
  AttributedFault fault;
  EXPECT_FALSE(reader.next(fault));
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].reason, "its attribution is of another length");
}

}  // namespace
}  // namespace heapledger::schema
