// SPDX-License-Identifier: Apache-2.0
//
// Sizes: what a request takes, which bin a chunk goes to, and that every boundary is served by the
// right free chunk.
#include <set>
#include <vector>

#include "tests/interposer/heap/heap_fixture.h"

namespace heapledger::heap {
namespace {

using BinsOf = Bins<Header16>;

class BinsTest : public HeapTest {
 protected:
  void SetUp() override {
    // Every free goes to the bins at once.
    settings_.cache_count = 0;
    settings_.fast_chunk_max = 0;
    settings_.mmap_max = 0;
    settings_.trim_threshold = SIZE_MAX;
    settings_.threshold_is_dynamic = false;
  }
};

// glibc's request2size, checked values: 0..24 -> 32, 25..40 -> 48, 131048 -> 131056.
TEST(Sizes, PolicyBytesAreGlibcs) {
  EXPECT_EQ(policy_bytes(0), 32U);
  EXPECT_EQ(policy_bytes(24), 32U);
  EXPECT_EQ(policy_bytes(25), 48U);
  EXPECT_EQ(policy_bytes(40), 48U);
  EXPECT_EQ(policy_bytes(131048), 131056U);
  EXPECT_EQ(policy_bytes(131049), 131072U);
}

// The header borrows nothing: 16 bytes plus rounding, and at most 16 more than glibc's chunk.
TEST(Sizes, AChunkIsTheRequestRoundedPlusTheHeader) {
  EXPECT_EQ(Header16::chunk_bytes(0), 32U);
  EXPECT_EQ(Header16::chunk_bytes(16), 32U);
  EXPECT_EQ(Header16::chunk_bytes(17), 48U);
  for (size_t request = 0; request < 5000; ++request) {
    const Request r = Request::of<Header16>(request);
    EXPECT_GE(r.bytes, request + 16);
    EXPECT_TRUE(r.bytes == r.policy || r.bytes == r.policy + 16);
  }
}

TEST(Sizes, BinIndexesAreMonotonousAndInRange) {
  size_t before = 0;
  for (size_t bytes = kMinChunk; bytes < (1 << 21); bytes += 16) {
    const size_t index = BinsOf::index(bytes);
    EXPECT_TRUE(index == before || index == before + 1 || before == 0) << bytes;
    EXPECT_GT(index, kUnsortedBin);
    EXPECT_LT(index, kBinCount);
    before = index;
  }
  EXPECT_EQ(BinsOf::index(size_t{1} << 40), 127U);
}

// For each size around each bin boundary: a free chunk of that size serves a request for it, and
// nothing smaller does.
TEST_F(BinsTest, EveryBoundaryIsServedByItsOwnChunk) {
  std::set<size_t> sizes;
  size_t before = BinsOf::index(kMinChunk);
  for (size_t bytes = kMinChunk; bytes < 700000; bytes += 16) {
    const size_t index = BinsOf::index(bytes);
    if (index == before) continue;
    before = index;
    for (size_t near = bytes - 32; near <= bytes + 16; near += 16) {
      if (near >= 48) sizes.insert(near);
    }
  }
  ASSERT_GT(sizes.size(), 200U);
  for (const size_t bytes : sizes) {
    char* hole = alloc(bytes - 16);
    char* wall = alloc(32);
    release(hole);
    // Through the unsorted list straight from the bin it was filed in by a request that does not
    // fit.
    char* larger = alloc(bytes + 64);
    ASSERT_NE(larger, hole);
    ASSERT_EQ(alloc(bytes - 16), hole) << bytes;
    ASSERT_EQ(TestAllocator::usable_size(hole), bytes - 16);
    release(larger);
    release(hole);
    release(wall);
    expect_valid();
  }
}

// Of two adequate chunks the smaller is taken, though the larger was freed first.
TEST_F(BinsTest, LargeRequestsTakeTheBestFit) {
  char* large = alloc(9000);
  alloc(32);
  char* small = alloc(8800);
  alloc(32);
  char* medium = alloc(8900);
  alloc(32);
  release(large);
  release(small);
  release(medium);
  alloc(20000);  // Files all three.
  EXPECT_EQ(alloc(8750), small);
  EXPECT_EQ(alloc(8850), medium);
  EXPECT_EQ(alloc(8850), large);
}

// Equal sizes in a large bin: the one linked by size stays until it is the last.
TEST_F(BinsTest, EqualLargeChunksKeepTheSizeListRight) {
  std::vector<char*> blocks;
  for (int i = 0; i < 12; ++i) {
    blocks.push_back(alloc(5000 + static_cast<size_t>(i % 3) * 32));
    alloc(32);
  }
  for (char* block : blocks) release(block);
  alloc(50000);
  expect_valid();
  for (int i = 0; i < 12; ++i) {
    ASSERT_NE(alloc(5000 + static_cast<size_t>(i % 3) * 32), nullptr);
    expect_valid();
  }
  EXPECT_EQ(heap().info().free_chunks, 1U);  // The top alone.
}

// Small bins are first in, first out.
TEST_F(BinsTest, SmallBinsGiveTheOldestFirst) {
  char* a = alloc(500);
  alloc(32);
  char* b = alloc(500);
  alloc(32);
  release(a);
  release(b);
  alloc(3000);  // Files both.
  EXPECT_EQ(alloc(500), a);
  EXPECT_EQ(alloc(500), b);
}

// Small requests in a row are cut from the remainder of the previous split, so they lie side by
// side.
TEST_F(BinsTest, SmallRequestsContinueInTheLastRemainder) {
  char* hole = alloc(4000);
  alloc(32);
  release(hole);
  char* a = alloc(100);
  EXPECT_EQ(a, hole);
  char* b = alloc(100);
  EXPECT_EQ(b, a + Header16::chunk_bytes(100));
  char* c = alloc(200);
  EXPECT_EQ(c, b + Header16::chunk_bytes(100));
}

// A rest too small for a chunk stays with the block.
TEST_F(BinsTest, ARestBelow32BytesIsKept) {
  char* hole = alloc(112);
  alloc(32);
  release(hole);
  EXPECT_EQ(alloc(96), hole);
  EXPECT_EQ(TestAllocator::usable_size(hole), 112U);
}

TEST_F(BinsTest, NeighboursMergeInEveryOrder) {
  const int orders[][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
  for (const auto& order : orders) {
    char* blocks[3];
    for (char*& block : blocks) block = alloc(1000);
    char* wall = alloc(32);
    for (const int i : order) {
      release(blocks[i]);
      expect_valid();
    }
    EXPECT_EQ(alloc(3 * 1024 - 16), blocks[0]);
    release(blocks[0]);
    release(wall);
  }
}

TEST_F(BinsTest, EveryBlockIsAlignedAndHasIdZero) {
  for (size_t size = 0; size < 3000; size += 7) {
    char* block = alloc(size);
    ASSERT_EQ(base::address_of(block) % 16, 0U);
    ASSERT_EQ(TestAllocator::id_of(block), 0U);
    ASSERT_GE(TestAllocator::usable_size(block), size);
    TestAllocator::set_id(block, size + 1);
    ASSERT_EQ(heap().checked_id(block), size + 1);
  }
}

}  // namespace
}  // namespace heapledger::heap
