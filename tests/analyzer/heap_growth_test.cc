// SPDX-License-Identifier: Apache-2.0
// Heaps that grow although as much is free in them, by the stack whose request it was.
#include <sys/mman.h>

#include <map>
#include <random>

#include "tests/analyzer/analyzer_fixture.h"

namespace heapledger::analyzer {
namespace {

constexpr uint64_t kArena = 0x7000'0000'0000;
constexpr uint64_t kStep = 0x10000;

struct Growth {
  int64_t growths = 0, bytes = 0, failed = 0, failed_bytes = 0, free_max = 0;
  bool operator==(const Growth&) const = default;
};
std::ostream& operator<<(std::ostream& out, const Growth& row) {
  return out << row.growths << ' ' << row.bytes << ' ' << row.failed << ' ' << row.failed_bytes
             << ' ' << row.free_max;
}

class HeapGrowthTest : public AnalyzerTest {
 protected:
  static std::map<int64_t, Growth> rows(Trace& trace, int64_t process = 1) {
    schema::Statement select = trace.db.prepare(
        "SELECT stack, growths, bytes, failed_reuses, failed_bytes, free_bytes_max FROM heap_growth"
        " WHERE process = ?");
    select.bind(1, process);
    std::map<int64_t, Growth> all;
    while (select.step()) {
      all[select.column_int(0)] = {select.column_int(1), select.column_int(2), select.column_int(3),
                                   select.column_int(4), select.column_int(5)};
    }
    return all;
  }
};

// Goal: a growth is blamed only where the request's whole chunk was free in the same arena. Method:
// the main heap with two holes that are together too small by a byte, then large enough; an arena
// that is empty of free memory meanwhile; a growth for a realloc, whose old block is no free
// memory.
TEST_F(HeapGrowthTest, FreeMemoryOfTheSameArenaCounts) {
  TraceBuilder trace;
  const uint32_t small = trace.stack({"small a.cc:1", "main"});
  const uint32_t large = trace.stack({"large a.cc:2", "main"});
  const uint32_t other = trace.stack({"other a.cc:3", "main"});
  const uint32_t again = trace.stack({"again a.cc:4", "main"});
  trace.grow(kStep);
  for (uint64_t at = 0; at < kStep; at += 0x1000) {
    trace.alloc(kHeap + at + 16, 0x1000 - 16, small, schema::EventKind::kMalloc, 0x1000 - 16);
  }
  trace.free(kHeap + 0x1000 + 16).free(kHeap + 0x3000 + 16);
  // Nothing is free in this one.
  trace.thread(2).syscall(schema::SyscallName::kMprotect, "new heap", 0,
                          {kArena, kStep, PROT_READ | PROT_WRITE}, 0);
  trace.alloc(kArena + 4096 + 16, kStep - 4096 - 16, other, schema::EventKind::kMalloc,
              kStep - 4096 - 16);
  trace.syscall(schema::SyscallName::kMprotect, "grow heap", 0,
                {kArena + kStep, kStep, PROT_READ | PROT_WRITE}, 0);
  trace.alloc(kArena + kStep + 16, 0x1000, other, schema::EventKind::kMalloc, 0x1000);
  trace.thread(1);
  // 0x2000 bytes are free, 16 too few.
  trace.grow(kStep).alloc(kHeap + kStep + 16, 0x2000, large, schema::EventKind::kMalloc, 0x2000);
  // 0x2000 and the rest of that growth are.
  trace.grow(kStep).alloc(kHeap + 2 * kStep + 16, 0xf000, large, schema::EventKind::kMalloc,
                          0xf000);
  // What the block had is in use until the call is over: 0x2000 and two rests are free.
  trace.grow(2 * kStep).realloc(kHeap + 2 * kStep + 16, kHeap + 3 * kStep + 16, 0x11000, again);
  trace.grow(kStep);  // For nothing that came back.
  Trace opened = open(trace);
  const int64_t step = kStep;
  const int64_t rest = step - 0x2000 - 16;
  const std::map<int64_t, Growth> expected = {
      {small, {1, step, 0, 0, 0}},
      {other, {2, 2 * step, 0, 0, 0}},
      {large, {2, 2 * step, 1, step, 0x2000 + rest}},
      {again, {1, 2 * step, 0, 0, 0}},
  };
  auto found = rows(opened);
  EXPECT_EQ(expected, found);
}

// Goal: the same by brute force. Method: random heaps, every growth counted over a list of what is
// live.
TEST_F(HeapGrowthTest, EqualsACountOverTheLiveBlocks) {
  std::mt19937 random(1);
  for (int round = 0; round < 100; ++round) {
    TraceBuilder trace;
    const uint32_t stacks[] = {trace.stack({"a a.cc:1"}), trace.stack({"b a.cc:2"})};
    std::map<int64_t, Growth> expected;
    std::map<uint64_t, uint64_t> live;  // Address -> usable.
    uint64_t end = kHeap;
    int64_t held = 0;
    for (int i = 0; i < 60; ++i) {
      if (random() % 3 == 0 && !live.empty()) {
        const auto victim = std::next(live.begin(), random() % static_cast<unsigned>(live.size()));
        trace.free(victim->first);
        live.erase(victim);
        continue;
      }
      const uint32_t stack = stacks[random() % 2];
      const uint64_t usable = 24 + random() % 300 * 16;
      if (end + usable + 16 > kHeap + static_cast<uint64_t>(held)) {
        int64_t unused = held;
        for (const auto& [address, bytes] : live) unused -= static_cast<int64_t>(bytes) + 16;
        Growth& row = expected[stack];
        ++row.growths;
        row.bytes += 0x3000;
        if (unused >= static_cast<int64_t>(usable) + 16) {
          ++row.failed;
          row.failed_bytes += 0x3000;
          row.free_max = std::max(row.free_max, unused);
        }
        trace.grow(0x3000);
        held += 0x3000;
      }
      trace.alloc(end + 16, usable - 3, stack, schema::EventKind::kMalloc, usable);
      live[end + 16] = usable;
      end += usable + 16;
    }
    Trace opened = open(trace);
    ASSERT_EQ(expected, rows(opened)) << round;
  }
}

// Goal: a fork's child has its parent's free memory. Method: the parent frees, the child asks.
TEST_F(HeapGrowthTest, ChildInheritsWhatIsFree) {
  TraceBuilder trace;
  const uint32_t stack = trace.stack({"a a.cc:1", "main"});
  trace.grow(kStep);
  trace.alloc(kHeap + 16, kStep - 16, stack, schema::EventKind::kMalloc, kStep - 16);
  trace.fork(101);
  trace.grow(kStep).alloc(kHeap + kStep + 16, 1000, stack, schema::EventKind::kMalloc, 1000);
  trace.grow(kStep).alloc(kHeap + 2 * kStep + 16, 1000, stack, schema::EventKind::kMalloc, 1000);
  Trace opened = open(trace);
  const int64_t step = kStep;
  const std::map<int64_t, Growth> expected = {{stack, {2, 2 * step, 1, step, step - 1016}}};
  EXPECT_EQ(expected, rows(opened, 2));
}

}  // namespace
}  // namespace heapledger::analyzer
