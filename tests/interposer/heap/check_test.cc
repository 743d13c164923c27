// SPDX-License-Identifier: Apache-2.0
//
// Misuse: each case ends the program with glibc's text, before anything was changed; foreign
// pointers are told apart.
#include <cstring>
#include <vector>

#include "tests/interposer/heap/heap_fixture.h"

namespace heapledger::heap {
namespace {

class CheckDeathTest : public HeapTest {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "fast"); }
  uint64_t& word_before(char* block, int words) {
    return *reinterpret_cast<uint64_t*>(block - 8 * words);
  }
};

TEST_F(CheckDeathTest, DoubleFreeOfACachedBlock) {
  char* block = alloc(40);
  alloc(40);
  release(block);
  EXPECT_DEATH(release(block), "^free\\(\\): double free detected in tcache 2\n");
  EXPECT_DEATH(heap().checked_id(block), "double free detected in tcache 2");
}

// The mark in the header needs no search of the right thread's cache.
TEST_F(CheckDeathTest, DoubleFreeAcrossThreads) {
  char* block = alloc(40);
  Thread<Header16> other;
  heap().release(other, block);
  EXPECT_DEATH(release(block), "double free detected in tcache 2");
  heap().thread_exit(other);
}

TEST_F(CheckDeathTest, DoubleFreeOfALargeBlockNextToTheTop) {
  char* block = alloc(5000);
  release(block);
  EXPECT_DEATH(release(block), "^double free or corruption \\(top\\)\n");
}

TEST_F(CheckDeathTest, DoubleFreeOfALargeBlockInTheBins) {
  char* block = alloc(5000);
  alloc(40);
  release(block);
  EXPECT_DEATH(release(block), "^double free or corruption \\(!prev\\)\n");
}

TEST_F(CheckDeathTest, DoubleFreeAfterMergingBackwards) {
  char* first = alloc(5000);
  char* second = alloc(5000);
  alloc(40);
  release(first);
  release(second);
  EXPECT_DEATH(release(second), "^double free or corruption \\(!prev\\)\n");
}

TEST_F(CheckDeathTest, DoubleFreeAtTheHeadOfAFastbin) {
  std::vector<char*> blocks;
  for (int i = 0; i < 8; ++i) blocks.push_back(alloc(40));
  for (char* block : blocks) release(block);
  EXPECT_DEATH(release(blocks.back()), "^double free or corruption \\(fasttop\\)\n");
}

// glibc dies of SIGSEGV here; the page map knows better.
TEST_F(CheckDeathTest, DoubleFreeOfAMappedBlock) {
  char* block = alloc(1 << 20);
  release(block);
  EXPECT_DEATH(release(block), "^free\\(\\): invalid pointer\n");
}

TEST_F(CheckDeathTest, AMisalignedPointer) {
  char* block = alloc(100);
  EXPECT_DEATH(release(block + 8), "^free\\(\\): invalid pointer\n");
  EXPECT_DEATH(heap().check(block + 8, Use::kRealloc), "^realloc\\(\\): invalid pointer\n");
}

TEST_F(CheckDeathTest, AnInteriorPointer) {
  char* block = alloc(1000);
  std::memset(block, 0, 1000);
  EXPECT_DEATH(release(block + 64), "^free\\(\\): invalid pointer\n");
  EXPECT_DEATH(heap().check(block + 64, Use::kRealloc), "^realloc\\(\\): invalid pointer\n");
}

TEST_F(CheckDeathTest, APointerIntoAMappedBlock) {
  char* block = alloc(1 << 20);
  EXPECT_DEATH(release(block + 64), "^free\\(\\): invalid pointer\n");
  EXPECT_DEATH(heap().check(block + 64, Use::kRealloc), "^realloc\\(\\): invalid pointer\n");
  release(block);
}

TEST_F(CheckDeathTest, AHeaderOverwrittenBeforeFree) {
  char* block = alloc(5000);
  alloc(40);
  const uint64_t saved = word_before(block, 2);
  word_before(block, 2) = 0x4141414141414140;
  EXPECT_DEATH(release(block), "^double free or corruption \\(out\\)\n");
  word_before(block, 2) = saved;
}

// An overrun that reaches the next block's header is found when the block is freed past the cache.
TEST_F(CheckDeathTest, AnOverrunIntoTheNextHeader) {
  char* block = alloc(5000);
  char* next = alloc(5000);
  const uint64_t saved = word_before(next, 2);
  word_before(next, 2) = 1;
  EXPECT_DEATH(release(block), "^free\\(\\): invalid next size \\(normal\\)\n");
  EXPECT_DEATH(heap().check(block, Use::kRealloc), "^realloc\\(\\): invalid next size\n");
  word_before(next, 2) = saved;
}

