// SPDX-License-Identifier: Apache-2.0
// Settings as lists, what a call costs, which pages were touched, and the sweep that joins them.
#include "analyzer/whatif/sweep.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "analyzer/advise_command.h"
#include "analyzer/render/render.h"
#include "analyzer/sweep_command.h"
#include "analyzer/whatif/advice.h"
#include "analyzer/whatif/model.h"
#include "schema/error.h"
#include "tests/analyzer/analyzer_fixture.h"

namespace heapledger::analyzer {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

AxisWords axes(std::initializer_list<std::pair<Axis, const char*>> lists) {
  AxisWords words;
  for (const auto& [axis, list] : lists) words[static_cast<size_t>(axis)] = parse_axis(axis, list);
  return words;
}

TEST(SettingGrid, AnyThresholdTurnsTheDynamicOneOff) {
  const auto grid = setting_grid({}, axes({{Axis::kMmapThreshold, "dynamic,256K"},
                                           {Axis::kTrimThreshold, "default,1M,never"}}));
  ASSERT_EQ(grid.size(), 6U);
  EXPECT_EQ(grid[0].label, "defaults, as recorded");
  EXPECT_TRUE(grid[0].settings.threshold_is_dynamic);
  EXPECT_EQ(grid[0].tunables_text(), "");
  EXPECT_EQ(grid[1].label, "trim 1M");
  EXPECT_FALSE(grid[1].settings.threshold_is_dynamic);
  EXPECT_EQ(grid[1].settings.mmap_threshold, 128U << 10);
  EXPECT_EQ(grid[5].label, "mmap 256K, trim never");
  EXPECT_EQ(grid[5].settings.trim_threshold, SIZE_MAX);
  EXPECT_EQ(grid[5].tunables_text(),
            "glibc.malloc.mmap_threshold=262144:glibc.malloc.trim_threshold=18446744073709551615");
}

TEST(SettingGrid, WhatHasNoListStaysAsRecorded) {
  heap::Settings recorded;
  heap::apply_tunable(&recorded, "top_pad", 7, "1048576");
  const auto grid = setting_grid(recorded, axes({{Axis::kMmapThreshold, "1M,brk-only,mmap-only"},
                                                 {Axis::kArenaMax, "auto,2"}}));
  ASSERT_EQ(grid.size(), 7U);
  EXPECT_EQ(grid[0].label, "as recorded");
  for (const SettingChoice& choice : grid) {
    EXPECT_EQ(choice.settings.top_pad, kMiB) << choice.label;
    EXPECT_FALSE(choice.settings.threshold_is_dynamic) << choice.label;
  }
  EXPECT_EQ(grid[3].settings.mmap_max, 0) << grid[3].label;
  EXPECT_EQ(grid[6].label, "mmap mmap-only, arenas 2");
  EXPECT_EQ(grid[6].settings.mmap_threshold, 0U);
  EXPECT_EQ(grid[6].settings.arena_max, 2U);
}

TEST(SettingGrid, VersionsAreSettingsToo) {
  const auto grid = setting_grid({}, axes({{Axis::kGlibc, "2.36,2.43"}}));
  ASSERT_EQ(grid.size(), 2U);
  EXPECT_EQ(grid[1].label, "glibc 2.43");
  EXPECT_EQ(grid[1].settings.glibc_version, 243);
  EXPECT_EQ(grid[1].settings.cache_count, heap::default_settings(243).cache_count);
}

TEST(SettingGrid, WordsThatAreNotUnderstoodNameTheirOption) {
  for (const auto& [axis, list] : {std::pair{Axis::kMmapThreshold, "128K,,1M"},
                                   {Axis::kTrimThreshold, "brk-only"},
                                   {Axis::kGlibc, "2.99"},
                                   {Axis::kTopPad, "1T"},
                                   {Axis::kArenaMax, "-1"}}) {
    try {
      parse_axis(axis, list);
      ADD_FAILURE() << list;
    } catch (const schema::Error& error) {
      EXPECT_NE(std::string(error.what()).find(axis_option(axis)), std::string::npos) << list;
    }
  }
}

class SweepTest : public AnalyzerTest {
 protected:
  SweepResult run(const TraceBuilder& trace, SweepOptions options, int64_t ns_per_fault = 1000) {
    trace.write("trace.db");
    db_ = schema::open_trace("trace.db", schema::OpenMode::kReadOnly);
    info_ = load_trace_info(*db_);
    return sweep(*db_, info_, 1, ns_per_fault, options);
  }

