// SPDX-License-Identifier: Apache-2.0
// Who allocates and frees in which arena, as addresses and the making of heaps tell.
#include <sys/mman.h>

#include "tests/analyzer/analyzer_fixture.h"

namespace heapledger::analyzer {
namespace {

constexpr uint64_t kWindow = 64 << 20;
constexpr uint64_t kFirst = 0x7000'0000'0000;  // Aligned as heaps are.
constexpr uint64_t kSecond = kFirst + kWindow;
constexpr uint64_t kThird = kFirst + 2 * kWindow;
constexpr uint64_t kMapping = kFirst + 10 * kWindow;

class ArenaUseTest : public AnalyzerTest {
 protected:
  static void make_heap(TraceBuilder& trace, uint64_t heap) {
    trace.syscall(schema::SyscallName::kMprotect, "new heap", 0,
                  {heap, 0x21000, PROT_READ | PROT_WRITE}, 0);
  }
  // "arena/thread: blocks bytes freed foreign", in order.
  static std::vector<std::string> rows(Trace& trace) {
    schema::Statement select = trace.db.prepare(
        "SELECT arena || '/' || (SELECT count(*) FROM thread WHERE process = arena_use.process AND"
        " id <= arena_use.thread) || ': ' || blocks || ' ' || bytes || ' ' || freed || ' ' ||"
        " freed_foreign FROM arena_use ORDER BY process, arena, thread");
    std::vector<std::string> all;
    while (select.step()) all.push_back(select.column_text(0));
    return all;
  }
};

// Goal: each block is its arena's, and a second heap its arena's too. Method: the main heap, an
// arena of two heaps, another arena, a mapping; blocks that others free.
TEST_F(ArenaUseTest, BlocksAreCountedWhereTheyLie) {
  TraceBuilder trace;
  const uint32_t send = trace.stack({"send send.cc:1", "main"});
  const uint32_t other = trace.stack({"other other.cc:1", "main"});
  trace.grow(0x21000).alloc(kHeap + 16, 100, other).alloc(kHeap + 1040, 200, other);
  trace.thread(2);
  make_heap(trace, kFirst);
  trace.alloc(kFirst + 2064, 1000, send).alloc(kFirst + 4112, 1000, send);
  make_heap(trace, kSecond);
  trace.policy("heap created", static_cast<int64_t>(kFirst), static_cast<int64_t>(kSecond));
  trace.alloc(kSecond + 1040, 500, other);
  trace.thread(3);
  make_heap(trace, kThird);
  trace.alloc(kThird + 2064, 10, other);
  trace.map(kMapping, 0x40000).alloc(kMapping + 16, 0x3f000, other);
  trace.thread(1).free(kFirst + 2064).free(kFirst + 4112).free(kSecond + 1040).free(kHeap + 16);
  trace.thread(3).free(kThird + 2064).free(kHeap + 1040);
  Trace opened = open(trace);
  const std::vector<std::string> expected = {"0/3: 1 258048 0 0", "1/1: 2 300 1 0",
                                             "1/3: 0 0 1 1",      "2/1: 0 0 3 3",
                                             "2/2: 3 2500 0 0",   "3/3: 1 10 1 0"};
  EXPECT_EQ(expected, rows(opened));
  schema::Statement foreign =
      opened.db.prepare("SELECT stack, blocks, bytes FROM foreign_free ORDER BY blocks DESC");
  ASSERT_TRUE(foreign.step());
  EXPECT_EQ(static_cast<int64_t>(send), foreign.column_int(0));
  EXPECT_EQ(2, foreign.column_int(1));
  EXPECT_EQ(2000, foreign.column_int(2));
  ASSERT_TRUE(foreign.step());
  EXPECT_EQ(1, foreign.column_int(1));
  EXPECT_FALSE(foreign.step());
}

// Goal: addresses that another arena had before are the new one's, and a fork child knows its
// parent's. Method: a heap goes, its place becomes another arena's; then a fork.
TEST_F(ArenaUseTest, AddressesChangeHands) {
  TraceBuilder trace;
  const uint32_t stack = trace.stack({"other other.cc:1", "main"});
  trace.grow(0x21000);
  make_heap(trace, kFirst);
  trace.alloc(kFirst + 2064, 8, stack);
  make_heap(trace, kSecond);
  trace.policy("heap created", static_cast<int64_t>(kFirst), static_cast<int64_t>(kSecond));
  trace.alloc(kSecond + 1040, 16, stack).free(kSecond + 1040);
  trace.syscall(schema::SyscallName::kMunmap, "trim heap", 0, {kSecond, kWindow}, 0);
  trace.policy("heap destroyed", static_cast<int64_t>(kSecond), static_cast<int64_t>(kFirst));
  trace.map(kSecond, 0x40000).alloc(kSecond + 16, 0x3f000, stack).free(kSecond + 16);
  trace.unmap(kSecond, 0x40000);
  make_heap(trace, kSecond);
  trace.alloc(kSecond + 1040, 32, stack).fork(101).alloc(kSecond + 4112, 64, stack);
  trace.free(kFirst + 2064);
  Trace opened = open(trace);
  ASSERT_EQ(5u, rows(opened).size());
  EXPECT_EQ("0/1: 1 258048 1 0", rows(opened)[0]);
  EXPECT_EQ("2/1: 2 24 1 0", rows(opened)[1]);
  EXPECT_EQ("3/1: 1 32 0 0", rows(opened)[2]);
  EXPECT_EQ("2/1: 0 0 1 0", rows(opened)[3]);
  EXPECT_EQ("3/1: 1 64 0 0", rows(opened)[4]);
}

}  // namespace
}  // namespace heapledger::analyzer
