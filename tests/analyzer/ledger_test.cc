// SPDX-License-Identifier: Apache-2.0
// The ledger's parts: resident bytes by what they are, what snapshots correct, what released a
// page.
#include <sys/mman.h>

#include <map>
#include <random>
#include <set>
#include <vector>

#include "analyzer/finalize/ledger_pass.h"
#include "analyzer/replay/heap_ledger.h"
#include "tests/analyzer/analyzer_fixture.h"

namespace heapledger::analyzer {
namespace {

constexpr uint32_t kSeed = 20261123;
constexpr uint64_t kPages = 48;
constexpr uint64_t kSpan = kPages * kPageBytes;

// Goal: set operations over ranges are those over pages. Method: beside std::set, over leaf
// borders.
TEST(PageSetRanges, EqualPageByPage) {
  std::mt19937_64 random(kSeed);
  const uint64_t base = (uint64_t{1} << 27) - 40 * kPageBytes;
  PageSet a, b;
  std::set<uint64_t> model_a, model_b;
  const auto range = [&] {
    const uint64_t start = base + random() % 80 * kPageBytes;
    return std::pair(start, start + random() % 30 * kPageBytes);
  };
  for (int step = 0; step < 2000; ++step) {
    const auto [start, end] = range();
    const bool common = step % 2 == 0;
    const bool into = random() % 2 == 0;
    for (uint64_t page = start; page < end; page += kPageBytes) {
      if (!common) {
        if (into) model_b.insert(page);
        if (!into) model_b.erase(page);
      } else if (model_b.contains(page)) {
        if (into) model_a.insert(page);
        if (!into) model_a.erase(page);
      }
    }
    if (!common && into) b.add_range(start, end);
    if (!common && !into) b.remove(start, end);
    if (common && into) a.add_common(b, start, end);
    if (common && !into) a.remove_common(b, start, end);
    std::set<uint64_t> missing;
    a.for_each_missing(start, end, [&](uint64_t page) { missing.insert(page); });
    for (uint64_t page = start; page < end; page += kPageBytes) {
      ASSERT_EQ(model_a.contains(page), a.contains(page));
      ASSERT_EQ(model_b.contains(page), b.contains(page));
      ASSERT_EQ(!model_a.contains(page), missing.contains(page));
    }
  }
}

SyscallRow call_of(schema::SyscallName name, int64_t time_ns, uint64_t start, uint64_t bytes) {
  SyscallRow call;
  call.name = name;
  call.time_ns = time_ns;
  call.duration_ns = 100;
  call.args[0] = start;
  call.args[1] = bytes;
  if (name == schema::SyscallName::kMmap) {
    call.args[2] = PROT_READ | PROT_WRITE;
    call.result = static_cast<int64_t>(start);
    call.cause = "map block";
  }
  return call;
}

// Goal: what the kernel counts while memory moves lies within a snapshot's range, though it looks
// at each page at another moment. Method: a mapping goes, one comes; it may have seen both.
TEST(ResidencyWindows, RangeHoldsPagesSeenAtDifferentMoments) {
  constexpr uint64_t kFirst = 0x1000'0000, kSecond = 0x2000'0000, kThird = 0x3000'0000;
  constexpr uint64_t kBytes = 4 * kPageBytes;
  MemoryMap memory(std::nullopt);
  const auto map = [&](int64_t time_ns, uint64_t start) {
    memory.enter(call_of(schema::SyscallName::kMmap, time_ns, start, kBytes));
    memory.acquire_next();
    for (uint64_t page = start; page < start + kBytes; page += kPageBytes) memory.fault(page);
  };
  map(0, kFirst);
  map(0, kThird);
  memory.enter(call_of(schema::SyscallName::kMunmap, 950, kThird, kBytes));  // Returns at 1050.
  memory.begin_window(1000);
  memory.enter(call_of(schema::SyscallName::kMunmap, 2000, kFirst, kBytes));
  map(3000, kSecond);
  EXPECT_EQ(kBytes, memory.held_resident_bytes());
  const ResidencyWindow window = memory.end_window();
  EXPECT_EQ(0U, window.held_resident_min);
  EXPECT_EQ(3 * kBytes, window.held_resident_max);
  EXPECT_EQ(3U, window.held.size());
  // At rest the range is a point, and what was released before is in none.
  memory.begin_window(9000);
  const ResidencyWindow at_rest = memory.end_window();
  EXPECT_EQ(kBytes, at_rest.held_resident_min);
  EXPECT_EQ(kBytes, at_rest.held_resident_max);
}

class LedgerTest : public AnalyzerTest {
 protected:
  static Replay replay_of(const TraceBuilder& builder, schema::Database& db, TraceInfo& info,
                          ReplayOptions options = {}) {
    builder.write("trace.db");
    db = schema::open_trace("trace.db", schema::OpenMode::kReadOnly);
    info = load_trace_info(db);
    return Replay(db, info, 1, std::move(options));
  }
};

// A heap of random blocks, and what each of its bytes is.
struct RandomHeap {
  TraceBuilder trace;
  std::map<uint64_t, uint64_t> live;  // Address -> requested size.
  std::set<uint64_t> touched;
  uint64_t used_end = 0;

