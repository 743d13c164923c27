// SPDX-License-Identifier: Apache-2.0
//
// Where the parameters come from: each source, its parsing rules, and who wins.
#include "interposer/heap/settings.h"

#include <gtest/gtest.h>

#include <vector>

namespace heapledger::heap {
namespace {

Settings from(std::vector<const char*> entries) {
  entries.push_back(nullptr);
  Settings settings;
  apply_environment(&settings, entries.data());
  return settings;
}

TEST(SettingsTest, DefaultsAreGlibcs) {
  const Settings s = from({"PATH=/bin"});
  EXPECT_EQ(s.mmap_threshold, 131072U);
  EXPECT_EQ(s.trim_threshold, 131072U);
  EXPECT_EQ(s.top_pad, 131072U);
  EXPECT_EQ(s.mmap_max, 65536);
  EXPECT_TRUE(s.threshold_is_dynamic);
}

TEST(SettingsTest, VariablesAreReadByGlibcsRules) {
  const Settings s = from({"MALLOC_TOP_PAD_=64K", "MALLOC_TRIM_THRESHOLD_=-1",
                           "MALLOC_MMAP_THRESHOLD_=0x10000", "MALLOC_MMAP_MAX_= 12",
                           "MALLOC_ARENA_MAX=0", "MALLOC_ARENA_TEST=3", "MALLOC_PERTURB_=256"});
  EXPECT_EQ(s.top_pad, 64U);  // Parsing stops at the K.
  EXPECT_EQ(s.trim_threshold, SIZE_MAX);
  EXPECT_EQ(s.mmap_threshold, 65536U);
  EXPECT_EQ(s.mmap_max, 12);
  EXPECT_EQ(s.arena_max, 0U);  // Below its range: ignored.
  EXPECT_EQ(s.arena_test, 3U);
  EXPECT_EQ(s.perturb, 0U);  // Above its range: ignored.
  EXPECT_FALSE(s.threshold_is_dynamic);
}

TEST(SettingsTest, EachOfTheFourEndsTheDynamicThresholdAndOthersDoNot) {
  for (const char* entry :
       {"MALLOC_TOP_PAD_=131072", "MALLOC_TRIM_THRESHOLD_=131072", "MALLOC_MMAP_THRESHOLD_=131072",
        "MALLOC_MMAP_MAX_=65536", "GLIBC_TUNABLES=glibc.malloc.top_pad=131072",
        "HEAPLEDGER_MMAP_THRESHOLD=128K", "HEAPLEDGER_TRIM_THRESHOLD=1M", "HEAPLEDGER_TOP_PAD=0",
        "HEAPLEDGER_MMAP_MAX=5"}) {
    EXPECT_FALSE(from({entry}).threshold_is_dynamic) << entry;
  }
  for (const char* entry : {"MALLOC_ARENA_MAX=2", "MALLOC_PERTURB_=3", "HEAPLEDGER_ARENA_MAX=2",
                            "GLIBC_TUNABLES=glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
                            "MALLOC_MMAP_MAX_=-1"}) {
    EXPECT_TRUE(from({entry}).threshold_is_dynamic) << entry;
  }
}

TEST(SettingsTest, TunablesBeatVariablesAndTheLastOneWins) {
  const Settings s =
      from({"GLIBC_TUNABLES=glibc.malloc.top_pad=1:glibc.malloc.top_pad=2:glibc.rtld.nns=4:junk:"
            "glibc.malloc.tcache_max=100:glibc.malloc.mxfast=64",
            "MALLOC_TOP_PAD_=7", "MALLOC_TOP_PAD_=8"});
  EXPECT_EQ(s.top_pad, 2U);
  EXPECT_EQ(s.cache_request_max, 100U);
  EXPECT_EQ(s.fast_chunk_max, 64U);
  EXPECT_EQ(from({"MALLOC_TOP_PAD_=7", "MALLOC_TOP_PAD_=8"}).top_pad, 7U);
}

TEST(SettingsTest, TunablesOutOfRangeAreIgnored) {
  const Settings s =
      from({"GLIBC_TUNABLES=glibc.malloc.tcache_max=1033:glibc.malloc.tcache_count=65536:"
            "glibc.malloc.mxfast=161:glibc.malloc.top_padding=5:glibc.malloc.top_pad"});
  EXPECT_EQ(s.cache_request_max, kCacheRequestMax);
  EXPECT_EQ(s.cache_count, 7U);
  EXPECT_EQ(s.fast_chunk_max, 128U);
  EXPECT_EQ(s.top_pad, 131072U);
}

TEST(SettingsTest, OurOptionsTakeSuffixesAndWin) {
  const Settings s =
      from({"HEAPLEDGER_MMAP_THRESHOLD=32M", "HEAPLEDGER_TRIM_THRESHOLD=2G",
            "HEAPLEDGER_TOP_PAD=64k", "HEAPLEDGER_TCACHE_COUNT=3", "HEAPLEDGER_ARENA_MAX=2",
            "MALLOC_TOP_PAD_=1", "GLIBC_TUNABLES=glibc.malloc.mmap_threshold=9"});
  EXPECT_EQ(s.mmap_threshold, 32U << 20);
  EXPECT_EQ(s.trim_threshold, size_t{2} << 30);
  EXPECT_EQ(s.top_pad, 65536U);
  EXPECT_EQ(s.cache_count, 3U);
  EXPECT_EQ(s.arena_max, 2U);
}

TEST(SettingsTest, TheTwoEndsOfTheScaleHaveNames) {
  EXPECT_EQ(from({"HEAPLEDGER_MMAP_THRESHOLD=brk-only"}).mmap_max, 0);
  EXPECT_EQ(from({"HEAPLEDGER_MMAP_THRESHOLD=mmap-only"}).mmap_threshold, 0U);
}

TEST(SettingsTest, ABadOptionIsIgnoredWithALine) {
  ::testing::internal::CaptureStderr();
  const Settings s = from({"HEAPLEDGER_MMAP_THRESHOLD=lots", "HEAPLEDGER_TOP_PAD="});
  EXPECT_EQ(::testing::internal::GetCapturedStderr(),
            "heapledger: HEAPLEDGER_MMAP_THRESHOLD: not a size, brk-only or mmap-only: ignored\n");
  EXPECT_EQ(s.mmap_threshold, 131072U);
  EXPECT_TRUE(s.threshold_is_dynamic);
}

}  // namespace
}  // namespace heapledger::heap
