// SPDX-License-Identifier: Apache-2.0
//
// Where the parameters come from: each source, its parsing rules, and who wins.
#include "interposer/heap/settings.h"

#include <gtest/gtest.h>

#include <vector>

namespace heapledger::heap {
namespace {

Settings from(std::vector<const char*> entries, uint16_t version = kGlibcDefault) {
  entries.push_back(nullptr);
  Settings settings = default_settings(version);
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

// ---- What newer versions read differently; each value was tried on Debian's 2.41 with ld.so's
// list of tunables.

TEST(SettingsTest, AVersionIsReadFromLibcsText) {
  EXPECT_EQ(parse_glibc_version("2.36"), 236);
  EXPECT_EQ(parse_glibc_version("2.41.9000"), 241);
  for (const char* text : {"", "2.", "3.1", "2.x", "2.36-9", "2:36"}) {
    EXPECT_EQ(parse_glibc_version(text), kGlibcDefault) << text;
  }
  EXPECT_EQ(running_glibc_version(), __GLIBC__ * 100 + __GLIBC_MINOR__);
}

TEST(SettingsTest, DefaultsAreThoseOfTheVersion) {
  EXPECT_EQ(from({}, 242).cache_count, 7U);
  EXPECT_EQ(from({}, 242).fast_chunk_max, 128U);
  EXPECT_EQ(from({}, 243).cache_count, 16U);
  EXPECT_EQ(from({}, 243).fast_chunk_max, 0U);
}

TEST(SettingsTest, From239OnJunkBehindANumberVoidsIt) {
  for (const char* entry : {"GLIBC_TUNABLES=glibc.malloc.top_pad=64K", "MALLOC_TOP_PAD_=64K",
                            "MALLOC_TOP_PAD_=64:", "MALLOC_TOP_PAD_=64 "}) {
    EXPECT_EQ(from({entry}, 238).top_pad, 64U) << entry;
    EXPECT_EQ(from({entry}, 239).top_pad, 131072U) << entry;
    EXPECT_TRUE(from({entry}, 239).threshold_is_dynamic) << entry;
  }
  EXPECT_EQ(from({"MALLOC_TOP_PAD_= 0x40"}, 243).top_pad, 64U);
  EXPECT_EQ(from({"MALLOC_TOP_PAD_="}, 243).top_pad, 0U);
  EXPECT_EQ(from({"MALLOC_TOP_PAD_=99999999999999999999"}, 238).top_pad, SIZE_MAX);
  EXPECT_EQ(from({"MALLOC_TOP_PAD_=99999999999999999999"}, 239).top_pad, 131072U);
}

TEST(SettingsTest, From239OnAnIllFormedStringSaysNothing) {
  const char* bare = "GLIBC_TUNABLES=glibc.malloc.top_pad=64:glibc.malloc.mmap_max";
  const char* twice = "GLIBC_TUNABLES=glibc.malloc.top_pad=64:glibc.malloc.mmap_max=5=6";
  for (const char* entry : {bare, twice}) {
    EXPECT_EQ(from({entry}, 238).top_pad, 64U) << entry;
    EXPECT_EQ(from({entry}, 239).top_pad, 131072U) << entry;
  }
  const char* middle = "GLIBC_TUNABLES=glibc.malloc.mmap_max:glibc.malloc.top_pad=64";
  EXPECT_EQ(from({middle}, 239).top_pad, 64U);
}

TEST(SettingsTest, From239OnOnlyTheLastOfEqualNamesCounts) {
  const char* entry = "GLIBC_TUNABLES=glibc.malloc.arena_max=5:glibc.malloc.arena_max=0";
  EXPECT_EQ(from({entry}, 238).arena_max, 5U);  // The second is below the range.
  EXPECT_EQ(from({entry}, 239).arena_max, 0U);
}

TEST(SettingsTest, From240OnTheLastAliasCounts) {
  EXPECT_EQ(from({"MALLOC_ARENA_MAX=0", "MALLOC_ARENA_MAX=7", "MALLOC_ARENA_MAX=8"}, 239).arena_max,
            7U);
  EXPECT_EQ(from({"MALLOC_ARENA_MAX=7", "MALLOC_ARENA_MAX=8"}, 240).arena_max, 8U);
  EXPECT_EQ(from({"MALLOC_ARENA_MAX=7", "MALLOC_ARENA_MAX=0"}, 240).arena_max, 0U);
}

TEST(SettingsTest, From240OnSecurityCanBeAskedFor) {
  const char* entry = "GLIBC_TUNABLES=glibc.malloc.top_pad=64:glibc.rtld.enable_secure=1";
  EXPECT_EQ(from({entry, "MALLOC_ARENA_MAX=7"}, 239).top_pad, 64U);
  EXPECT_EQ(from({entry, "MALLOC_ARENA_MAX=7"}, 240).top_pad, 131072U);
  EXPECT_EQ(from({entry, "MALLOC_ARENA_MAX=7"}, 240).arena_max, 0U);
  EXPECT_EQ(
      from({"GLIBC_TUNABLES=glibc.malloc.top_pad=64:glibc.rtld.enable_secure=2"}, 240).top_pad,
      64U);
}

TEST(SettingsTest, NarrowTunablesTakeTheLowHalfFrom239On) {
  EXPECT_EQ(from({"MALLOC_MMAP_MAX_=4294967301"}, 238).mmap_max, 65536);
  EXPECT_EQ(from({"MALLOC_MMAP_MAX_=4294967301"}, 239).mmap_max, 5);
  EXPECT_EQ(from({"MALLOC_MMAP_MAX_=4294967295"}, 239).mmap_max, 65536);  // -1.
}

TEST(SettingsTest, ThresholdsAbove32MiBWereRefusedBefore235) {
  EXPECT_EQ(from({"MALLOC_MMAP_THRESHOLD_=33554433"}, 234).mmap_threshold, 131072U);
  EXPECT_TRUE(from({"MALLOC_MMAP_THRESHOLD_=33554433"}, 234).threshold_is_dynamic);
  EXPECT_EQ(from({"MALLOC_MMAP_THRESHOLD_=33554432"}, 234).mmap_threshold, 33554432U);
  EXPECT_EQ(from({"MALLOC_MMAP_THRESHOLD_=33554433"}, 235).mmap_threshold, 33554433U);
}

TEST(SettingsTest, LargeCachesFastbinsAndHugePagesComeAndGo) {
  const char* large = "GLIBC_TUNABLES=glibc.malloc.tcache_max=4194280";
  EXPECT_EQ(from({large}, 241).cache_request_max, kCacheRequestMax);
  EXPECT_EQ(from({large}, 242).cache_request_max, 4194280U);
  EXPECT_EQ(from({"GLIBC_TUNABLES=glibc.malloc.tcache_max=4194281"}, 242).cache_request_max,
            kCacheRequestMax);
  EXPECT_EQ(from({"GLIBC_TUNABLES=glibc.malloc.mxfast=64"}, 242).fast_chunk_max, 64U);
  EXPECT_EQ(from({"GLIBC_TUNABLES=glibc.malloc.mxfast=64"}, 243).fast_chunk_max, 0U);
  EXPECT_EQ(from({"GLIBC_TUNABLES=glibc.malloc.hugetlb=2"}, 234).hugetlb, 0U);
  EXPECT_EQ(from({"GLIBC_TUNABLES=glibc.malloc.hugetlb=2"}, 235).hugetlb, 2U);
}

}  // namespace
}  // namespace heapledger::heap