  explicit RandomHeap(std::mt19937_64& random) {
    const uint32_t stack = trace.stack({"fill fill.cc:1", "main"});
    trace.grow(kSpan, stack);
    std::vector<uint64_t> all;
    for (uint64_t at = kHeap; at + 6000 < kHeap + kSpan * 3 / 4;) {
      at +=
          random() % 4 == 0 ? random() % 200 * 16 : 0;  // A hole, sometimes too small for a chunk.
      const uint64_t size = 1 + random() % (random() % 8 == 0 ? 5000 : 300);
      trace.alloc(at + 16, size, stack);
      live[at + 16] = size;
      all.push_back(at + 16);
      at += 16 + schema::usable_by_rule(size);
      used_end = at;
    }
    for (const uint64_t block : all) {
      if (random() % 3 != 0) continue;
      trace.free(block);
      live.erase(block);
    }
    for (uint64_t page = kHeap; page < kHeap + kSpan; page += kPageBytes) {
      if (random() % 3 == 0) continue;
      trace.fault(page + random() % kPageBytes);
      touched.insert(page);
    }
  }

  // 'r'equested, 'o'verhead, 'f'ree, 'n'ever used; resident or not.
  std::string bytes() const {
    std::string kinds(kSpan, 'f');
    for (const auto& [block, size] : live) {
      const uint64_t from = block - kHeap;
      const uint64_t usable = schema::usable_by_rule(size);
      for (uint64_t i = from - 16; i < from + usable; ++i) {
        kinds[i] = i >= from && i < from + size ? 'r' : 'o';
      }
    }
    for (size_t i = 0; i < kSpan;) {
      size_t end = i;
      while (end < kSpan && kinds[end] == 'f') ++end;
      for (size_t j = i; j < end; ++j) {
        if (end - i < 32) kinds[j] = 'o';
        if (end - i >= 32 && j + kHeap >= used_end) kinds[j] = 'n';
      }
      i = std::max(end, i + 1);
    }
    return kinds;
  }
};

// Goal: each resident byte is on the line it belongs to. Method: random heaps, byte by byte.
TEST_F(LedgerTest, LinesEqualBruteForce) {
  std::mt19937_64 random(kSeed);
  for (int round = 0; round < 100; ++round) {
    const RandomHeap heap(random);
    std::map<char, uint64_t> expected;
    const std::string kinds = heap.bytes();
    for (size_t i = 0; i < kSpan; ++i) {
      if (heap.touched.contains((kHeap + i) / kPageBytes * kPageBytes)) ++expected[kinds[i]];
    }
    schema::Database db;
    TraceInfo info;
    Replay replay = replay_of(heap.trace, db, info);
    replay.run_to_end();
    HeapLedger ledger(replay, {});
    ledger.classify({});
    ASSERT_EQ(1U, ledger.parts().size());
    const HeapPart& part = ledger.parts()[0];
    ASSERT_EQ(expected['r'], part.requested) << round;
    ASSERT_EQ(expected['o'], part.overhead) << round;
    ASSERT_EQ(expected['f'], part.in_top + part.free_unknown) << round;
    ASSERT_EQ(expected['n'], part.never_used) << round;
    ASSERT_EQ(heap.touched.size() * kPageBytes, ledger.resident_bytes());
    db = {};
    std::filesystem::remove("trace.db");
  }
}

// Goal: a gap has the kinds of the model's pieces only where they tile it. Method: pieces that do,
// and pieces that leave a hole.
TEST_F(LedgerTest, PiecesThatDoNotTileAGapSayNothing) {
  TraceBuilder trace;
  const uint32_t stack = trace.stack({"fill fill.cc:1", "main"});
  trace.grow(4 * kPageBytes, stack).touch(kHeap, 4 * kPageBytes);
  trace.alloc(kHeap + 1024 + 16, 100, stack).alloc(kHeap + 8192 + 16, 100, stack);
  for (const uint64_t hole : {0, 32}) {
    schema::Database db;
    TraceInfo info;
    Replay replay = replay_of(trace, db, info);
    replay.run_to_end();
    HeapLedger ledger(replay, {});
    const uint64_t top = kHeap + 8192 + 16 + schema::usable_by_rule(100);
    ledger.classify({{kHeap, kHeap + 512, heap::FreeKind::kOwn},
                     {kHeap + 512, kHeap + 1024 - hole, heap::FreeKind::kCache},
                     {top, kHeap + 4 * kPageBytes, heap::FreeKind::kTop}});
    const HeapPart& part = ledger.parts()[0];
    EXPECT_EQ(hole == 0 ? 512U : 0U, part.own);
    EXPECT_EQ(hole == 0 ? 512U : 0U, part.in_cache);
    // No piece covers what lies between the two blocks.
    const uint64_t between = 8192 - 1024 - 16 - schema::usable_by_rule(100);
    EXPECT_EQ(between + (hole == 0 ? 0 : 1024), part.free_unknown);
    EXPECT_EQ(kHeap + 4 * kPageBytes - top, part.never_used);
    db = {};
    std::filesystem::remove("trace.db");
  }
}

// Goal: a snapshot adds pages without a fault and takes out those that are the zero page, and a
// write to one of these is an upgrade. Method: it shows pages 0 and 1, faults had touched 1 and 2.
TEST_F(LedgerTest, SnapshotCorrectsWhatFaultsSay) {
  struct Touches : ReplayObserver {
    std::vector<schema::Touch> touches;
    void on_fault(const FaultFact& fact) override { touches.push_back(fact.touch); }
  } seen;
  TraceBuilder trace;
  const uint32_t stack = trace.stack({"fill fill.cc:1", "main"});
  trace.grow(8 * kPageBytes, stack).alloc(kHeap + 16, 6 * kPageBytes, stack);
  trace.fault(kHeap + kPageBytes).fault(kHeap + 2 * kPageBytes);
  trace.snapshot("schedule", kHeap, 2).fault(kHeap + 2 * kPageBytes);
  uint64_t unfaulted = 0, absent = 0, resident = 0;
  ReplayOptions options;
  options.observer = &seen;
  options.on_snapshot = [&](const Replay& now, const SnapshotMoment&) {
    const MemoryMap& memory = now.memory();
    unfaulted = memory.unfaulted().count(kHeap, kHeap + kSpan);
    absent = memory.touched_absent().count(kHeap, kHeap + kSpan);
    resident = memory.held_resident_bytes() / kPageBytes;
  };
  schema::Database db;
  TraceInfo info;
  Replay replay = replay_of(trace, db, info, options);
  replay.run_to_end();
  EXPECT_EQ(1U, unfaulted);
  EXPECT_EQ(1U, absent);
  EXPECT_EQ(2U, resident);
  ASSERT_EQ(3U, seen.touches.size());
  EXPECT_EQ(schema::Touch::kZeroUpgrade, seen.touches[2]);
  EXPECT_EQ(3 * kPageBytes, replay.memory().held_resident_bytes());
}

// Goal: the modelled peak is found between snapshots, in the heap and outside of it. Method: 300
// pages of the program's own come and go between two snapshots; then 20 of the heap stay.
TEST_F(LedgerTest, ModelledPeakLiesBetweenSnapshots) {
  constexpr uint64_t kOwn = 0x7000'0000;
  TraceBuilder trace;
  trace.grow(64 * kPageBytes).touch(kHeap, 10 * kPageBytes).snapshot("start");
  trace.program_map(kOwn, 300 * kPageBytes).touch(kOwn, 300 * kPageBytes);
  const int64_t full_ns = trace.now();
  trace.syscall(schema::SyscallName::kMunmap, "", 0, {kOwn, 300 * kPageBytes}, 0,
                schema::Origin::kProgram);
  trace.touch(kHeap + 10 * kPageBytes, 20 * kPageBytes).snapshot("exit");
  Trace opened = open(trace);
  const auto number = [&](const char* query) { return opened.db.query_int(query).value_or(-1); };
  const int64_t first = number("SELECT min(rss_bytes) FROM balance");
  EXPECT_EQ(first + 300 * static_cast<int64_t>(kPageBytes),
            number("SELECT rss_bytes FROM ledger_moment WHERE at = 'model peak'"));
  EXPECT_EQ(full_ns, number("SELECT at_ns FROM ledger_moment WHERE at = 'model peak'"));
}

// Goal: a page paid for again names the call that had taken it. Method: a trim, malloc_trim and a
// madvise of the program, each touched again.
TEST_F(LedgerTest, RepeatTouchNamesTheRelease) {
  struct Releases : ReplayObserver {
    std::map<Release, int> after;
    void on_fault(const FaultFact& fact) override {
      if (fact.touch == schema::Touch::kRepeat) ++after[fact.after];
    }
  } seen;
  TraceBuilder trace;
  trace.grow(8 * kPageBytes).touch(kHeap, 8 * kPageBytes).trim(2 * kPageBytes);
  trace.grow(2 * kPageBytes).fault(kHeap + 7 * kPageBytes);
  trace.drop_pages(kHeap, 2 * kPageBytes).fault(kHeap).fault(kHeap + kPageBytes);
  trace.syscall(schema::SyscallName::kMadvise, "", 0,
                {kHeap + 3 * kPageBytes, kPageBytes, MADV_DONTNEED}, 0, schema::Origin::kProgram);
  trace.fault(kHeap + 3 * kPageBytes);
  schema::Database db;
  TraceInfo info;
  ReplayOptions options;
  options.observer = &seen;
  Replay replay = replay_of(trace, db, info, options);
  replay.run_to_end();
  const std::map<Release, int> expected = {
      {Release::kTrim, 1}, {Release::kMallocTrim, 2}, {Release::kMadvise, 1}};
  EXPECT_EQ(expected, seen.after);
}

}  // namespace
}  // namespace heapledger::analyzer
