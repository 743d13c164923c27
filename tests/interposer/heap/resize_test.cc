// SPDX-License-Identifier: Apache-2.0
//
// realloc and memalign: in place, by mremap, by moving; contents; what the observer is told and
// when.
#include <cstring>
#include <vector>

#include "tests/interposer/heap/heap_fixture.h"

namespace heapledger::heap {
namespace {

class Resize : public HeapTest {
 protected:
  static void fill(char* block, size_t size, unsigned seed) {
    for (size_t i = 0; i < size; ++i) block[i] = static_cast<char>(seed + i * 7);
  }
  static bool holds(const char* block, size_t size, unsigned seed) {
    for (size_t i = 0; i < size; ++i) {
      if (block[i] != static_cast<char>(seed + i * 7)) return false;
    }
    return true;
  }
};

struct Told {
  int times = 0;
  void* old_block = nullptr;
  static void note(void* context, void* old_block) {
    auto* told = static_cast<Told*>(context);
    ++told->times;
    told->old_block = old_block;
  }
  ReleaseObserver observer() { return {&note, this}; }
};

// Mapped blocks grow and shrink by mremap only; equal page counts need no call. The mapping is the
// same in both layouts.
TEST_F(Resize, AMappedBlockIsRemapped) {
  alloc(1);
  calls();
  char* block = alloc(200000);
  fill(block, 200000, 1);
  EXPECT_EQ(calls(), "mmap 200704");
  EXPECT_EQ(resize(block, 200004), block);
  EXPECT_EQ(calls(), "");
  block = resize(block, 300000);
  EXPECT_EQ(calls(), "mremap 200704 303104");
  block = resize(block, 150000);
  EXPECT_EQ(calls(), "mremap 303104 151552");
  EXPECT_TRUE(holds(block, 150000, 1));
  block = resize(block, 1000);
  EXPECT_EQ(calls(), "mremap 151552 4096");
  block = resize(block, 10000000);
  EXPECT_EQ(calls(), "mremap 4096 10002432");
  EXPECT_TRUE(holds(block, 1000, 1));
  EXPECT_EQ(heap().info().mapped_bytes, 10002432U);
  EXPECT_EQ(heap().settings().mmap_threshold, 131072U);  // realloc raises nothing.
  release(block);
  EXPECT_EQ(space_.mapping_count(), 0U);
}

TEST_F(Resize, ARefusedRemapKeepsWhatFitsAndMovesTheRest) {
  alloc(1);
  char* block = alloc(200000);
  fill(block, 200000, 2);
  space_.set_remap_fails(true);
  EXPECT_EQ(resize(block, 150000), block);
  char* moved = resize(block, 400000);
  ASSERT_NE(moved, nullptr);
  EXPECT_NE(moved, block);
  EXPECT_TRUE(holds(moved, 200000, 2));
  EXPECT_FALSE(heap().check(block, Use::kFree).ours);
  EXPECT_EQ(space_.mapping_count(), 1U);
}

TEST_F(Resize, ABlockBeforeTheTopGrowsIntoIt) {
  char* block = alloc(1000);
  EXPECT_EQ(resize(block, 20000), block);
  EXPECT_EQ(TestAllocator::usable_size(block), 20000U);
}

TEST_F(Resize, ABlockGrowsIntoTheFreeChunkBehind) {
  char* block = alloc(1000);
  char* behind = alloc(5000);
  alloc(40);
  release(behind);
  fill(block, 1000, 3);
  EXPECT_EQ(resize(block, 4000), block);
  EXPECT_TRUE(holds(block, 1000, 3));
  EXPECT_EQ(TestAllocator::usable_size(block), 4000U);
  EXPECT_EQ(heap().info().free_chunks, 2U);  // The rest, and the top.
}

TEST_F(Resize, AShrunkBlockGivesItsTailBack) {
  char* block = alloc(5000);
  alloc(40);
  fill(block, 5000, 4);
  EXPECT_EQ(resize(block, 2000), block);
  EXPECT_EQ(TestAllocator::usable_size(block), 2000U);
  EXPECT_TRUE(holds(block, 2000, 4));
  EXPECT_EQ(heap().info().free_chunks, 2U);
}

TEST_F(Resize, AMovedBlockKeepsItsContentsAndFreesTheOld) {
  char* block = alloc(3000);
  alloc(40);
  fill(block, 3000, 5);
  char* moved = resize(block, 9000);
  EXPECT_NE(moved, block);
  EXPECT_TRUE(holds(moved, 3000, 5));
  EXPECT_EQ(alloc(3000), block);
}

// The top grew under the request, right behind the block: the two become one.
TEST_F(Resize, ABlockWhoseNewChunkLiesBehindItGrowsInPlace) {
  settings_.mmap_max = 0;
  char* block = alloc(100000);
  fill(block, 100000, 6);
  char* bigger = resize(block, 250000);
  EXPECT_EQ(bigger, block);
  EXPECT_TRUE(holds(bigger, 100000, 6));
  EXPECT_EQ(TestAllocator::usable_size(bigger), 250000U);
}

TEST_F(Resize, SizeZeroReleasesAndNullAllocates) {
  char* block = resize(nullptr, 100);
  ASSERT_NE(block, nullptr);
  errno = 77;
  EXPECT_EQ(resize(block, 0), nullptr);
  EXPECT_EQ(errno, 77);
  EXPECT_EQ(alloc(100), block);
}

TEST_F(Resize, ATooLargeRequestLeavesTheBlock) {
  char* block = alloc(100);
  fill(block, 100, 7);
  errno = 0;
  EXPECT_EQ(resize(block, size_t{1} << 63), nullptr);
  EXPECT_EQ(errno, ENOMEM);
  EXPECT_EQ(resize(block, size_t{1} << 45), nullptr);
  EXPECT_TRUE(holds(block, 100, 7));
  errno = 0;
  EXPECT_EQ(heap().allocate_zeroed(thread_, SIZE_MAX / 2, 3), nullptr);
  EXPECT_EQ(errno, ENOMEM);
}

// In place, by mremap and moving: the observer hears of the old block in each, and the new block's
// id is 0.
TEST_F(Resize, TheObserverIsToldBeforeTheOldMemoryGoes) {
  Told told;
  char* block = alloc(3000);
  char* wall = alloc(40);
  TestAllocator::set_id(block, 9);
  EXPECT_EQ(heap().reallocate(thread_, block, 2000, told.observer()), block);
  EXPECT_EQ(told.times, 1);
  EXPECT_EQ(told.old_block, block);
  EXPECT_EQ(TestAllocator::id_of(block), 0U);
  void* moved = heap().reallocate(thread_, block, 9000, told.observer());
  EXPECT_NE(moved, block);
  EXPECT_EQ(told.times, 2);
  EXPECT_EQ(told.old_block, block);
  void* mapped = heap().allocate(thread_, 1 << 20);
  void* remapped = heap().reallocate(thread_, mapped, 2 << 20, told.observer());
  EXPECT_EQ(told.times, 3);
  EXPECT_EQ(told.old_block, mapped);
  heap().reallocate(thread_, remapped, 0, told.observer());
  EXPECT_EQ(told.times, 4);
  EXPECT_EQ(told.old_block, remapped);
  release(wall);
}

// While the observer runs, the old block of a moving realloc still has its bytes.
TEST_F(Resize, TheOldBytesAreStillThereWhenTheObserverRuns) {
  struct Look {
    bool intact = false;
  } look;
  char* block = alloc(3000);
  alloc(40);
  fill(block, 3000, 8);
  const ReleaseObserver observer{[](void* context, void* old_block) {
                                   static_cast<Look*>(context)->intact =
                                       holds(static_cast<char*>(old_block), 3000, 8);
                                 },
                                 &look};
  heap().reallocate(thread_, block, 9000, observer);
  EXPECT_TRUE(look.intact);
}

TEST_F(Resize, AlignedBlocksAreAlignedUsableAndFreeable) {
  std::vector<char*> blocks;
  for (size_t alignment = 1; alignment <= (1 << 20); alignment *= 2) {
    for (const size_t size : {0, 1, 24, 100, 1000, 5000, 70000, 300000}) {
      char* block = aligned(alignment, static_cast<size_t>(size));
      ASSERT_NE(block, nullptr);
      ASSERT_EQ(base::address_of(block) % alignment, 0U);
      ASSERT_EQ(base::address_of(block) % 16, 0U);
      ASSERT_GE(TestAllocator::usable_size(block), static_cast<size_t>(size));
      std::memset(block, 'a', TestAllocator::usable_size(block));
      ASSERT_EQ(TestAllocator::id_of(block), 0U);
      blocks.push_back(block);
    }
  }
  expect_valid();
  for (char* block : blocks) release(block);
  EXPECT_EQ(space_.mapping_count(), 0U);
}

// The front offset of an aligned mapping survives realloc; the alignment need not.
TEST_F(Resize, AnAlignedMappedBlockCanBeResized) {
  char* block = aligned(1 << 16, 500000);
  fill(block, 500000, 9);
  block = resize(block, 900000);
  ASSERT_NE(block, nullptr);
  EXPECT_TRUE(holds(block, 500000, 9));
  EXPECT_GE(TestAllocator::usable_size(block), 900000U);
  std::memset(block, 'b', TestAllocator::usable_size(block));
  release(block);
  EXPECT_EQ(space_.mapping_count(), 0U);
  EXPECT_EQ(heap().info().mapped_bytes, 0U);
}

TEST_F(Resize, OddAlignmentsAreRoundedUpAndHugeOnesRefused) {
  EXPECT_EQ(base::address_of(aligned(48, 10)) % 64, 0U);
  errno = 0;
  EXPECT_EQ(aligned((size_t{1} << 63) + 1, 10), nullptr);
  EXPECT_EQ(errno, EINVAL);
  errno = 0;
  EXPECT_EQ(aligned(size_t{1} << 63, 10), nullptr);
  EXPECT_EQ(errno, ENOMEM);
  errno = 0;
  EXPECT_EQ(aligned(4096, SIZE_MAX - 4096), nullptr);
  EXPECT_EQ(errno, ENOMEM);
}

}  // namespace
}  // namespace heapledger::heap
