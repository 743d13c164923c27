// SPDX-License-Identifier: Apache-2.0
// Memory that is packed where it is not touched for long.
#include "interposer/simulated/cold_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <random>
#include <vector>

#include "interposer/base/bits.h"
#include "interposer/heap/allocator_impl.h"
#include "interposer/simulated/model_os.h"

namespace heapledger::heap {
namespace {

constexpr size_t kCluster = ColdMemory::kClusterBytes;

// Fresh memory, as an address space reserves it.
class Range {
 public:
  explicit Range(size_t bytes) : bytes_(bytes) {
    memory_ = ::mmap(nullptr, bytes + kCluster, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    EXPECT_NE(MAP_FAILED, memory_);
  }
  ~Range() { ::munmap(memory_, bytes_ + kCluster); }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
  uintptr_t begin() const { return base::align_up(base::address_of(memory_), kCluster); }
  volatile uint64_t& word(size_t index) const {
    return static_cast<uint64_t*>(base::pointer_to(begin()))[index];
  }

 private:
  size_t bytes_;
  void* memory_ = nullptr;
};

size_t resident_pages(uintptr_t begin, size_t bytes) {
  std::vector<unsigned char> pages(bytes / base::kPageBytes);
  EXPECT_EQ(0, ::mincore(base::pointer_to(begin), bytes, pages.data()));
  size_t resident = 0;
  for (const unsigned char page : pages) resident += page & 1;
  return resident;
}

// Goal: what is read is what was written. Method: random words of all kinds at random places, near
// the last one or anywhere, beside a plain array, with few clusters open.
TEST(ColdMemory, KeepsWhatWasWritten) {
  constexpr size_t kClusters = 64;
  constexpr size_t kWords = kClusters * kCluster / 8;
  const Range range(kClusters * kCluster);
  ColdMemory cold(range.begin(), kClusters * kCluster, 4 * kCluster);
  std::vector<uint64_t> expected(kWords);
  std::mt19937_64 random(20261123);
  size_t at = 0;
  for (int i = 0; i < 300000; ++i) {
    at = random() % 1000 == 0 ? random() % kWords : (at + random() % 64) % kWords;
    ASSERT_EQ(expected[at], range.word(at)) << at << " after " << i;
    const uint64_t kinds[] = {0, random() % 4096, random(), ~uint64_t{0} >> random() % 64,
                              range.begin() + random() % (kClusters * kCluster)};
    expected[at] = i % 4 == 0 ? 0xfff1'ced0'b10c'4ead : kinds[random() % 5];
    range.word(at) = expected[at];
  }
  EXPECT_GT(cold.packs(), 100U) << "it must be this that is tested";
  for (size_t i = 0; i < kWords; ++i) ASSERT_EQ(expected[i], range.word(i)) << i;
  cold.open_all();
  for (size_t i = 0; i < kWords; ++i) ASSERT_EQ(expected[i], range.word(i)) << i;
  EXPECT_EQ(0U, cold.packed_bytes());
}

// Goal: what is written once costs little. Method: a word per 128 bytes, as headers are.
TEST(ColdMemory, GivesPagesBack) {
  constexpr size_t kClusters = 256;
  const Range range(kClusters * kCluster);
  const ColdMemory cold(range.begin(), kClusters * kCluster, 8 * kCluster);
  for (size_t i = 0; i < kClusters * kCluster / 8; i += 16) range.word(i) = 0x91;
  EXPECT_LE(resident_pages(range.begin(), kClusters * kCluster), 12 * kCluster / base::kPageBytes);
  EXPECT_LT(cold.packed_bytes(), kClusters * kCluster / 128 * 4);
}

// Goal: a small heap is left alone, a large one is packed all the same. Method: touched in turns,
// as often as packs anything else, first less of it than is left alone, then more.
TEST(ColdMemory, LeavesAloneWhatIsSmall) {
  constexpr size_t kSmall = 32;
  constexpr size_t kClusters = 4 * kSmall;
  const Range range(kClusters * kCluster);
  const ColdMemory cold(range.begin(), kClusters * kCluster, 8 * kCluster, kSmall * kCluster);
  const auto touch = [&](size_t clusters) {
    for (size_t i = 0; i < clusters * kCluster / 8; i += 16) range.word(i) = 0x91;
  };
  touch(kSmall);
  touch(kSmall);
  EXPECT_EQ(0U, cold.packs());
  EXPECT_EQ(kSmall * kCluster / base::kPageBytes, resident_pages(range.begin(), kSmall * kCluster));
  touch(kClusters);
  EXPECT_LE(resident_pages(range.begin(), kClusters * kCluster), 12 * kCluster / base::kPageBytes);
}

// Goal: memory that is in use as a whole stays there. Method: words all over more clusters than may
// be open at first; after a while nothing is packed any more.
TEST(ColdMemory, LeavesOpenWhatIsInUse) {
  constexpr size_t kClusters = 64;
  const Range range(kClusters * kCluster);
  const ColdMemory cold(range.begin(), kClusters * kCluster, 16 * kCluster);
  std::mt19937_64 random(20261123);
  const auto touch = [&] {
    for (int i = 0; i < 20000; ++i) range.word(random() % (kClusters * kCluster / 8)) = random();
  };
  touch();
  const uint64_t packs = cold.packs();
  EXPECT_GT(packs, kClusters);
  touch();
  EXPECT_LT(cold.packs(), packs + kClusters);
}

// Goal: a heap that is taken down touches all of it again, and stays packed but for what it is at.
// Method: a word per 128 bytes written upwards, read downwards, then upwards.
TEST(ColdMemory, StaysPackedWhereEachPartIsTouchedOnce) {
  constexpr size_t kClusters = 256;
  const Range range(kClusters * kCluster);
  const ColdMemory cold(range.begin(), kClusters * kCluster, 8 * kCluster);
  constexpr size_t kWords = kClusters * kCluster / 8;
  for (size_t i = 0; i < kWords; i += 16) range.word(i) = i;
  for (size_t i = kWords; i > 0; i -= 16) ASSERT_EQ(i - 16, range.word(i - 16));
  for (size_t i = 0; i < kWords; i += 16) ASSERT_EQ(i, range.word(i));
  EXPECT_LE(resident_pages(range.begin(), kClusters * kCluster), 12 * kCluster / base::kPageBytes);
}

// Goal: a model on packed memory does what one on plain memory does, and its pages are few. Method:
// 400,000 small blocks of which most live on, two allocators, each call's address compared.
TEST(ColdMemory, ChangesNothingForAnAllocator) {
  using Heap = Allocator<Glibc, ModelOs>;
  Machine plain({size_t{1} << 30, size_t{1} << 30});
  SpaceOptions packing{size_t{1} << 30, size_t{1} << 30};
  packing.hot_bytes = 16 * kCluster;
  Machine packed(packing);
  Heap heap_a{ModelOs{&plain}};
  Heap heap_b{ModelOs{&packed}};
  Heap::ThreadState thread_a;
  Heap::ThreadState thread_b;
  std::mt19937_64 random(20261123);
  std::vector<std::pair<void*, void*>> blocks;
  const auto offset_a = [&](void* at) { return base::address_of(at) - plain.space.break_begin(); };
  const auto offset_b = [&](void* at) { return base::address_of(at) - packed.space.break_begin(); };
  for (int i = 0; i < 400000; ++i) {
    if (random() % 10 == 0 && !blocks.empty()) {
      auto& [a, b] = blocks[blocks.size() - 1 - random() % std::min<size_t>(blocks.size(), 50)];
      heap_a.release_checked(thread_a, a);
      heap_b.release_checked(thread_b, b);
      std::swap(blocks.back().first, a);
      std::swap(blocks.back().second, b);
      blocks.pop_back();
    }
    const size_t bytes = random() % 200;
    blocks.emplace_back(heap_a.allocate(thread_a, bytes), heap_b.allocate(thread_b, bytes));
    ASSERT_EQ(offset_a(blocks.back().first), offset_b(blocks.back().second)) << i;
  }
  const size_t heap_bytes = packed.space.held_bytes();
  EXPECT_LT(resident_pages(packed.space.break_begin() - base::kPageBytes,
                           base::align_down(heap_bytes, base::kPageBytes)) *
                base::kPageBytes,
            heap_bytes / 8);
  for (const auto& [a, b] : blocks) {
    heap_a.release_checked(thread_a, a);
    heap_b.release_checked(thread_b, b);
  }
  EXPECT_EQ(plain.space.held_bytes(), packed.space.held_bytes());
  for (size_t i = 0; i < heap::kCallNames; ++i) {
    const auto name = static_cast<CallName>(i);
    EXPECT_EQ(plain.space.calls(name), packed.space.calls(name)) << call_name(name);
  }
}

}  // namespace
}  // namespace heapledger::heap
