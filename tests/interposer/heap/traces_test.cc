// SPDX-License-Identifier: Apache-2.0
//
// The twelve traces that were taken of glibc 2.36 with strace, each a test by its number: the same
// calls on the Glibc layout make the same system calls.
#include <string>
#include <vector>

#include "tests/interposer/heap/heap_fixture.h"

namespace heapledger::heap {
namespace {

class Traces : public HeapTestOf<Glibc> {
 protected:
  char* alloc_in(Thread<Glibc>& thread, size_t size) {
    return static_cast<char*>(heap().allocate(thread, size));
  }
  std::vector<char*> alloc_many(size_t count, size_t size) {
    std::vector<char*> blocks;
    for (size_t i = 0; i < count; ++i) blocks.push_back(alloc(size));
    return blocks;
  }
};

TEST_F(Traces, N01_TheFirstRequest) {
  alloc(1);
  EXPECT_EQ(calls(), "brk ?; brk +135168");
}

TEST_F(Traces, N02_TheThresholdIsComparedWithTheChunk) {
  alloc(10000);  // The top of a fresh heap could serve the next request.
  calls();
  alloc(131049);
  EXPECT_EQ(calls(), "mmap 135168");
  alloc(131048);
  EXPECT_EQ(calls(), "brk +139264");
}

TEST_F(Traces, N03_AFreedMappingRaisesBothThresholds) {
  alloc(1);
  calls();
  char* block = alloc(1 << 20);
  EXPECT_EQ(calls(), "mmap 1052672");
  release(block);
  EXPECT_EQ(calls(), "munmap 1052672");
  block = alloc(1 << 20);
  EXPECT_EQ(calls(), "brk +1048576");
  EXPECT_EQ(heap().settings().trim_threshold, 2105344U);
  release(block);
  EXPECT_EQ(calls(), "");
}

TEST_F(Traces, N04_AMappingIsResizedByTheKernel) {
  alloc(1);
  calls();
  char* block = alloc(200000);
  EXPECT_EQ(calls(), "mmap 200704");
  block = resize(block, 200004);
  EXPECT_EQ(calls(), "");
  block = resize(block, 300000);
  EXPECT_EQ(calls(), "mremap 200704 303104");
  block = resize(block, 150000);
  EXPECT_EQ(calls(), "mremap 303104 151552");
  block = resize(block, 1000);
  EXPECT_EQ(calls(), "mremap 151552 4096");
  resize(block, 10000000);
  EXPECT_EQ(calls(), "mremap 4096 10002432");
}

TEST_F(Traces, N05_BlocksFreedInReverseMoveTheBreakOneByOne) {
  alloc(1);
  const std::vector<char*> blocks = alloc_many(8, 100000);
  calls();
  release(blocks[7]);
  calls();
  for (size_t i = 7; i-- > 0;) {
    release(blocks[i]);
    const std::string made = calls();
    EXPECT_TRUE(made == "brk -98304" || made == "brk -102400") << i << ": " << made;
  }
}

TEST_F(Traces, N06_AThreadsHeap) {
  alloc(1);
  calls();
  Thread<Glibc> thread;
  alloc_in(thread, 1);
  size_t reserved = 0;
  size_t given_back = 0;
  const std::vector<SysCall> made = space_.take_calls();
  ASSERT_FALSE(made.empty());
  for (const SysCall& call : made) {
    if (call.name == CallName::kMmap) reserved += static_cast<size_t>(call.bytes);
    if (call.name == CallName::kMunmap) given_back += static_cast<size_t>(call.bytes);
  }
  EXPECT_EQ(reserved, 134217728U);
  EXPECT_EQ(given_back, 67108864U);
  EXPECT_EQ(made.back().name, CallName::kMprotect);
  EXPECT_EQ(made.back().bytes, 135168);
  while (calls().empty()) alloc_in(thread, 1000);
  for (int i = 0; i < 4; ++i) alloc_in(thread, 1000);
  EXPECT_EQ(calls(), "mprotect 4096");

  Thread<Glibc> other;
  char* first = alloc_in(other, 120000);
  char* second = alloc_in(other, 120000);
  calls();
  heap().release(other, second);
  heap().release(other, first);
  EXPECT_EQ(calls(), "madvise 110592");
}

TEST_F(Traces, N07_ASettingFreezesTheThreshold) {
  alloc(1);
  heap().set_option(-2, 131072);  // The default, given explicitly.
  calls();
  release(alloc(300000));
  alloc(200000);
  EXPECT_EQ(calls(), "mmap 303104; munmap 303104; mmap 200704");
}

TEST_F(Traces, N07_WithoutItTheNextBlockComesFromTheBreak) {
  alloc(1);
  calls();
  release(alloc(300000));
  alloc(200000);
  EXPECT_EQ(calls(), "mmap 303104; munmap 303104; brk +200704");
}

TEST_F(Traces, N08_BehindAForeignBreakGrowthTakesTwoSteps) {
  alloc(1);
  heap().note_break(space_.foreign_sbrk(4096));
  calls();
  while (alloc(60000) != nullptr) {
    const std::string made = calls();
    if (made.empty()) continue;
    EXPECT_EQ(made, "brk +180224; brk +16384");
    break;
  }
}

TEST_F(Traces, N09_AWallAboveTheBreak) {
  alloc(1);
  space_.set_wall(true);
  calls();
  std::vector<std::string> mapped;
  for (int i = 0; i < 15; ++i) {
    alloc(100000);
    const std::string made = calls();
    if (!made.empty()) mapped.push_back(made.substr(made.find("mmap")));
  }
  const std::vector<std::string> expected = {"mmap 1048576", "mmap 233472", "mmap 233472"};
  ASSERT_GE(mapped.size(), expected.size());
  mapped.resize(expected.size());
  EXPECT_EQ(mapped, expected);
}

TEST_F(Traces, N10_AlignedRequestsCountTheirPadding) {
  alloc(1);
  calls();
  aligned(65536, 70000);
  EXPECT_EQ(calls(), "mmap 139264");
  const std::vector<char*> blocks = alloc_many(3, 60000);
  calls();
  for (size_t i = 3; i-- > 0;) {
    release(blocks[i]);
    const std::string made = calls();
    EXPECT_EQ(made.substr(0, 5), "brk -") << made;
    EXPECT_EQ(made.find(';'), std::string::npos) << made;
  }
  EXPECT_EQ(heap().info().top_bytes, 134480U);
}

TEST_F(Traces, N11_HeapsComeAndGo) {
  alloc(1);
  Thread<Glibc> thread;
  alloc_in(thread, 1);
  calls();
  std::vector<char*> blocks;
  std::vector<size_t> grown;
  for (size_t i = 0; i < 1400; ++i) {
    blocks.push_back(alloc_in(thread, 100000));
    // 128 MiB, or 64 MiB at the hint: that depends on where the space lies.
    if (calls().find("mmap") != std::string::npos) grown.push_back(i);
  }
  EXPECT_EQ(grown, (std::vector<size_t>{670, 1340}));
  std::vector<size_t> destroyed;
  for (size_t i = blocks.size(); i-- > 0;) {
    heap().release(thread, blocks[i]);
    if (calls().find("munmap 67108864") != std::string::npos) destroyed.push_back(i);
  }
  ASSERT_FALSE(destroyed.empty());
  EXPECT_EQ(destroyed.front(), 1339U);  // One block after it became empty.
}

TEST_F(Traces, N12_WithThresholdZeroTheCacheHasAMappingOfItsOwn) {
  settings_.mmap_threshold = 0;
  settings_.threshold_is_dynamic = false;
  alloc(1);
  EXPECT_EQ(calls(), "mmap 4096; mmap 4096");
}

}  // namespace
}  // namespace heapledger::heap