  std::optional<schema::Database> db_;
  TraceInfo info_;
};

TEST_F(SweepTest, EachRowIsWhatItsModelAloneSays) {
  // Goal: chunks, threads and groups change nothing. Method: 60,000 calls, more than a chunk, each
  // setting's counts against a model that runs alone.
  TraceBuilder trace;
  trace.meta("fault_source", "perf");
  uint64_t at = kHeap + 0x1000;
  for (int i = 0; i < 30000; ++i) {
    trace.alloc(at, static_cast<uint64_t>(i % 700) * 997, 0);
    if (i % 3 != 0) {
      trace.free(at);
    } else {
      at += 0x100000;
    }
  }
  SweepOptions options;
  options.axes =
      axes({{Axis::kMmapThreshold, "dynamic,64K,512K,brk-only"}, {Axis::kTopPad, "default,1M"}});
  options.threads = 3;
  const SweepResult result = run(trace, options);
  ASSERT_EQ(result.rows.size(), 8U);
  for (const SweepRow& row : result.rows) {
    ModelOptions alone;
    alone.settings = row.choice.settings;
    const auto model = make_model(alone);
    RecordedOps reader(*db_, info_, 1);
    std::vector<Op> ops;
    while (reader.next_chunk(ops)) model->run(ops);
    EXPECT_EQ(row.calls, model->counts().calls) << row.choice.label;
    EXPECT_EQ(row.held_bytes_peak, model->counts().held_bytes_peak) << row.choice.label;
    EXPECT_GT(row.held_bytes_mean, 0) << row.choice.label;
    EXPECT_LE(row.held_bytes_mean, static_cast<double>(row.held_bytes_peak)) << row.choice.label;
    EXPECT_LE(row.resident_bytes_peak, row.held_bytes_peak) << row.choice.label;
  }
  EXPECT_NE(result.rows[0].calls, result.rows[2].calls);
}

// Two threads, each with a buffer that it allocates and frees over and over, now and then with a
// small block that stays; the one's call in the middle of the other's work.
TraceBuilder two_threads_with_buffers() {
  TraceBuilder trace;
  trace.meta("fault_source", "getrusage").grow(1 << 20);
  const uint32_t stack = trace.stack({"work main.cc:1"});
  constexpr uint64_t kBytes = 200 << 10;
  const uint64_t buffers[] = {kHeap + 16, kHeap + 16 + kBytes + 16};
  uint64_t small = kHeap + 0x80000;
  trace.set("mmap_threshold_dynamic", 0).set("mmap_threshold", 1 << 20);
  for (int i = 0; i < 600; ++i) {
    trace.thread(1 + i % 2);
    if (i > 1) trace.free(buffers[i % 2]);
    if (i % 50 == 49) trace.alloc(small += 64, 40, stack);
    trace.alloc(buffers[i % 2], kBytes, stack);
  }
  return trace;
}

TEST_F(SweepTest, OtherOrdersOfThreadsMatterWhereTheyShareAnArena) {
  // Goal: luck has a part only where threads share an arena; the recorded order's figures are as
  // without other orders; and the orders are the same each time. Method: two threads' buffers.
  const auto calls = [](const SweepRow& row) { return row.call_count(); };
  SweepOptions options;
  options.axes = axes({{Axis::kArenaMax, "auto,1"}});
  const SweepResult plain = run(two_threads_with_buffers(), options);
  options.orders = 8;
  const SweepResult result = run(two_threads_with_buffers(), options);
  const SweepResult again = run(two_threads_with_buffers(), options);
  EXPECT_EQ(result.threads, 2U);
  ASSERT_GE(result.rows.size(), 2U);
  for (size_t i = 0; i < result.rows.size(); ++i) {
    EXPECT_TRUE(plain.rows[i].orders.empty());
    EXPECT_EQ(plain.rows[i].calls, result.rows[i].calls);
    ASSERT_EQ(result.rows[i].orders.size(), 8U);
    EXPECT_EQ(again.rows[i].range(calls), result.rows[i].range(calls));
    const auto [least, most] = result.rows[i].range(calls);
    const uint64_t typical = result.rows[i].typical().call_count();
    EXPECT_LE(least, typical);
    EXPECT_LE(typical, most);
  }
  const auto own = result.rows[0].range(calls);
  ASSERT_EQ(result.rows.back().choice.settings.arena_max, 1U);
  const auto shared = result.rows.back().range(calls);
  EXPECT_EQ(own.first, own.second);
  EXPECT_GT(shared.second, shared.first * 5 / 4);
}

TEST_F(SweepTest, OneThreadHasOneOrder) {
  TraceBuilder trace;
  trace.meta("fault_source", "getrusage").grow(1 << 20);
  for (int i = 0; i < 10; ++i) trace.alloc(kHeap + 16, 100 << 10, 0).free(kHeap + 16);
  const SweepOptions options;
  SweepResult result = run(trace, options);
  EXPECT_EQ(result.threads, 1U);
  add_orders(*db_, info_, 1, options, result);
  EXPECT_TRUE(result.rows.front().orders.empty());
}

TEST_F(SweepTest, FaultsAreOfThePagesThatTheProgramTouches) {
  // Goal: a block's untouched pages cost nothing under any setting, and a recycled block is taken
  // to be touched as far as fresh blocks of its stack were. Method: a block of 64 pages of which a
  // quarter is touched, freed and allocated again in the same place; with a mapping for each, the
  // second one faults as the first did.
  TraceBuilder trace;
  const uint32_t stack = trace.stack({"buffer main.cc:1"});
  trace.meta("fault_source", "perf").grow(80 * 4096);
  const uint64_t block = kHeap + 16;
  trace.alloc(block, 64 * 4096, stack).touch(kHeap, 16 * 4096).free(block);
  trace.alloc(block, 64 * 4096, stack).free(block);
  SweepOptions options;
  options.axes = axes({{Axis::kMmapThreshold, "32M,64K"}, {Axis::kTrimThreshold, "never"}});
  const SweepResult result = run(trace, options);
  ASSERT_EQ(result.rows.size(), 3U);
  EXPECT_TRUE(result.touches_known);
  const SweepRow& kept = result.rows[1];
  const SweepRow& mapped = result.rows[2];
  EXPECT_EQ(mapped.calls[static_cast<size_t>(heap::CallName::kMmap)], 2U);
  // Headers and the caches' own memory are a page or two each time.
  EXPECT_NEAR(static_cast<double>(kept.faults), 17, 3);
  EXPECT_NEAR(static_cast<double>(mapped.faults), 34, 5);
  EXPECT_NEAR(static_cast<double>(mapped.fault_ns), 1000.0 * static_cast<double>(mapped.faults), 1);
}

TEST_F(SweepTest, AWriteToTheZeroPageIsASecondFault) {
  // Goal: pages that are read before they are written fault twice, under every setting. Method: a
  // block with and without ten such pages.
  const auto faults = [this](bool reads_first) {
    TraceBuilder trace;
    const uint32_t stack = trace.stack({"buffer main.cc:1"});
    trace.meta("fault_source", "perf").grow(80 * 4096);
    trace.alloc(kHeap + 16, 64 * 4096, stack).touch(kHeap, 16 * 4096);
    if (reads_first) trace.touch(kHeap, 10 * 4096);
    SweepOptions options;
    options.axes = axes({{Axis::kMmapThreshold, "32M,64K"}});
    std::vector<uint64_t> counts;
    for (const SweepRow& row : run(trace, options).rows) counts.push_back(row.faults);
    return counts;
  };
  const std::vector<uint64_t> once = faults(false);
  const std::vector<uint64_t> twice = faults(true);
  ASSERT_EQ(once.size(), twice.size());
  for (size_t i = 0; i < once.size(); ++i) EXPECT_EQ(twice[i], once[i] + 10) << i;
}

TEST_F(SweepTest, WithoutAddressesEveryPageCounts) {
  TraceBuilder trace;
  trace.meta("fault_source", "getrusage").grow(80 * 4096);
  trace.alloc(kHeap + 16, 64 * 4096, 0);
  const SweepResult result = run(trace, {});
  EXPECT_FALSE(result.touches_known);
  EXPECT_GE(result.rows.front().faults, 64U);
}

TEST_F(SweepTest, CallsCostWhatTheRecordedOnesOfTheirLengthDid) {
  // Goal: base and slope from the trace, outliers apart. Method: twenty munmaps of two lengths, one
  // of which took a thousand times as long.
  TraceBuilder trace;
  trace.meta("fault_source", "perf").alloc(kHeap + 16, 100, 0);
  for (int i = 0; i < 20; ++i) {
    const uint64_t bytes = (i % 2 != 0 ? 100 : 1000) * 4096;
    trace.map(0x10000000, bytes).unmap(0x10000000, bytes);
  }
  trace.write("trace.db");
  {
    schema::Database db = schema::open_trace("trace.db", schema::OpenMode::kReadWrite);
    db.exec("UPDATE syscall SET duration_ns = 700 + arg1 / 4096 * 30 WHERE name = 'munmap'");
    db.exec(
        "UPDATE syscall SET duration_ns = 3000000 WHERE rowid = (SELECT min(rowid) FROM syscall"
        " WHERE name = 'munmap')");
  }
  schema::Database db = schema::open_trace("trace.db", schema::OpenMode::kReadOnly);
  const CallCost cost = CallCost::of(db, 1);
  heap::SimulatedCall call;
  call.name = heap::CallName::kMunmap;
  call.bytes = 500 * 4096;
  EXPECT_EQ(cost.line(CallCost::kMunmap).samples, 20U);
  EXPECT_NEAR(cost.ns(call), 700 + 500 * 30, 1);
  // Of a kind that was not recorded the cost is measured.
  EXPECT_EQ(cost.line(CallCost::kMremap).samples, 0U);
  EXPECT_GE(cost.line(CallCost::kMremap).base_ns, 50);
}

// Goal: of what is resident besides the heap, the recorder's part is left out: its own library,
// what came with libunwind, what only its reading of unwind tables brought in. Method: a program
// with a library, seen at one look; libunwind and what it needs at the next; a library that the
// program loads later.
TEST_F(SweepTest, WhatTheRecorderBringsInIsNotTheProgramsRss) {
  TraceBuilder trace;
  trace.meta("fault_source", "perf").alloc(kHeap + 16, 100, 0);
  trace.write("trace.db");
  constexpr uint64_t kPages = 4096;
  {
    schema::Database db = schema::open_trace("trace.db", schema::OpenMode::kReadWrite);
    db.exec("DELETE FROM snapshot; DELETE FROM region; DELETE FROM module");
    const auto module = [&](const char* path, uint64_t start, int64_t start_ns) {
      db.exec(
          fmt::format("INSERT INTO module (process, path, base, start_address, end_address,"
                      " start_ns) VALUES (1, '{}', {}, {}, {}, {})",
                      path, start, start, start + 0x40000, start_ns));
    };
    module("/usr/bin/program", 0x10000000, 1'000'000);
    module("/opt/libheapledger.so", 0x20000000, 1'000'100);
    module("/lib/libz.so.1", 0x30000000, 1'000'200);
    module("/lib/libunwind.so.8", 0x40000000, 3'000'000);
    module("/lib/liblzma.so.5", 0x50000000, 3'000'500);
    module("/lib/libplugin.so", 0x60000000, 9'000'000);
    db.exec(
        "INSERT INTO snapshot (id, process, time_ns, end_ns, reason, rss_bytes)"
        " VALUES (1, 1, 10000000, 10000100, 'exit', 1)");
    const auto region = [&](uint64_t start, const char* kind, uint64_t pages) {
      db.exec(fmt::format(
          "INSERT INTO region (snapshot, start, end, kind, permissions, size_bytes, rss_bytes,"
          " swap_bytes, private_dirty_bytes, anonymous_bytes, huge_bytes)"
          " VALUES (1, {}, {}, '{}', 'r--p', {}, {}, 0, 0, 0, 0)",
          start, start + 0x40000, kind, 0x40000, pages * kPages));
    };
    region(0x10000000, "file", 40);  // 16 of them only the recorder's touch brought in.
    region(0x20000000, "text", 7);
    region(0x30000000, "text", 32);  // Touched by both; 16 in the recorder's start-up.
    region(0x40000000, "text", 3);
    region(0x50000000, "text", 5);
    region(0x60000000, "text", 11);
    region(0x70000000, "anonymous", 20);  // The program touched two.
    region(0x80000000, "recorder", 50);
    region(0x90000000, "thread stack", 9);  // Of the recorder.
    region(kHeap, "heap", 33);
  }
  schema::Database db = schema::open_trace("trace.db", schema::OpenMode::kReadOnly);
  const RecorderShare recorder = RecorderShare::of(db, 1);
  EXPECT_TRUE(recorder.has(0x20000010));
  EXPECT_TRUE(recorder.has(0x50000010));
  EXPECT_FALSE(recorder.has(0x30000010));
  EXPECT_FALSE(recorder.has(0x60000010));
  const std::vector<OtherTouch> program = {
      {100, 0x10000000}, {200, 0x30003000}, {250, 0x30020000, true}, {300, 0x30004000},
      {400, 0x70000000}, {500, 0x70004000}, {20000000, 0x60000000}};
  PageSet ours;
  ours.add(0x10021000);
  ours.add(0x3000f000);
  const OtherRss other = other_rss(db, 1, recorder, program, ours);
  constexpr uint64_t kAll = (40 - 16 + 32 + 11 + 2) * kPages;
  EXPECT_EQ(other.bytes, kAll);
  // Before it touched them, they were not there; those that nobody saw it touch always were. What
  // it touches after the snapshot comes on top. Two pages are no step of their own.
  ASSERT_EQ(other.steps.size(), 5U);
  EXPECT_EQ(other.steps[0].bytes, kAll - (16 + 32 + 2) * kPages);
  EXPECT_EQ(other.steps[1].time_ns, 100);
  EXPECT_EQ(other.steps[1].bytes, kAll - (32 + 2) * kPages);
  EXPECT_EQ(other.steps[2].time_ns, 200);
  EXPECT_EQ(other.steps[2].bytes, kAll - (16 + 2) * kPages);
  EXPECT_EQ(other.steps[3].time_ns, 20000000);
  EXPECT_EQ(other.steps[3].bytes, kAll);
  EXPECT_EQ(other.steps[4].bytes, kAll + 16 * kPages);
}

TEST_F(SweepTest, RecordingsThatAreNotTheWholeTruthSaySo) {
  // Goal: losses, a cut, and unknown touches are on every sweep and advice. Method: the sample with
  // losses, one without faults' addresses, and a whole one.
  const auto notes_of = [](const char* sample) {
    Trace trace = open(sample_trace(sample));
    ReportOptions options;
    const std::string swept = render_text(run_sweep(trace, {}, options));
    const Document advised = run_advise(trace, options);
    return std::pair(swept, render_text(advised) + advised.json["doubts"].dump());
  };
  const auto [lossy_sweep, lossy_advice] = notes_of("lossy");
  for (const char* words : {"7 calls were lost", "3 page faults were lost", "cut short"}) {
    EXPECT_NE(lossy_sweep.find(words), std::string::npos) << words;
    EXPECT_NE(lossy_advice.find(words), std::string::npos) << words;
  }
  const auto [blind_sweep, blind_advice] = notes_of("by_snapshot");
  EXPECT_NE(blind_sweep.find("without page faults' addresses"), std::string::npos);
  EXPECT_NE(blind_advice.find("without page faults' addresses"), std::string::npos);
  const auto [whole_sweep, whole_advice] = notes_of("pinned");
  for (const char* words : {"lost", "cut short", "without page faults"}) {
    EXPECT_EQ(whole_sweep.find(words), std::string::npos) << words;
    EXPECT_EQ(whole_advice.find(words), std::string::npos) << words;
  }
  EXPECT_NE(whole_advice.find("[]"), std::string::npos) << "no doubts";
}

class AdviceTest : public SweepTest {
 protected:
  Advice advice(const TraceBuilder& trace) {
    trace.write("trace.db");
    db_ = schema::open_trace("trace.db", schema::OpenMode::kReadOnly);
    info_ = load_trace_info(*db_);
    SweepOptions options;
    options.threads = 2;
    return advise(*db_, info_, info_.process(1), 1000, options);
  }
  static bool warns_of(const Advice& advice, const std::string& words) {
    return std::any_of(advice.warnings.begin(), advice.warnings.end(), [&](const auto& warning) {
      return warning.find(words) != std::string::npos;
    });
  }
};

TEST_F(AdviceTest, BuffersThatAreMappedAnewAreKept) {
  // Goal: a setting that keeps freed buffers is found, and of those that do, a simple one. Method:
  // a buffer of 200 KiB, filled, at a threshold that somebody fixed at 128 KiB.
  TraceBuilder trace;
  trace.meta("fault_source", "perf").set("mmap_threshold_dynamic", 0);
  trace.set("mmap_threshold", 128 << 10);
  const uint32_t stack = trace.stack({"fill main.cc:1"});
  for (int i = 0; i < 200; ++i) {
    trace.map(0x10000000, 51 * 4096, stack).alloc(0x10000010, 200 << 10, stack);
    trace.touch(0x10000000, 200 << 10).free(0x10000010).unmap(0x10000000, 51 * 4096);
  }
  const Advice result = advice(trace);
  ASSERT_EQ(result.choices.size(), 3U);
  const Choice& time = result.choices.front();
  EXPECT_EQ(time.goal, Goal::kTime);
  EXPECT_TRUE(time.is_worth_it);
  EXPECT_LT(time.row.faults, result.recorded.faults / 50);
  EXPECT_GE(result.recorded.faults, 200U * 50);
  EXPECT_GT(time.gain_ns, 0.9 * result.recorded.cost_ns());
  // Most that keep it do as well; which is the cheapest hangs on what brk costs here.
  EXPECT_LE(time.row.choice.tunables.size(), 1U) << time.row.choice.label;
  EXPECT_FALSE(warns_of(result, "fixes all four")) << "nothing was dynamic";
  EXPECT_FALSE(warns_of(result, "more than one mode")) << "nothing was dynamic";
  EXPECT_FALSE(warns_of(result, "arena")) << "one thread";
  Trace again = open(trace.meta("ns_per_fault", "1000"));
  const std::string text = render_text(run_advise(again, {}));
  EXPECT_NE(text.find("GLIBC_TUNABLES="), std::string::npos) << text;
}

TEST_F(AdviceTest, WhatIsWellIsLeftAlone) {
  TraceBuilder trace;
  trace.meta("fault_source", "perf").grow(132 * 1024);
  for (int i = 0; i < 1000; ++i) {
    trace.at(trace.now() + 10'000'000).alloc(kHeap + 16, 100, 0).free(kHeap + 16);
  }
  const Advice result = advice(trace);
  for (const Choice& choice : result.choices) EXPECT_FALSE(choice.is_worth_it);
  EXPECT_TRUE(result.warnings.empty());
  Trace again = open(trace.meta("ns_per_fault", "1000"));
  const std::string text = render_text(run_advise(again, {}));
  EXPECT_NE(text.find("For time: leave it as it is"), std::string::npos) << text;
  EXPECT_NE(text.find("gains more than runs differ by (1 %)"), std::string::npos) << text;
  EXPECT_EQ(text.find("GLIBC_TUNABLES="), std::string::npos) << text;
}

TEST_F(AdviceTest, SizesALittleOffShowAnotherMode) {
  // Goal: the jittered runs part where a program's calls hang on which of two sizes is larger.
  // (What is said of it follows from their costs, which are measured, so not here.) Method: a block
  // is freed that is hardly larger than the one that is then made over and over: with sizes a
  // little different, the second is above the threshold that the first left.
  TraceBuilder trace;
  trace.meta("fault_source", "perf");
  const uint32_t stack = trace.stack({"fill main.cc:1"});
  trace.map(0x10000000, 256 * 4096).alloc(0x10000010, (1 << 20) - 4096, stack);
  trace.free(0x10000010).unmap(0x10000000, 256 * 4096);
  trace.grow(2 << 20);
  uint64_t at = kHeap + 16;
  for (int i = 0; i < 40; ++i) {
    // Each is kept: freed, the first one would raise the threshold once more.
    trace.alloc(at, (1 << 20) - 8192, stack).touch(at & ~uint64_t{4095}, 1 << 20);
    trace.grow(1 << 20);
    at += 1 << 20;
  }
  for (int i = 0; i < 40; ++i) trace.free(kHeap + 16 + (static_cast<uint64_t>(i) << 20));
  const Advice result = advice(trace);
  const auto [low, high] = std::minmax_element(
      result.sweep.jittered.begin(), result.sweep.jittered.end(),
      [](const SweepRow& a, const SweepRow& b) { return a.call_count() < b.call_count(); });
  ASSERT_EQ(result.sweep.jittered.size(), 7U);
  EXPECT_NE(low->call_count(), high->call_count());
}

TEST_F(AdviceTest, AThresholdOnTheEdgeIsTwoModesAndAnyOptionFixesAllFour) {
  // Goal: both warnings of the dynamic threshold, where they are due. Method: a mapped block of
  // 1 MiB is freed, which makes the threshold that size and the trim threshold twice that; then
  // three blocks that together are as large as that are made and freed over and over. A little
  // less, and the heap is kept; a little more, and it goes back and is faulted in again each time.
  TraceBuilder trace;
  trace.meta("fault_source", "getrusage");
  const uint32_t stack = trace.stack({"fill main.cc:1"});
  trace.map(0x10000000, 257 * 4096).alloc(0x10000010, 1 << 20, stack);
  trace.free(0x10000010).unmap(0x10000000, 257 * 4096);
  trace.grow(4 << 20);
  constexpr uint64_t kPart = 641 << 10;
  for (int round = 0; round < 60; ++round) {
    for (uint64_t i = 0; i < 3; ++i) trace.alloc(kHeap + 16 + i * kPart, kPart - 32, stack);
    for (uint64_t i = 3; i-- > 0;) trace.free(kHeap + 16 + i * kPart);
  }
  const Advice result = advice(trace);
  EXPECT_TRUE(warns_of(result, "under the dynamic threshold it has more than one mode"))
      << result.sweep.jittered.front().cost_ns();
  EXPECT_TRUE(warns_of(result,
                       "setting any of mmap_threshold, trim_threshold, top_pad and mmap_max "
                       "fixes all four"));
  EXPECT_FALSE(warns_of(result, "arena")) << "one thread";
}

TEST_F(AdviceTest, WhatHangsOnLuckIsNotAdvisedAndSaid) {
  // Goal: a setting is judged by the worst order of the threads' calls, and those whose outcome
  // hangs on the order are named. Method: two threads' buffers, recorded where they share an arena.
  TraceBuilder trace = two_threads_with_buffers();
  trace.set("arena_max", 1);
  const Advice result = advice(trace);
  const auto cost = [](const SweepRow& row) { return row.cost_ns(); };
  const Choice& time = result.choices.front();
  ASSERT_TRUE(time.is_worth_it);
  ASSERT_EQ(time.row.orders.size(), 8U);
  EXPECT_LT(time.row.range(cost).second, result.recorded.range(cost).first);
  EXPECT_LT(time.row.range(cost).second, 1.5 * time.row.range(cost).first);
  EXPECT_GT(result.recorded.range(cost).second, 1.5 * result.recorded.range(cost).first);
  ASSERT_FALSE(result.luck.empty());
  EXPECT_TRUE(warns_of(result, "what it has now (as recorded) costs hangs on which thread"));
  Trace again = open(trace.meta("ns_per_fault", "1000"));
  const Document said = run_advise(again, {});
  EXPECT_EQ(said.json["doubts"].back(), said.json["warnings"].back());
  EXPECT_EQ(said.json["choices"][0]["cost_ns_range"].size(), 2U);
  const Document swept = run_sweep(again, {"1M", "", "", "auto,1", "", ""}, {});
  const std::string text = render_text(swept);
  EXPECT_NE(text.find("Luck: from the least to the most in 9 orders"), std::string::npos) << text;
  EXPECT_EQ(swept.json["rows"][0]["syscalls_range"].size(), 2U);
}

TEST_F(AdviceTest, WhatAnArenaCapDoesHangsOnTheThresholds) {
  // Goal: the warning where one arena saves memory under one setting and none under another.
  // Method: two threads, one after the other, fill 2 MiB with blocks that are below the threshold,
  // free them, over and over: where the heap is kept, each arena keeps its own.
  const auto threads = [](int count) {
    TraceBuilder trace;
    trace.meta("fault_source", "getrusage");
    const uint32_t stack = trace.stack({"fill main.cc:1"});
    trace.grow(8 << 20);
    constexpr uint64_t kPart = 100 << 10;
    for (int round = 0; round < 40; ++round) {
      trace.thread(1 + round % count);
      for (uint64_t i = 0; i < 20; ++i) trace.alloc(kHeap + 16 + i * kPart, kPart - 32, stack);
      for (uint64_t i = 20; i-- > 0;) trace.free(kHeap + 16 + i * kPart);
    }
    return trace;
  };
  constexpr const char* kWords = "what an arena cap does depends on the thresholds";
  EXPECT_TRUE(warns_of(advice(threads(2)), kWords));
  EXPECT_FALSE(warns_of(advice(threads(1)), kWords));
}

TEST(Mallopt, TakesWhatAnIntHolds) {
  SettingChoice choice;
  choice.tunables = {{"mmap_threshold", "262144"},
                     {"trim_threshold", "18446744073709551615"},
                     {"tcache_count", "0"},
                     {"top_pad", "4294967296"}};
  EXPECT_EQ(mallopt_calls(choice), (std::vector<std::string>{"mallopt(M_MMAP_THRESHOLD, 262144);",
                                                             "mallopt(M_TRIM_THRESHOLD, -1);"}));
}

TEST(ParetoFront, HasOnlyWhatNothingBeatsInBoth) {
  std::vector<SweepRow> rows(4);
  const auto set = [&](size_t row, double cost, uint64_t bytes) {
    rows[row].syscall_ns = cost;
    rows[row].resident_bytes_peak = rows[row].rss_bytes_peak = bytes;
  };
  set(0, 30, 10);
  set(1, 10, 40);
  set(2, 20, 50);  // Beaten by 1.
  set(3, 20, 20);
  EXPECT_EQ(pareto_front(rows), (std::vector<size_t>{1, 3, 0}));
}

}  // namespace
}  // namespace heapledger::analyzer
