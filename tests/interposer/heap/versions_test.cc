// SPDX-License-Identifier: Apache-2.0
//
// What glibc's versions do differently, one test per difference, under glibc's own layout. 2.36,
// 2.41 and 2.43 are also compared with the real ones call by call (differential/).
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "tests/interposer/heap/heap_fixture.h"

namespace heapledger::heap {
namespace {

using List = std::initializer_list<uint16_t>;

template <class Layout>
class VersionsOf : public HeapTestOf<Layout> {
 protected:
  void be(uint16_t version) { this->settings_ = default_settings(version); }
};

class Versions : public VersionsOf<Glibc> {
 protected:
  size_t free_chunks() { return heap().info().free_chunks; }
  bool has_cache() const { return thread_.owned != nullptr; }
  static uintptr_t in_page(const void* block) { return base::address_of(block) % 4096; }
};

// Each rule in a world of its own, since a heap has one version for life.
class World : public Versions {
 public:
  explicit World(uint16_t version) { be(version); }
  void TestBody() override {}
  ~World() override { expect_valid(); }

  using Versions::aligned;
  using Versions::alloc;
  using Versions::AllocatorType;
  using Versions::calls;
  using Versions::free_chunks;
  using Versions::has_cache;
  using Versions::heap;
  using Versions::in_page;
  using Versions::release;
  using Versions::resize;
  using Versions::settings_;
  using Versions::space_;
  using Versions::thread_;
  using Versions::zeroed;
};

// A mapping of 200704 holds 200688 bytes; growing into the last of them was a mremap before.
TEST(VersionRules, ReallocKeepsABlockThatIsLargeEnoughFrom237On) {
  const auto made = [](uint16_t version, size_t size) {
    World world(version);
    char* block = world.alloc(200000);
    world.calls();
    world.resize(block, size);
    return world.calls();
  };
  EXPECT_EQ(made(236, 200688), "mremap 200704 204800");
  EXPECT_EQ(made(237, 200688), "");
  EXPECT_EQ(made(242, 200688), "");
  EXPECT_EQ(made(243, 200680), "");
  EXPECT_EQ(made(243, 200681), "mremap 200704 204800");
}

// Behind the header of the heap, the arena and, where malloc makes one, the thread's cache.
TEST(VersionRules, AnArenasFirstBlockIsWhereTheVersionHasIt) {
  const auto first_block = [](uint16_t version) {
    World world(version);
    world.alloc(1);
    Thread<Glibc> other;
    return base::address_of(world.heap().allocate(other, 1)) % kHeapBytes;
  };
  EXPECT_EQ(first_block(234), 0xb60U);
  EXPECT_EQ(first_block(236), 0xb70U);
  EXPECT_EQ(first_block(241), 0xb70U);
  EXPECT_EQ(first_block(242), 0xbe0U);
  EXPECT_EQ(first_block(243), 0x880U);
}

// Of a thread without an arena: whether it gets one for a request that no memory is enough for.
TEST(VersionRules, SizesThatAreTooLargeMayFailOnlyInAnArena) {
  const auto looks = [](uint16_t version, size_t alignment, size_t size) {
    World world(version);
    world.alloc(1);
    Thread<Glibc> other;
    EXPECT_EQ(alignment == 0 ? world.heap().allocate(other, size)
                             : world.heap().allocate_aligned(other, alignment, size),
              nullptr);
    return other.arena != nullptr;
  };
  EXPECT_FALSE(looks(242, 0, SIZE_MAX));
  EXPECT_TRUE(looks(243, 0, SIZE_MAX));
  EXPECT_TRUE(looks(237, 256, SIZE_MAX));
  EXPECT_FALSE(looks(238, 256, SIZE_MAX));
  EXPECT_TRUE(looks(238, 256, PTRDIFF_MAX));
  EXPECT_TRUE(looks(243, 256, SIZE_MAX));
}

// The old top has 134480 bytes left; the wall is above it.
TEST(VersionRules, FallbackMappingsAreAtLeast1MiBFrom238On) {
  const auto made = [](uint16_t version, size_t first) {
    World world(version);
    world.settings_.mmap_max = 0;
    world.alloc(1);
    world.space_.set_wall(true);
    world.calls();
    world.alloc(first);
    const std::string text = world.calls();
    return text.substr(text.find("mmap"));
  };
  EXPECT_EQ(made(237, 200000), "mmap 1048576");
  EXPECT_EQ(made(237, 1200000), "mmap 2097152");
  EXPECT_EQ(made(238, 200000), "mmap 1048576");
  EXPECT_EQ(made(238, 1200000), "mmap 1335296");  // Rounded twice, with the old top between.
  EXPECT_EQ(made(243, 1200000), "mmap 1331200");
}

TEST(VersionRules, LaterFallbackMappingsAreTightOnlyBefore238) {
  const auto later = [](uint16_t version) {
    World world(version);
    world.settings_.mmap_max = 0;
    world.alloc(1);
    world.space_.set_wall(true);
    std::string last;
    for (int i = 0; i < 30; ++i) {
      world.alloc(100000);
      const std::string text = world.calls();
      if (text.find("mmap") != std::string::npos) last = text.substr(text.find("mmap"));
    }
    return last;
  };
  EXPECT_EQ(later(237), "mmap 233472");
  EXPECT_EQ(later(238), "mmap 1048576");
}

TEST(VersionRules, MemalignTakesAnAlignedCachedBlockFrom238On) {
  for (const uint16_t version : List{236, 237, 238, 241, 242, 243}) {
    World world(version);
    char* block = world.aligned(256, 100);
    ASSERT_EQ(base::address_of(block) % 256, 0U);
    char* other = world.alloc(100);
    world.release(block);
    world.release(other);  // The head of its cache bin; misaligned.
    if (base::address_of(other) % 256 == 0) continue;
    EXPECT_EQ(world.aligned(256, 100) == block, version >= 238) << version;
  }
}

// What is cut off in front has 240 bytes or so: it goes to the cache, or to a bin at once.
TEST(VersionRules, WhatMemalignCutsOffPassesTheCacheByFrom238On) {
  const auto free_after = [](uint16_t version) {
    World world(version);
    world.alloc(1);
    world.aligned(1024, 100);
    return world.free_chunks();  // The top is one.
  };
  EXPECT_EQ(free_after(237), 1U);
  EXPECT_EQ(free_after(238), 2U);
  EXPECT_EQ(free_after(243), 2U);
}

TEST(VersionRules, CallocTakesFromTheCacheFrom241On) {
  for (const uint16_t version : List{236, 240, 241, 243}) {
    World world(version);
    char* block = world.alloc(100);
    std::memset(block, 'x', 104);
    world.release(block);
    char* again = world.zeroed(100);
    EXPECT_EQ(again == block, version >= 241) << version;
    EXPECT_EQ(std::string(again, 104), std::string(104, '\0')) << version;
  }
}

TEST(VersionRules, FreedSmallChunksSkipTheUnsortedListFrom241On) {
  for (const uint16_t version : List{240, 241}) {
    World world(version);
    world.settings_.cache_count = 0;
    char* block = world.alloc(500);
    world.alloc(500);
    world.release(block);
    ArenaReport report;
    ASSERT_TRUE(world.heap().report_arena(0, &report));
    EXPECT_EQ(report.bins[kUnsortedBin].count, version == 240 ? 1U : 0U);
    EXPECT_EQ(report.bins[512 / 16].count, version == 240 ? 0U : 1U);
  }
}

TEST(VersionRules, ACacheIsBornLaterFrom242On) {
  World old(241);
  old.alloc(5000);
  EXPECT_TRUE(old.has_cache());
  World small(242);
  small.release(small.alloc(5000));
  EXPECT_FALSE(small.has_cache());
  small.alloc(100);
  EXPECT_TRUE(small.has_cache());
  World first_use(243);
  char* block = first_use.alloc(100);
  EXPECT_EQ(first_use.calls(), "brk ?; brk +135168");
  EXPECT_FALSE(first_use.has_cache());
  first_use.release(block);
  EXPECT_TRUE(first_use.has_cache());
  World without(243);
  without.settings_.cache_count = 0;
  without.release(without.alloc(100));
  EXPECT_FALSE(without.has_cache());
}

TEST(VersionRules, ACacheBinIs16DeepFrom243On) {
  for (const uint16_t version : List{242, 243}) {
    World world(version);
    world.release(world.alloc(2000));
    std::vector<char*> blocks;
    for (int i = 0; i < 20; ++i) blocks.push_back(world.alloc(500));
    world.alloc(10);
    for (char* block : blocks) world.release(block);
    size_t cached = 0;
    while (world.thread_.owned->entries[512 / 16 - 2] != nullptr) {
      world.alloc(500);
      ++cached;
    }
    EXPECT_EQ(cached, version == 243 ? 16U : 7U);
  }
}

TEST(VersionRules, SmallFreesMergeAtOnceFrom243On) {
  for (const uint16_t version : List{242, 243}) {
    World world(version);
    world.settings_.cache_count = 0;
    char* block = world.alloc(40);
    const size_t top = world.heap().info().top_bytes;
    world.release(block);
    EXPECT_EQ(world.heap().info().top_bytes, top + (version == 243 ? 48 : 0));
    EXPECT_EQ(world.heap().info().fast_chunks, version == 243 ? 0U : 1U);
    EXPECT_TRUE(world.heap().set_option(1, version == 243 ? 1000 : 100));
    EXPECT_EQ(world.heap().set_option(1, 161), version == 243);
  }
}

// The 800 bytes that realloc cuts off.
TEST(VersionRules, WhatTheAllocatorFreesItselfPassesTheCacheByFrom242On) {
  for (const uint16_t version : List{241, 242, 243}) {
    World world(version);
    char* block = world.alloc(1000);
    world.alloc(10);
    world.resize(block, 200);
    EXPECT_EQ(world.free_chunks(), version == 241 ? 1U : 2U) << version;
  }
}

TEST(VersionRules, LargeBlocksAreCachedFrom242OnIfAsked) {
  for (const uint16_t version : List{242, 243}) {
    World world(version);
    world.settings_.cache_request_max = 100000;
    world.alloc(100);
    char* first = world.alloc(50000);
    world.alloc(100);
    char* second = world.alloc(60000);
    world.alloc(100);
    world.release(second);
    world.release(first);
    EXPECT_EQ(world.free_chunks(), 1U);
    // The smallest that is enough, or only the very size.
    char* smaller = world.alloc(40000);
    EXPECT_EQ(smaller == first, version == 242);
    EXPECT_EQ(world.alloc(60000), second);
    world.release(smaller);
    world.release(second);
    world.heap().thread_exit(world.thread_);
    EXPECT_GT(world.free_chunks(), 1U);
  }
}

TEST(VersionRules, MappedBlocksAreCachedFrom243OnIfAsked) {
  for (const uint16_t version : List{242, 243}) {
    World world(version);
    world.settings_.cache_request_max = 1 << 20;
    world.alloc(100);
    char* block = world.alloc(303080);  // Its chunk has 303104 - 16 bytes.
    world.calls();
    world.release(block);
    EXPECT_EQ(world.calls(), version == 242 ? "munmap 303104" : "");
    if (version == 242) continue;
    EXPECT_EQ(world.alloc(303080), block);
    world.release(block);
    world.heap().thread_exit(world.thread_);
    EXPECT_EQ(world.calls(), "munmap 303104");
  }
}

TEST(VersionRules, AMappingsLastBytesAreUsedFrom243On) {
  World old(242);
  EXPECT_EQ(World::AllocatorType::usable_size(old.alloc(200000)), 200688U);
  World world(243);
  EXPECT_EQ(World::AllocatorType::usable_size(world.alloc(200000)), 200680U);
  char* block = world.alloc(1 << 20);
  world.calls();
  world.release(block);
  EXPECT_EQ(world.calls(), "munmap 1052672");
  EXPECT_EQ(world.heap().settings().mmap_threshold, 1052656U);
}

TEST(VersionRules, AnAlignedMappingNeedsNoChunkInFrontFrom243On) {
  World old(242);
  EXPECT_EQ(World::in_page(old.aligned(32, 200000)), 64U);
  World world(243);
  char* block = world.aligned(32, 200000);
  EXPECT_EQ(World::in_page(block), 32U);
  world.calls();
  world.release(block);
  EXPECT_EQ(world.calls(), "munmap 200704");
}

TEST(VersionRules, AThresholdAbove32MiBIsRefusedBefore235) {
  World old(234);
  EXPECT_FALSE(old.heap().set_option(-3, 33554433));
  EXPECT_FALSE(old.heap().set_option(-3, -1));
  EXPECT_TRUE(old.heap().settings().threshold_is_dynamic);
  EXPECT_TRUE(World(235).heap().set_option(-3, 33554433));
}

// ---- glibc.malloc.hugetlb.

constexpr size_t kHuge = 2 * 1024 * 1024;

void offer(World* world, ThpMode mode) { world->space_.huge_pages = {mode, kHuge, kHuge}; }

TEST(HugePages, TransparentOnesMakeTheBreakMoveInTheirSteps) {
  World world(241);
  world.settings_.hugetlb = 1;
  offer(&world, ThpMode::kMadvise);
  world.alloc(1);
  EXPECT_EQ(world.calls(), "brk ?; brk +2097152; madvise 2097152");
  char* block = world.alloc(5000000);
  EXPECT_EQ(world.calls(), "mmap 5001216; madvise 5001216");
  world.resize(block, 6000000);
  EXPECT_EQ(world.calls(), "mremap 5001216 6000640; madvise 6000640");
}

TEST(HugePages, OtherKernelModesChangeNothingBefore243) {
  for (const ThpMode mode : {ThpMode::kUnknown, ThpMode::kAlways, ThpMode::kNever}) {
    World world(241);
    world.settings_.hugetlb = 1;
    offer(&world, mode);
    world.alloc(1);
    EXPECT_EQ(world.calls(), "brk ?; brk +135168");
  }
}

TEST(HugePages, From243OnAlwaysMovesTheBreakWithoutAdvice) {
  World world(243);
  world.settings_.hugetlb = 1;
  offer(&world, ThpMode::kAlways);
  world.alloc(1);
  const std::string made = world.calls();
  EXPECT_EQ(made.find("madvise"), std::string::npos) << made;
  EXPECT_EQ((world.heap().known_break()) % kHuge, 0U);
}

TEST(HugePages, ThePoolServesTopsAndLargeBlocks) {
  for (const uint16_t version : List{236, 241, 243}) {
    World world(version);
    world.settings_.hugetlb = 2;
    offer(&world, ThpMode::kMadvise);
    world.alloc(1);
    EXPECT_EQ(world.calls(), "mmap 2097152") << version;
    char* block = world.alloc(3000000);
    EXPECT_EQ(world.calls(), "mmap 4194304") << version;
    world.release(block);
    EXPECT_EQ(world.calls(), "munmap 4194304") << version;
  }
}

TEST(HugePages, From239OnTheThresholdIsAPageOfThePool) {
  const auto threshold = [](uint16_t version, bool is_set) {
    World world(version);
    world.settings_.hugetlb = 2;
    if (is_set) apply_tunable(&world.settings_, "mmap_threshold", 14, "131072");
    offer(&world, ThpMode::kMadvise);
    return world.heap().settings().mmap_threshold;
  };
  EXPECT_EQ(threshold(238, false), 131072U);
  EXPECT_EQ(threshold(239, false), kHuge);
  EXPECT_EQ(threshold(239, true), 131072U);
}

TEST(HugePages, From243OnABlockOfThePoolIsResizedInItsPages) {
  World world(243);
  world.settings_.hugetlb = 2;
  offer(&world, ThpMode::kMadvise);
  char* block = world.alloc(3000000);
  world.calls();
  block = world.resize(block, 4000000);
  EXPECT_EQ(world.calls(), "");
  world.resize(block, 5000000);
  EXPECT_EQ(world.calls(), "mremap 4194304 6291456");
}

TEST(HugePages, ATrimBeforeTheFirstBlockFindsNoTop) {
  World world(241);
  world.settings_.hugetlb = 2;
  offer(&world, ThpMode::kMadvise);
  world.heap().note_break(0x605000);  // The program has asked where the break is.
  EXPECT_FALSE(world.heap().trim(0));
}

// A second thread's first heap, from a pool that has pages: its size and what it grows by.
TEST(HugePages, HeapsAreFourPagesOfThePoolBefore242) {
  for (const uint16_t version : List{236, 241, 242, 243}) {
    World world(version);
    world.settings_.hugetlb = 2;
    offer(&world, ThpMode::kMadvise);
    world.alloc(1);
    world.calls();
    Thread<Glibc> other;
    ASSERT_NE(world.heap().allocate(other, 1), nullptr);
    const std::string made = world.calls();
    const std::string reserved = version < 242 ? "mmap 16777216" : "mmap 134217728";
    EXPECT_EQ(made.substr(0, reserved.size()), reserved) << version;
    EXPECT_NE(made.find("mprotect 2097152"), std::string::npos) << made;
    std::string grown;
    while (grown.empty()) {
      world.heap().allocate(other, 100000);
      grown = world.calls();
    }
    EXPECT_EQ(grown, "mprotect 2097152") << version;
    EXPECT_TRUE(world.heap().arena_is_valid(&other));
  }
}

TEST(HugePages, From243OnHeapsGrowByTransparentOnes) {
  const auto first = [](uint16_t version) {
    World world(version);
    world.settings_.hugetlb = 1;
    offer(&world, ThpMode::kAlways);
    world.alloc(1);
    Thread<Glibc> other;
    world.heap().allocate(other, 1);
    const std::string made = world.calls();
    return made.substr(made.rfind(';') + 2);
  };
  EXPECT_EQ(first(242), "mprotect 135168");
  EXPECT_EQ(first(243), "mprotect 2097152");
}

TEST(HugePages, AreReadFromTheSystem) {
  const struct HugePages pages = read_huge_pages(0);
  const struct HugePages odd = read_huge_pages(12345);
  EXPECT_EQ(odd.bytes, 0U);
  EXPECT_EQ(odd.thp_bytes, pages.thp_bytes);
  EXPECT_EQ(pages.bytes & (pages.bytes - 1), 0U);
  EXPECT_EQ(read_huge_pages(pages.bytes).bytes, pages.bytes);  // 0 asks for the default again.
}

// ---- All versions, both layouts: contents and invariants.

template <class Layout>
void run_at_random(uint16_t version, uint64_t seed) {
  class Heap : public VersionsOf<Layout> {
   public:
    void TestBody() override {}
    void run(uint16_t glibc, uint64_t number) {
      this->be(glibc);
      if (number % 2 == 1) this->settings_.cache_request_max = 200000;
      if (!glibc_rules(glibc).has_large_cache) this->settings_.cache_request_max = kCacheRequestMax;
      std::mt19937_64 random(number);
      std::vector<std::pair<char*, size_t>> live;
      for (int i = 1; i <= 2500; ++i) {
        const size_t size = random() % (random() % 30 == 0 ? 300000 : 1500);
        if (live.size() < 200 && random() % 2 == 0) {
          char* block = random() % 5 == 0   ? this->aligned(size_t{1} << (random() % 13), size)
                        : random() % 4 == 0 ? this->zeroed(size)
                                            : this->alloc(size);
          std::memset(block, static_cast<int>(size), this->heap().usable_size(block));
          live.emplace_back(block, size);
        } else if (!live.empty()) {
          std::swap(live[random() % live.size()], live.back());
          auto& [block, old] = live.back();
          for (size_t at = 0; at < old; ++at) ASSERT_EQ(block[at], static_cast<char>(old));
          if (random() % 4 == 0) {
            block = this->resize(block, size + 1);
            const size_t kept = old < size + 1 ? old : size + 1;
            for (size_t at = 0; at < kept; ++at) ASSERT_EQ(block[at], static_cast<char>(old));
            old = size + 1;
            std::memset(block, static_cast<int>(old), this->heap().usable_size(block));
          } else {
            this->release(block);
            live.pop_back();
          }
        }
        if (i % 500 == 0) this->expect_valid();
      }
      this->heap().thread_exit(this->thread_);
      this->expect_valid();
    }
  };
  Heap().run(version, seed);
}

TEST(VersionsAtRandom, KeepContentsAndInvariants) {
  for (uint16_t version = kGlibcOldest; version <= kGlibcNewest; ++version) {
    SCOPED_TRACE(version);
    run_at_random<Glibc>(version, 2U * version);
    run_at_random<Glibc>(version, 2U * version + 1);
    run_at_random<Header16>(version, 2U * version);
    run_at_random<Header16>(version, 2U * version + 1);
  }
}

}  // namespace
}  // namespace heapledger::heap
