// SPDX-License-Identifier: Apache-2.0
//
// The decisions: which requests make which system calls. The traces are those checked on glibc 2.36
// by strace; where the 16-byte header changes a number, the comment at the number says so.
#include <algorithm>
#include <vector>

#include "tests/interposer/heap/heap_fixture.h"

namespace heapledger::heap {
namespace {

class Policy : public HeapTest {};

// The very first call asks for the break, then takes 132 KiB: the cache's chunk plus top_pad,
// rounded to pages.
TEST_F(Policy, TheFirstCallGrowsTheBreakOnce) {
  ASSERT_NE(alloc(1), nullptr);
  EXPECT_EQ(calls(), "brk ?; brk +135168");
  ASSERT_NE(alloc(1000), nullptr);
  EXPECT_EQ(calls(), "");
}

// A stream of small requests grows in equal steps of 135168. glibc gets 133-134 blocks of 1000
// bytes out of each; a chunk of 1016 bytes becomes 1024 here (1000 rounded up to 1008, plus 16), so
// it is 131-133.
TEST_F(Policy, AStreamOfSmallRequestsGrowsInEqualSteps) {
  int since = 0;
  alloc(1);
  calls();
  for (int i = 0; i < 2000; ++i) {
    alloc(1000);
    ++since;
    const std::string made = calls();
    if (made.empty()) continue;
    EXPECT_EQ(made, "brk +135168");
    if (since != i + 1) {
      EXPECT_TRUE(since >= 131 && since <= 133) << since;
    }
    since = 0;
  }
}

TEST_F(Policy, WithoutTopPadGrowthIsByPages) {
  settings_.top_pad = 0;
  alloc(1);
  EXPECT_EQ(calls(), "brk ?; brk +4096");
}

// The threshold is compared with glibc's chunk size: 131048 bytes need 131056, 131049 need 131072.
TEST_F(Policy, TheMmapThresholdIsComparedWithGlibcsChunkSize) {
  alloc(1);
  alloc(100000);  // Leaves a top too small for either.
  calls();
  alloc(131048);
  EXPECT_EQ(calls().substr(0, 5), "brk +");
  alloc(100000);
  alloc(30000);
  calls();
  alloc(131049);
  EXPECT_EQ(calls(), "mmap 135168");
}

// A request above the threshold is still served from the top where that is large enough.
TEST_F(Policy, FreeSpaceWinsOverAMapping) {
  alloc(1);
  calls();
  alloc(132000);
  EXPECT_EQ(calls(), "");
}

TEST_F(Policy, FreeingAMappingRaisesTheThreshold) {
  alloc(1);
  calls();
  char* block = alloc(1 << 20);
  EXPECT_EQ(calls(), "mmap 1052672");
  release(block);
  EXPECT_EQ(calls(), "munmap 1052672");
  EXPECT_EQ(heap().settings().mmap_threshold, 1052672U);
  EXPECT_EQ(heap().settings().trim_threshold, 2105344U);
  const auto raised = std::find_if(space_.policy.begin(), space_.policy.end(), [](const auto& e) {
    return e.kind == PolicyKind::kThresholdRaised;
  });
  ASSERT_NE(raised, space_.policy.end());
  EXPECT_EQ(raised->old_value, 131072U);
  EXPECT_EQ(raised->new_value, 1052672U);
  block = alloc(1 << 20);
  EXPECT_EQ(calls().substr(0, 5), "brk +");
  release(block);
  EXPECT_EQ(calls(), "");
}

// The size word is compared with its mapped flag in it: 32 MiB exactly is already too large. A
// mapping is the same in both layouts.
TEST_F(Policy, TheLargestSizeThatRaisesTheThresholdIsOnePageBelow32MiB) {
  release(alloc(33550320));
  EXPECT_EQ(heap().settings().mmap_threshold, 131072U);
  release(alloc(33550312));
  EXPECT_EQ(heap().settings().mmap_threshold, 33550336U);
}

TEST_F(Policy, AnyOfTheFourParametersEndsTheDynamicThreshold) {
  ASSERT_TRUE(heap().set_option(-2, 131072));
  char* block = alloc(300000);
  EXPECT_EQ(calls(), "brk ?; brk +135168; mmap 303104");
  release(block);
  EXPECT_EQ(calls(), "munmap 303104");
  alloc(200000);
  EXPECT_EQ(calls(), "mmap 200704");
}

TEST_F(Policy, WithTheDynamicThresholdTheSecondBlockUsesTheBreak) {
  release(alloc(300000));
  calls();
  alloc(200000);
  EXPECT_EQ(calls().substr(0, 5), "brk +");
}

// Eight blocks of 100000 bytes, freed in reverse. From the second free on the top is beyond 128
// KiB, and each free gives back what is above top_pad: 98304 or 102400 bytes as the pages fall.
TEST_F(Policy, FreesAtTheTopTrimByTheBlock) {
  alloc(1);
  std::vector<char*> blocks;
  for (int i = 0; i < 8; ++i) blocks.push_back(alloc(100000));
  calls();
  // glibc's trim needs the top to exceed 135200 bytes; what is left of the top after the eighth
  // block decides whether the first free already reaches that.
  int trims = 0;
  while (!blocks.empty()) {
    release(blocks.back());
    blocks.pop_back();
    const std::string made = calls();
    if (made.empty()) continue;
    ++trims;
    EXPECT_TRUE(made == "brk -98304" || made == "brk -102400") << made;
  }
  EXPECT_GE(trims, 7);
  EXPECT_GE(heap().info().top_bytes, 131105U);
  EXPECT_LE(heap().info().top_bytes, 135200U);
}

// A trim needs the break where the top ends.
TEST_F(Policy, AForeignBreakAboveTheTopBlocksTrimming) {
  std::vector<char*> blocks;
  for (int i = 0; i < 8; ++i) blocks.push_back(alloc(100000));
  heap().note_break(space_.foreign_sbrk(4096));
  calls();
  for (char* block : blocks) release(block);
  EXPECT_EQ(calls(), "");
}

// Somebody else moved the break: the growth is followed by a second one that makes the new part as
// large as if the old top had continued, and the old top goes to the bins.
TEST_F(Policy, AForeignBreakMakesTheGrowthTwoCalls) {
  alloc(1000);
  heap().note_break(space_.foreign_sbrk(4096));
  calls();
  const size_t old_top = heap().info().top_bytes;
  char* block = alloc(130000);
  // 130000 + 16 fits the old top; the next does not.
  ASSERT_NE(block, nullptr);
  EXPECT_EQ(calls(), "");
  const size_t left = heap().info().top_bytes;
  EXPECT_LT(left, old_top);
  ASSERT_NE(alloc(100000), nullptr);
  const std::vector<SysCall> made = space_.take_calls();
  ASSERT_EQ(made.size(), 2U);
  EXPECT_EQ(made[0].cause, Cause::kGrowTop);
  EXPECT_EQ(made[1].cause, Cause::kAlignForeign);
  EXPECT_EQ((static_cast<size_t>(made[1].bytes) & 4095), 0U);
  EXPECT_GE(static_cast<size_t>(made[1].bytes), left);
}

// The program moved the break below what the heap holds: glibc's message.
TEST_F(Policy, ABreakMovedIntoTheHeapIsFatal) {
  alloc(1000);
  const uintptr_t end = heap().known_break();
  heap().note_break(end - 4096);  // As the program's own sbrk(-4096) would.
  EXPECT_DEATH(
      {
        for (int i = 0; i < 3; ++i) alloc(100000);
      },
      "break adjusted to free malloc space");
  heap().note_break(end);
}

// A wall above the break. The first fallback mapping is a multiple of 1 MiB, later ones only what
// the request needs (2.36's swapped arguments); each growth tries the break again.
TEST_F(Policy, AWallAboveTheBreakFallsBackToMappings) {
  alloc(1);
  calls();
  space_.set_wall(true);
  std::vector<std::string> made;
  for (int i = 0; i < 20; ++i) {
    ASSERT_NE(alloc(100000), nullptr);
    const std::string text = calls();
    if (!text.empty()) made.push_back(text);
    expect_valid();
  }
  ASSERT_GE(made.size(), 3U);
  EXPECT_NE(made[0].find("refused; mmap 1048576"), std::string::npos) << made[0];
  EXPECT_EQ(made[1], "brk +233472 refused; mmap 233472");
  EXPECT_EQ(made[2], "brk +233472 refused; mmap 233472");
  EXPECT_EQ(heap().info().mapped_count, 0U);
}

// Blocks outside the break area are cached like all others; cached ones count as in use.
TEST_F(Policy, BlocksInFallbackMappingsGoThroughTheCache) {
  space_.set_wall(true);
  char* block = alloc(1000);
  ASSERT_NE(block, nullptr);
  const size_t free_before = heap().info().free_bytes;
  release(block);
  EXPECT_EQ(heap().info().free_bytes, free_before);
}

TEST_F(Policy, BlocksInFallbackMappingsAreOursAndFreeable) {
  space_.set_wall(true);
  char* block = alloc(5000);
  ASSERT_NE(block, nullptr);
  EXPECT_TRUE(heap().owns(block));
  EXPECT_TRUE(heap().check(block, Use::kFree).ours);
  release(block);
}

TEST_F(Policy, WhenTheBreakWorksAgainTheTopMovesThere) {
  space_.set_wall(true);
  alloc(5000);
  space_.set_wall(false);
  calls();
  for (int i = 0; i < 11; ++i) alloc(100000);
  const std::string made = calls();
  EXPECT_EQ(made.find("mmap"), std::string::npos) << made;
  expect_valid();
}

TEST_F(Policy, NoMemoryAtAllIsEnomem) {
  space_.set_wall(true);
  space_.set_map_fails(true);
  errno = 0;
  EXPECT_EQ(alloc(100), nullptr);
  EXPECT_EQ(errno, ENOMEM);
  EXPECT_EQ(zeroed(100), nullptr);
  EXPECT_EQ(aligned(64, 100), nullptr);
  space_.set_map_fails(false);
  EXPECT_NE(alloc(100), nullptr);
}

TEST_F(Policy, ARefusedMappingFallsBackToTheBreak) {
  alloc(1);
  calls();
  space_.set_map_fails(true);
  ASSERT_NE(alloc(1 << 20), nullptr);
  EXPECT_EQ(calls().substr(0, 29), "mmap 1052672 refused; brk +10");
}

// memalign of 70000 at 64 KiB asks for 70000 + 65536 + slack: that sum decides, so it is mapped
// where the top is too small.
TEST_F(Policy, AlignedRequestsDecideByTheirPaddedSize) {
  alloc(1);
  calls();
  char* block = aligned(65536, 70000);
  ASSERT_NE(block, nullptr);
  EXPECT_EQ(base::address_of(block) % 65536, 0U);
  EXPECT_EQ(calls(), "mmap 139264");
  release(block);
  EXPECT_EQ(calls(), "munmap 139264");
}

TEST_F(Policy, APosixMemalignOf2MiBMapsWhatGlibcMaps) {
  alloc(1);
  calls();
  release(aligned(2 << 20, 40000000));
  EXPECT_EQ(calls(), "mmap 42098688; munmap 42098688");
}

// mmap_threshold 0: whatever bins and top cannot serve is mapped, the cache's own memory too.
TEST_F(Policy, WithThresholdZeroTheCacheHasItsOwnMapping) {
  settings_.mmap_threshold = 0;
  settings_.threshold_is_dynamic = false;
  alloc(1);
  EXPECT_EQ(calls(), "mmap 4096; mmap 4096");
}

TEST_F(Policy, WithMmapMaxZeroNothingIsMapped) {
  settings_.mmap_max = 0;
  alloc(50 << 20);
  EXPECT_EQ(calls().find("mmap"), std::string::npos);
}

TEST_F(Policy, MmapMaxCountsLiveMappings) {
  settings_.mmap_max = 2;
  alloc(200000);
  char* second = alloc(200000);
  calls();
  alloc(200000);
  EXPECT_EQ(calls().substr(0, 5), "brk +");
  release(second);
  calls();
  alloc(2000000);
  EXPECT_EQ(calls(), "mmap 2002944");
}

// malloc_trim drops whole pages inside free chunks, keeps their links and foot, and then shrinks
// the top.
TEST_F(Policy, TrimReleasesPagesAndTheTop) {
  char* hole = alloc(100000);
  char* wall = alloc(100);
  calls();
  std::fill(hole, hole + 100000, 'x');
  release(hole);
  EXPECT_TRUE(heap().trim(0));
  const std::vector<SysCall> made = space_.take_calls();
  ASSERT_EQ(made.size(), 2U);
  EXPECT_EQ(made[0].name, CallName::kMadvise);
  EXPECT_EQ(made[0].cause, Cause::kReleasePages);
  EXPECT_EQ(made[1].cause, Cause::kTrimTop);
  expect_valid();
  EXPECT_EQ(alloc(100000), hole);
  release(wall);
}

TEST_F(Policy, EveryCallNamesItsCause) {
  alloc(1);
  char* block = alloc(500000);
  block = resize(block, 900000);
  release(block);
  std::vector<Cause> causes;
  for (const SysCall& call : space_.take_calls()) causes.push_back(call.cause);
  const std::vector<Cause> expected = {Cause::kQueryBreak, Cause::kGrowTop, Cause::kMapBlock,
                                       Cause::kRemapBlock, Cause::kUnmapBlock};
  EXPECT_EQ(causes, expected);
  EXPECT_STREQ(cause_name(Cause::kGrowTop), "grow top");
  EXPECT_STREQ(cause_name(Cause::kRegistry), "registry");
  EXPECT_STREQ(policy_name(PolicyKind::kSettingChanged), "setting changed");
}

// calloc never clears what came fresh from the system, and always what may be dirty.
TEST_F(Policy, CallocClearsReusedMemoryOnly) {
  char* block = alloc(5000);
  std::fill(block, block + 5000, 'x');
  alloc(16);
  release(block);
  block = zeroed(5000);
  EXPECT_EQ(std::count(block, block + 5000, 0), 5000);
}

// Memory the break reached, gave back and reached again counts as dirty; it is zero anyhow, and so
// must be what we return.
TEST_F(Policy, CallocAfterATrimIsZero) {
  settings_.mmap_max = 0;
  char* block = alloc(10 << 20);
  std::fill(block, block + (10 << 20), 'x');
  release(block);
  block = zeroed(10 << 20);
  EXPECT_EQ(std::count(block, block + (10 << 20), 0), 10 << 20);
}

// The cache holds 7 blocks per size; calloc does not take from it, malloc takes the last freed
// first.
TEST_F(Policy, TheCacheIsLastInFirstOutAndCallocPassesItBy) {
  char* a = alloc(40);
  char* b = alloc(40);
  release(a);
  release(b);
  char* c = zeroed(40);
  EXPECT_NE(c, a);
  EXPECT_NE(c, b);
  EXPECT_EQ(alloc(40), b);
  EXPECT_EQ(alloc(40), a);
}

// The eighth block of a size goes to its fastbin, and comes back when the cache is empty, refilling
// it.
TEST_F(Policy, TheEighthSmallBlockGoesToTheFastbin) {
  std::vector<char*> blocks;
  for (int i = 0; i < 10; ++i) blocks.push_back(alloc(40));
  for (char* block : blocks) release(block);
  EXPECT_EQ(heap().info().fast_chunks, 3U);
  for (int i = 0; i < 7; ++i) alloc(40);
  EXPECT_EQ(heap().info().fast_chunks, 3U);
  EXPECT_EQ(alloc(40), blocks[9]);
  EXPECT_EQ(heap().info().fast_chunks, 0U);  // The other two were moved to the cache.
}

// 1032 bytes (nb 1040) are cached, 1033 (nb 1056) are not, though both take 1056 bytes here.
TEST_F(Policy, TheCacheLimitIsGlibcsRequest) {
  char* small = alloc(1032);
  char* large = alloc(1033);
  alloc(16);
  const size_t in_use = heap().info().free_bytes;
  release(small);
  EXPECT_EQ(heap().info().free_bytes, in_use);  // In the cache: counts as in use.
  release(large);
  EXPECT_EQ(heap().info().free_bytes, in_use + 1056);
}

TEST_F(Policy, WithTcacheCountZeroNothingIsCached) {
  settings_.cache_count = 0;
  release(alloc(40));
  EXPECT_EQ(heap().info().fast_chunks, 1U);
}

TEST_F(Policy, ThreadExitEmptiesTheCache) {
  release(alloc(40));
  release(alloc(600));
  heap().thread_exit(thread_);
  // The blocks, and the cache itself, are part of the top again.
  EXPECT_EQ(heap().info().free_bytes, heap().info().system_bytes);
  EXPECT_EQ(thread_.owned, nullptr);
  char* late = alloc(40);  // A destructor that runs later still allocates, without a cache.
  ASSERT_NE(late, nullptr);
  release(late);
  EXPECT_EQ(thread_.owned, nullptr);
}

// Static storage without content: the library's file does not hold it, and its pages are only those
// that are used.
TEST(ConstantInitialisation, LeavesNothingButZeros) {
  static constinit TestAllocator allocator;
  const auto* bytes = reinterpret_cast<const unsigned char*>(&allocator);
  EXPECT_EQ(std::count(bytes, bytes + sizeof allocator, 0), ptrdiff_t{sizeof allocator});
}

TEST_F(Policy, MalloptFollowsGlibcsRules) {
  EXPECT_FALSE(heap().set_option(1, 161));
  EXPECT_FALSE(heap().set_option(1, -1));
  EXPECT_TRUE(heap().set_option(1, 0));
  EXPECT_EQ(heap().settings().fast_chunk_max, 0U);
  EXPECT_TRUE(heap().settings().threshold_is_dynamic);
  // An unknown parameter merges the fastbins all the same: a model must know of it.
  EXPECT_TRUE(heap().set_option(-9, 5));
  EXPECT_EQ(space_.policy.back().kind, PolicyKind::kSettingChanged);
  EXPECT_EQ(static_cast<int64_t>(space_.policy.back().old_value), -9);
  EXPECT_TRUE(heap().set_option(-8, -1));
  EXPECT_EQ(heap().settings().arena_max, 0U);
  EXPECT_TRUE(heap().set_option(-1, -1));
  EXPECT_EQ(heap().settings().trim_threshold, SIZE_MAX);
  EXPECT_FALSE(heap().settings().threshold_is_dynamic);
}

TEST_F(Policy, PerturbFillsNewAndFreedMemory) {
  settings_.perturb = 0x55;
  settings_.cache_count = 0;
  settings_.fast_chunk_max = 0;
  char* block = alloc(200);
  EXPECT_EQ(std::count(block, block + 200, static_cast<char>(0xaa)), 200);
  char* clear = zeroed(200);
  EXPECT_EQ(std::count(clear, clear + 200, 0), 200);
  release(block);
  EXPECT_EQ(block[100], 0x55);
}

// The first call of a thread that only frees makes its cache.
TEST_F(Policy, AThreadThatOnlyFreesGetsACache) {
  char* block = alloc(40);
  Thread<Header16> other;
  heap().release(other, block);
  EXPECT_NE(other.owned, nullptr);
  heap().thread_exit(other);
}

// What a signal handler meets in the middle of a cache operation: it goes past the cache.
TEST_F(Policy, WhileTheCacheIsInUseNestedCallsGoPastIt) {
  char* block = alloc(40);
  release(block);
  auto* cache = thread_.cache;
  thread_.cache = nullptr;
  char* nested = alloc(40);
  EXPECT_NE(nested, block);
  release(nested);
  EXPECT_EQ(thread_.cache, nullptr);
  thread_.cache = cache;
  EXPECT_EQ(alloc(40), block);
}

}  // namespace
}  // namespace heapledger::heap
