// SPDX-License-Identifier: Apache-2.0
// The models on their thread, fed by replays, beside the same models reading the calls themselves.
#include "analyzer/finalize/fidelity.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <tuple>
#include <vector>

#include "tests/analyzer/analyzer_fixture.h"

namespace heapledger::analyzer {
namespace {

using FidelityTest = AnalyzerTest;

// Random calls of three threads, and all the rare things that models are told.
void add_calls(TraceBuilder& trace, std::mt19937& random, int count) {
  static uint64_t address = 0x10000;
  std::vector<uint64_t> live;
  trace.grow(135168);
  for (int i = 0; i < count; ++i) {
    if (random() % 50 == 0) trace.thread(1 + static_cast<int>(random() % 3));
    const size_t size = random() % 100 == 0 ? random() % 300000 : random() % 2000;
    const uint64_t kind = random() % 12;
    if (kind < 4 && !live.empty()) {
      std::swap(live[random() % live.size()], live.back());
      trace.free(live.back());
      live.pop_back();
    } else if (kind == 4 && !live.empty()) {
      std::swap(live[random() % live.size()], live.back());
      trace.realloc(live.back(), address += 0x100000, size, 0);
      live.back() = address;
    } else {
      using schema::EventKind;
      const EventKind kinds[] = {EventKind::kMalloc, EventKind::kNew, EventKind::kCalloc,
                                 EventKind::kPvalloc};
      trace.alloc(address += 0x100000, size, 0, kinds[random() % 4]);
      live.push_back(address);
    }
    if (random() % 1000 == 0) trace.program_grow(random() % 2 == 0 ? 4096 : -4096);
    if (random() % 1000 == 0) trace.policy("trim called", 0, 0);
    if (random() % 2000 == 0) trace.policy("setting changed", -3, 1 << 18);
    if (random() % 2000 == 0) trace.failed_alloc(uint64_t{1} << 40, 0);
  }
}

std::vector<std::tuple<uint64_t, uint64_t, int>> sorted(const std::vector<FreePiece>& pieces) {
  std::vector<std::tuple<uint64_t, uint64_t, int>> rows;
  for (const FreePiece& piece : pieces) {
    rows.emplace_back(piece.start, piece.end, static_cast<int>(piece.kind));
  }
  std::sort(rows.begin(), rows.end());
  return rows;
}

// Goal: what comes through the queue leads to what reading leads to. Method: two processes by
// themselves with a family between them; moments before the first call, inside, and after the last.
TEST_F(FidelityTest, FedModelsAreAsThoseThatRead) {
  std::mt19937 random(20261123);
  TraceBuilder trace;
  ModelTimes times;
  times[1] = {0};
  add_calls(trace, random, 20000);
  times[1].push_back(trace.now() / 2);
  times[1].push_back(trace.now());
  trace.process(300);
  add_calls(trace, random, 3000);
  trace.fork(301);
  add_calls(trace, random, 3000);
  times[3] = {trace.now() - 1000000};
  trace.process(400);
  add_calls(trace, random, 20000);
  times[4] = {trace.now() - 500, trace.now() + 1000000};
  trace.write("trace.db", 1000);

  schema::Database db = schema::open_trace("trace.db", schema::OpenMode::kReadWrite);
  const TraceInfo info = load_trace_info(db);
  const FidelityResults expected = compute_fidelity(db, info, times);
  FidelityPass pass(db, info, times);
  int fed = 0;
  for (const ProcessInfo* process : recorded_by_start(info)) {
    const std::unique_ptr<OpFeed> feed = pass.feed(*process);
    ReplayOptions options;
    options.calls = feed.get();
    Replay replay(db, info, process->id, options);
    replay.run_to_end();
    if (feed != nullptr) feed->finish();
    fed += feed != nullptr ? 1 : 0;
  }
  EXPECT_EQ(2, fed);
  pass.finish();
  schema::Statement select = db.prepare(
      "SELECT brk, mmap, munmap, mremap, madvise, mprotect, held_bytes_peak"
      " FROM fidelity WHERE process = ?");
  ASSERT_EQ(4U, expected.processes.size());
  for (const Fidelity& row : expected.processes) {
    select.bind(1, row.process);
    ASSERT_TRUE(select.step());
    for (int i = 0; i < 6; ++i) {
      EXPECT_EQ(row.counts.calls[static_cast<size_t>(i)], select.column_uint(i)) << row.process;
    }
    EXPECT_EQ(row.counts.held_bytes_peak, select.column_uint(6));
    select.reset();
  }
  ASSERT_EQ(6U, expected.moments.size());
  for (const auto& [key, moment] : expected.moments) {
    const ModelMoment* found = pass.moment(key.first, key.second);
    ASSERT_NE(nullptr, found) << key.first << " " << key.second;
    EXPECT_EQ(moment.glibc_held_bytes, found->glibc_held_bytes);
    EXPECT_EQ(sorted(moment.free), sorted(found->free)) << key.first << " " << key.second;
  }
  EXPECT_GT(pass.moment(1, times[1][1])->free.size(), 100U);
}

// Goal: a pass that fails half-way leaves nobody waiting, on either side of the queue.
TEST_F(FidelityTest, AFailedPassEnds) {
  std::mt19937 random(1);
  TraceBuilder trace;
  add_calls(trace, random, static_cast<int>(OpFeed::kPartOps * (OpQueue::kPartsMax + 2)));
  trace.write("trace.db");
  schema::Database db = schema::open_trace("trace.db", schema::OpenMode::kReadWrite);
  const TraceInfo info = load_trace_info(db);
  {
    FidelityPass pass(db, info, {});
    const std::unique_ptr<OpFeed> feed = pass.feed(info.process(1));
    ASSERT_NE(nullptr, feed);
  }
  OpQueue queue;
  queue.close();
  OpFeed feed(db, 1, {}, queue);
  ReplayOptions options;
  options.calls = &feed;
  Replay replay(db, info, 1, options);
  replay.run_to_end();
  feed.finish();
  OpPart part;
  EXPECT_FALSE(queue.pop(part));
}

}  // namespace
}  // namespace heapledger::analyzer
