// SPDX-License-Identifier: Apache-2.0
// The simulated address space: the kernel's placement, books of what is held, resident and
// refused, and an allocator over it that needs memory only for what it writes itself.
#include "interposer/simulated/address_space.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <memory>
#include <new>
#include <random>
#include <vector>

#include "interposer/heap/allocator_impl.h"
#include "interposer/simulated/model_os.h"

template class heapledger::heap::Allocator<heapledger::heap::Glibc, heapledger::heap::ModelOs>;

namespace heapledger::heap {
namespace {

constexpr size_t kPage = base::kPageBytes;
constexpr int kUsable = PROT_READ | PROT_WRITE;
constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS;

SpaceOptions small_space() { return {1024 * kPage, 1024 * kPage, Contents::kNone, true}; }

class AddressSpaceTest : public ::testing::Test {
 protected:
  char* map(size_t pages, void* hint = nullptr, int protection = kUsable) {
    return static_cast<char*>(
        space_.mmap(hint, pages * kPage, protection, kFlags, Cause::kMapBlock));
  }
  bool unmap(char* at, size_t pages) {
    return space_.munmap(at, pages * kPage, Cause::kUnmapBlock);
  }

  AddressSpace space_{small_space()};
};

// Goal: first fit from the top. Method: holes of 1, 3 and 2 pages, top-down; each request goes to
// the highest hole that is large enough, at its high end.
TEST_F(AddressSpaceTest, MapsIntoTheHighestGapThatFits) {
  std::vector<char*> at;
  for (const size_t pages : {1, 1, 1, 3, 1, 2, 1}) at.push_back(map(pages));
  EXPECT_TRUE(std::is_sorted(at.rbegin(), at.rend()));
  unmap(at[1], 1);
  unmap(at[3], 3);
  unmap(at[5], 2);
  EXPECT_EQ(map(2), at[3] + kPage);
  EXPECT_EQ(map(2), at[5]);
  EXPECT_EQ(map(1), at[1]);
  EXPECT_EQ(map(1), at[3]);
  EXPECT_EQ(map(1), at[6] - kPage);
}

// Goal: the same against a plain search over all gaps. Method: random calls, pages in a bitmap.
TEST_F(AddressSpaceTest, PlacesAsALinearSearchWould) {
  std::mt19937 random(1);
  std::vector<std::pair<char*, size_t>> live;
  char* const top = map(1) + kPage;
  std::vector<bool> used(512, false);  // From the top down.
  used[0] = true;
  for (int i = 0; i < 20000; ++i) {
    if (live.size() > 60 || (!live.empty() && random() % 2 == 0)) {
      const size_t victim = random() % live.size();
      const auto [at, pages] = live[victim];
      ASSERT_TRUE(unmap(at, pages));
      const size_t first = static_cast<size_t>(top - at) / kPage - pages;
      std::fill_n(used.begin() + static_cast<ptrdiff_t>(first), pages, false);
      live[victim] = live.back();
      live.pop_back();
      continue;
    }
    const size_t pages = 1 + random() % 7;
    size_t first = 0;
    while (std::any_of(used.begin() + static_cast<ptrdiff_t>(first),
                       used.begin() + static_cast<ptrdiff_t>(first + pages),
                       [](bool page) { return page; })) {
      ++first;
    }
    char* at = map(pages);
    ASSERT_EQ(at, top - (first + pages) * kPage) << "step " << i;
    std::fill_n(used.begin() + static_cast<ptrdiff_t>(first), pages, true);
    live.emplace_back(at, pages);
  }
}

// Goal: a heap's reservation as a secondary arena makes it. Method: its five calls; only what has
// access is held.
TEST_F(AddressSpaceTest, ReservationsAreHeldFromTheirFirstAccess) {
  char* at = map(128, nullptr, PROT_NONE);
  EXPECT_EQ(space_.held_bytes(), 0U);
  unmap(at, 32);
  unmap(at + 96 * kPage, 32);
  EXPECT_TRUE(space_.mprotect(at + 32 * kPage, 4 * kPage, kUsable, Cause::kNewHeap));
  EXPECT_TRUE(space_.mprotect(at + 36 * kPage, kPage, kUsable, Cause::kGrowHeap));
  EXPECT_EQ(space_.held_bytes(), 5 * kPage);
  EXPECT_EQ(map(64, at + 96 * kPage), at + 32 * kPage - 64 * kPage) << "the hint is not free";
  EXPECT_EQ(map(1, at + 96 * kPage), at + 96 * kPage) << "this one is";
  unmap(at + 32 * kPage, 64);
  EXPECT_EQ(space_.held_bytes(), 65 * kPage);
  EXPECT_EQ(space_.held_bytes_peak(), 70 * kPage);
}

// Goal: mremap grows in place where the next range is free, else moves; pages come along.
TEST_F(AddressSpaceTest, RemapsInPlaceOrElsewhere) {
  char* high = map(2);
  char* low = map(2);
  space_.touch(low, 1);
  auto* moved = static_cast<char*>(
      space_.mremap(low, 2 * kPage, 4 * kPage, MREMAP_MAYMOVE, Cause::kRemapBlock));
  EXPECT_EQ(moved, low - 4 * kPage);
  EXPECT_EQ(space_.resident_bytes(), kPage);
  EXPECT_EQ(space_.faults(), 1U);
  EXPECT_EQ(space_.touch(moved, 4 * kPage), 3U);
  // Shrunk and grown again: its end is free now.
  EXPECT_EQ(space_.mremap(moved, 4 * kPage, kPage, MREMAP_MAYMOVE, Cause::kRemapBlock), moved);
  EXPECT_EQ(space_.mremap(moved, kPage, 3 * kPage, MREMAP_MAYMOVE, Cause::kRemapBlock), moved);
  EXPECT_EQ(space_.mapping_count(), 2U);
  EXPECT_EQ(space_.held_bytes(), 5 * kPage);
  EXPECT_EQ(space_.resident_bytes(), kPage);
  unmap(high, 2);
}

// Goal: pages are resident from a touch until they are given back, by each way there is.
TEST_F(AddressSpaceTest, KnowsWhatIsResident) {
  const uintptr_t start = space_.brk(0, Cause::kQueryBreak);
  space_.brk(start + 10 * kPage, Cause::kGrowTop);
  EXPECT_EQ(space_.touch(base::pointer_to(start + 100), 3 * kPage), 4U);
  EXPECT_EQ(space_.touch(base::pointer_to(start), 10 * kPage), 6U);
  space_.madvise(base::pointer_to(start + kPage), 2 * kPage, MADV_DONTNEED, Cause::kReleasePages);
  EXPECT_EQ(space_.resident_bytes(), 8 * kPage);
  space_.brk(start + 5 * kPage, Cause::kTrimTop);
  EXPECT_EQ(space_.resident_bytes(), 3 * kPage);
  space_.brk(start + 6 * kPage, Cause::kGrowTop);
  EXPECT_EQ(space_.touch(base::pointer_to(start + 5 * kPage), 1), 1U);
  EXPECT_EQ(space_.resident_bytes_peak(), 10 * kPage);
  EXPECT_EQ(space_.faults(), 11U);
}

// Goal: what is refused is counted, and changes nothing.
TEST_F(AddressSpaceTest, RefusesWhatItIsToldTo) {
  const uintptr_t start = space_.brk(0, Cause::kQueryBreak);
  space_.set_refusal([](const SimulatedCall& call) { return call.bytes > 0; });
  std::vector<SimulatedCall> seen;
  space_.set_sink([&](const SimulatedCall& call) { seen.push_back(call); });
  EXPECT_EQ(space_.brk(start + kPage, Cause::kGrowTop), start);
  EXPECT_EQ(map(1), nullptr);
  ASSERT_EQ(seen.size(), 2U);
  EXPECT_FALSE(seen[0].ok);
  EXPECT_FALSE(seen[1].ok);
  EXPECT_EQ(space_.calls(CallName::kBrk), 2U);
  EXPECT_EQ(space_.held_bytes(), 0U);
}

// Goal: saving takes as long as there are pages, not addresses: a program that forks may hold
// terabytes that it never touched. Method: 16 TiB with three pages in them; what is not asked page
// by page ends before a test's time is over.
TEST(AddressSpaceImage, OfTerabytesHasThePagesThatAreThere) {
  constexpr size_t kBytes = size_t{16} << 40;
  std::unique_ptr<AddressSpace> reserved;
  try {
    reserved = std::make_unique<AddressSpace>(
        SpaceOptions{1024 * kPage, kBytes + (size_t{1} << 30), Contents::kNone, true});
  } catch (const std::bad_alloc&) {
    GTEST_SKIP() << "so many addresses cannot be had here";  // As under thread sanitizer.
  }
  AddressSpace& space = *reserved;
  auto* const block =
      static_cast<char*>(space.mmap(nullptr, kBytes, kUsable, kFlags, Cause::kMapBlock));
  if (block == nullptr) GTEST_SKIP() << "so many addresses cannot be had here";
  for (const size_t at : {size_t{0}, kBytes / 2, kBytes - kPage}) {
    block[at] = 'x';
    EXPECT_EQ(space.touch(block + at, 1), 1U);
  }
  const AddressSpace::Image image = space.save();
  block[kBytes / 2] = 'y';
  EXPECT_EQ(space.touch(block + kPage, 1), 1U);
  space.restore(image);
  EXPECT_EQ(block[kBytes / 2], 'x');
  EXPECT_EQ(space.resident_bytes(), 3 * kPage);
  EXPECT_EQ(space.touch(block + kPage, 1), 1U);
}

// Goal: a model of a heap of 64 GiB runs in little memory. Method: blocks of 1 GiB and callocs and
// reallocs of them, then the peak of this process.
TEST(ModelOs, NeedsMemoryOnlyForWhatTheAllocatorWrites) {
  const auto peak_kib = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
  };
  const long before = peak_kib();
  Machine machine;
  machine.settings.mmap_max = 0;
  auto heap = std::make_unique<Allocator<Glibc, ModelOs>>(ModelOs{&machine});
  Thread<Glibc> thread;
  constexpr size_t kGiB = size_t{1} << 30;
  std::vector<void*> blocks;
  for (int i = 0; i < 32; ++i) {
    blocks.push_back(i % 2 == 0 ? heap->allocate(thread, kGiB)
                                : heap->allocate_zeroed(thread, 1, kGiB));
    ASSERT_NE(blocks.back(), nullptr);
  }
  for (void*& block : blocks) ASSERT_NE(block = heap->reallocate(thread, block, 2 * kGiB), nullptr);
  EXPECT_GT(machine.space.held_bytes_peak(), 64 * kGiB);
  EXPECT_LT(peak_kib() - before, 16 * 1024);
}

}  // namespace
}  // namespace heapledger::heap