TEST_F(CheckDeathTest, AnOverrunBehindAFastBlock) {
  settings_.cache_count = 0;
  char* block = alloc(40);
  char* next = alloc(40);
  const uint64_t saved = word_before(next, 2);
  word_before(next, 2) = 1;
  EXPECT_DEATH(release(block), "^free\\(\\): invalid next size \\(fast\\)\n");
  word_before(next, 2) = saved;
}

TEST_F(CheckDeathTest, AStrayWriteIntoACachedBlock) {
  char* a = alloc(40);
  char* b = alloc(40);
  release(a);
  release(b);
  const uint64_t saved = word_before(b, 0);
  word_before(b, 0) ^= 4;
  EXPECT_EQ(alloc(40), b);
  EXPECT_DEATH(alloc(40), "^malloc\\(\\): unaligned tcache chunk detected\n");
  word_before(b, 0) = saved;
  thread_.cache->entries[ThreadCache<Header16>::index(Header16::chunk_bytes(40))] =
      reinterpret_cast<FreeEntry*>(a);
}

TEST_F(CheckDeathTest, ACorruptedFreeList) {
  settings_.cache_count = 0;
  char* block = alloc(5000);
  alloc(40);
  release(block);
  const uint64_t saved = word_before(block, 0);
  word_before(block, 0) = base::address_of(block);
  EXPECT_DEATH(alloc(3000), "malloc\\(\\): unsorted double linked list corrupted\n");
  word_before(block, 0) = saved;
}

TEST_F(CheckDeathTest, ACorruptedFoot) {
  settings_.cache_count = 0;
  char* block = alloc(5000);
  char* next = alloc(40);
  release(block);
  const uint64_t saved = word_before(next, 3);
  word_before(next, 3) = 32;
  EXPECT_DEATH(alloc(3000), "malloc\\(\\): mismatching next->prev_size \\(unsorted\\)\n");
  word_before(next, 3) = saved;
}

TEST_F(CheckDeathTest, ACorruptedTop) {
  char* block = alloc(5000);
  char* top = block + 5008;
  const uint64_t saved = word_before(top, 0);
  word_before(top, 0) = SIZE_MAX & ~uint64_t{14};
  EXPECT_DEATH(alloc(3000), "malloc\\(\\): corrupted top size\n");
  word_before(top, 0) = saved;
}

TEST_F(CheckDeathTest, ReallocOfAFreedBlock) {
  char* block = alloc(40);
  release(block);
  EXPECT_DEATH(heap().check(block, Use::kRealloc), "^realloc\\(\\): invalid pointer\n");
}

// Outside all our memory: nothing is read, the caller decides. The page before a mapping may not
// even exist.
TEST_F(CheckDeathTest, ForeignPointersAreTold) {
  EXPECT_TRUE(heap().is_untouched());
  int on_stack = 0;
  EXPECT_FALSE(heap().check(&on_stack, Use::kFree).ours);
  alloc(40);
  EXPECT_FALSE(heap().is_untouched());
  EXPECT_FALSE(heap().check(&on_stack, Use::kFree).ours);
  EXPECT_FALSE(heap().check(reinterpret_cast<void*>(0x10000), Use::kFree).ours);
  EXPECT_FALSE(heap().check(reinterpret_cast<void*>(UINTPTR_MAX - 15), Use::kFree).ours);
  void* lonely = ::mmap(nullptr, 3 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  EXPECT_FALSE(heap().check(static_cast<char*>(lonely) + 4096, Use::kFree).ours);
  ::munmap(lonely, 3 * 4096);
  EXPECT_FALSE(heap().owns(&on_stack));
  EXPECT_DEATH(release(&on_stack), "^free\\(\\): invalid pointer\n");
}

TEST_F(CheckDeathTest, UsableSizeOfNullAndFreed) {
  EXPECT_EQ(TestAllocator::usable_size(nullptr), 0U);
  char* block = alloc(5000);
  EXPECT_EQ(TestAllocator::usable_size(block), 5008U);
  alloc(40);
  release(block);
  EXPECT_EQ(TestAllocator::usable_size(block), 0U);
  EXPECT_EQ(TestAllocator::usable_size(alloc(200000)), 200688U);
}

TEST_F(CheckDeathTest, FreeKeepsErrno) {
  char* small = alloc(40);
  char* large = alloc(1 << 20);
  errno = 1234;
  release(small);
  release(large);
  release(nullptr);
  EXPECT_EQ(errno, 1234);
}

}  // namespace
}  // namespace heapledger::heap
