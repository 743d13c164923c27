// SPDX-License-Identifier: Apache-2.0
//
// Secondary arenas under glibc's own layout, where every number is glibc 2.36's: which arena a
// thread gets, and what its heaps ask of the system. Threads are Thread objects here: one real
// thread plays them all, so the schedule is the test's.
#include <array>
#include <string>
#include <vector>

#include "tests/interposer/heap/heap_fixture.h"

namespace heapledger::heap {
namespace {

class Arenas : public HeapTestOf<Glibc> {
 protected:
  using ThreadType = Thread<Glibc>;

  void SetUp() override { heap().release(thread_, heap().allocate(thread_, 1)); }
  char* alloc_in(ThreadType& thread, size_t size) {
    return static_cast<char*>(heap().allocate(thread, size));
  }
  // The arena a thread has after its first call.
  const Arena<Glibc>* arena_of_new(ThreadType& thread) {
    alloc_in(thread, 1);
    return thread.arena;
  }
  void free_in(ThreadType& thread, void* block) { heap().release(thread, block); }
};

// Trace 6: what a thread's first allocations ask, and what two large blocks at the top give back.
TEST_F(Arenas, AThreadsHeapIsReservedAlignedAndGrowsByPages) {
  ThreadType thread;
  calls();
  ASSERT_NE(alloc_in(thread, 1), nullptr);
  const std::string made = calls();
  EXPECT_EQ(made.substr(0, 14), "mmap 134217728") << made;
  EXPECT_NE(made.find("mprotect 135168"), std::string::npos) << made;
  while (calls().empty()) alloc_in(thread, 1000);
  for (int i = 0; i < 8; ++i) alloc_in(thread, 1000);
  EXPECT_EQ(calls(), "mprotect 4096; mprotect 4096");
}

TEST_F(Arenas, TwoLargeBlocksAtTheTopAreGivenBackButForThePad) {
  ThreadType thread;
  alloc_in(thread, 1);
  char* first = alloc_in(thread, 120000);
  char* second = alloc_in(thread, 120000);
  calls();
  free_in(thread, second);
  free_in(thread, first);
  EXPECT_EQ(calls(), "madvise 110592");
}

// The arena's struct takes 2200 bytes of its first heap, the cache 656 after it.
TEST_F(Arenas, TheFirstBlockIsWhereGlibcsIs) {
  ThreadType thread;
  const char* block = alloc_in(thread, 1);
  EXPECT_EQ(base::address_of(block) % kHeapBytes, 0xb70U);
}

// Trace 11: two more heaps, the third at the hint; freed in reverse, a heap goes one block late.
TEST_F(Arenas, HeapsComeAndGoAtGlibcsBlocks) {
  ThreadType thread;
  std::vector<char*> blocks;
  std::vector<int> grown;
  alloc_in(thread, 1);
  calls();
  for (int i = 0; i < 1400; ++i) {
    blocks.push_back(alloc_in(thread, 100000));
    const std::string made = calls();
    if (made.find("mmap") != std::string::npos) grown.push_back(i);
  }
  EXPECT_EQ(grown, (std::vector<int>{670, 1340}));
  expect_valid();
  std::vector<int> gone;
  for (int i = 1399; i >= 0; --i) {
    free_in(thread, blocks[static_cast<size_t>(i)]);
    if (calls().find("munmap 67108864") != std::string::npos) gone.push_back(i);
  }
  EXPECT_EQ(gone.front(), 1339);
  expect_valid();
}

TEST_F(Arenas, RegrowingWhatWasOnceCommittedAsksNothing) {
  settings_.cache_count = 0;
  ThreadType thread;
  alloc_in(thread, 1);
  std::array<char*, 4> blocks{};
  for (char*& block : blocks) block = alloc_in(thread, 120000);
  for (char* block : blocks) free_in(thread, block);
  EXPECT_NE(calls().find("madvise"), std::string::npos);
  for (char*& block : blocks) block = alloc_in(thread, 120000);
  EXPECT_EQ(calls(), "");
}

// Where memory is accounted strictly, the end of a heap is mapped anew, and must be committed
// again.
TEST_F(Arenas, StrictAccountingReleasesByANewMapping) {
  space_.release_by_remap = true;
  ThreadType thread;
  alloc_in(thread, 1);
  std::array<char*, 2> blocks{alloc_in(thread, 120000), alloc_in(thread, 120000)};
  calls();
  free_in(thread, blocks[1]);
  free_in(thread, blocks[0]);
  EXPECT_EQ(calls(), "mmap 110592");
  alloc_in(thread, 120000);
  alloc_in(thread, 120000);
  EXPECT_EQ(calls().substr(0, 8), "mprotect");
}

TEST_F(Arenas, AnArenaWithoutThreadsServesTheNextOne) {
  ThreadType first;
  ThreadType second;
  ThreadType third;
  const auto* arena = arena_of_new(first);
  EXPECT_NE(arena_of_new(second), arena);
  heap().thread_exit(first);
  EXPECT_EQ(arena_of_new(third), arena);
  EXPECT_EQ(heap().info().arena_count, 3U);
}

// 2 CPUs: sixteen arenas in all, then they are shared in turn.
TEST_F(Arenas, TheLimitIsEightPerCpu) {
  std::vector<ThreadType> threads(60);
  for (ThreadType& thread : threads) arena_of_new(thread);
  EXPECT_EQ(heap().info().arena_count, 16U);
  EXPECT_EQ(threads[16].arena->next, threads[17].arena);
}

TEST_F(Arenas, ArenaMaxLimitsFromTheStart) {
  heap().set_option(-8, 3);
  std::vector<ThreadType> threads(10);
  for (ThreadType& thread : threads) arena_of_new(thread);
  EXPECT_EQ(heap().info().arena_count, 3U);
}

TEST_F(Arenas, ArenaMaxOfOneKeepsToTheBreak) {
  heap().set_option(-8, 1);
  ThreadType thread;
  calls();
  EXPECT_EQ(arena_of_new(thread), thread_.arena);
  EXPECT_EQ(calls(), "");
}

// A block goes back to the arena it is of, whoever frees it; and calloc, memalign and realloc in a
// heap keep the mark of it.
TEST_F(Arenas, ABlockBelongsToItsArena) {
  ThreadType thread;
  std::vector<char*> blocks;
  for (size_t size : {2000U, 5000U, 40U, 9000U}) {
    blocks.push_back(alloc_in(thread, size));
    blocks.push_back(static_cast<char*>(heap().allocate_zeroed(thread, 1, size)));
    blocks.push_back(static_cast<char*>(heap().allocate_aligned(thread, 256, size)));
    blocks.push_back(static_cast<char*>(heap().reallocate(thread, alloc_in(thread, 64), size)));
    blocks.back() = static_cast<char*>(heap().reallocate(thread, blocks.back(), 30));
  }
  const size_t main_free = heap().info().free_bytes;
  for (char* block : blocks) {
    EXPECT_EQ(base::address_of(block) / kHeapBytes, base::address_of(thread.arena) / kHeapBytes);
    release(block);  // By the main thread.
  }
  EXPECT_GT(heap().info().free_bytes, main_free);
  expect_valid();
}

// Too large for any heap: mapped, whatever the threshold.
TEST_F(Arenas, WhatNoHeapHoldsIsMapped) {
  heap().set_option(-3, 1 << 30);
  ThreadType thread;
  alloc_in(thread, 1);
  calls();
  EXPECT_NE(alloc_in(thread, 70000000), nullptr);
  EXPECT_EQ(calls(), "mmap 70000640");
}

// glibc tries nothing else for a thread that cannot get an arena; the next call tries again.
TEST_F(Arenas, AThreadWithoutAnArenaFailsUntilThereIsMemory) {
  space_.set_map_fails(true);
  ThreadType thread;
  EXPECT_EQ(alloc_in(thread, 1000), nullptr);
  EXPECT_EQ(thread.arena, nullptr);
  space_.set_map_fails(false);
  EXPECT_NE(alloc_in(thread, 1000), nullptr);
  EXPECT_EQ(heap().info().arena_count, 2U);
}

}  // namespace
}  // namespace heapledger::heap
