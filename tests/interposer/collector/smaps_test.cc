// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/smaps.h"

#include <gtest/gtest.h>

namespace heapledger::collector {
namespace {

// Cut from a real process; the values of one mapping in full, of the others as far as they matter.
constexpr const char* kSmaps =
    R"(55d000000000-55d000002000 r-xp 00001000 fe:00 1201    /usr/bin/my program
Size:                  8 kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
Rss:                   8 kB
Pss:                   2 kB
Shared_Clean:          8 kB
Private_Dirty:         0 kB
Anonymous:             0 kB
AnonHugePages:         0 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me
55d000002000-55d000003000 r--p 00003000 fe:00 1201    /usr/bin/my program
Rss:                   4 kB
55d000003000-55d000004000 rw-p 00004000 fe:00 1201    /usr/bin/my program
Rss:                   4 kB
Private_Dirty:         4 kB
Anonymous:             4 kB
55d000004000-55d000010000 rw-p 00000000 00:00 0
Rss:                   4 kB
55d001000000-55d001400000 rw-p 00000000 00:00 0       [heap]
Rss:                4096 kB
Pss:                4096 kB
Private_Dirty:      4096 kB
Anonymous:          4096 kB
AnonHugePages:      2048 kB
Swap:                 12 kB
7f0000000000-7f0000001000 ---p 00000000 00:00 0
Rss:                   0 kB
7f0000001000-7f0000801000 rw-p 00000000 00:00 0
Rss:                  16 kB
7f0001000000-7f0002000000 rw-p 00000000 00:00 0
Rss:                  64 kB
7f0003000000-7f0103000000 rw-s 00000000 00:01 7       /memfd:heapledger (deleted)
Rss:                  32 kB
7f0200000000-7f0200010000 rw-s 00000000 00:01 8       /dev/shm/x
Rss:                   0 kB
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0       [stack]
Rss:                  12 kB
7ffd00100000-7ffd00102000 r-xp 00000000 00:00 0       [vdso]
Rss:                   4 kB
)";

TEST(Smaps, EveryMappingGetsItsKind) {
  // Goal: the kinds of table `region`. Method: one mapping of each.
  std::vector<std::string> kinds;
  for (const MemoryRegion& region : parse_smaps(kSmaps)) {
    kinds.emplace_back(region_kind_name(region.kind));
  }
  EXPECT_EQ(kinds, (std::vector<std::string>{"text", "file", "data", "bss", "heap", "anonymous",
                                             "thread stack", "anonymous", "recorder", "shared",
                                             "stack", "vdso"}));
}

TEST(Smaps, ValuesAreBytesAndNamesMayHaveSpaces) {
  // Goal: the numbers are the kernel's. Method: compare two mappings field by field.
  const auto regions = parse_smaps(kSmaps);
  ASSERT_EQ(regions.size(), 12U);
  EXPECT_EQ(regions[0].name, "/usr/bin/my program");
  EXPECT_EQ(regions[0].permissions, "r-xp");
  EXPECT_EQ(regions[0].pss_bytes, 2048U);
  const MemoryRegion& heap = regions[4];
  EXPECT_EQ(heap.start, 0x55d001000000U);
  EXPECT_EQ(heap.size_bytes(), 4U << 20);
  EXPECT_EQ(heap.rss_bytes, 4096U * 1024);
  EXPECT_EQ(heap.swap_bytes, 12U * 1024);
  EXPECT_EQ(heap.private_dirty_bytes, 4096U * 1024);
  EXPECT_EQ(heap.anonymous_bytes, 4096U * 1024);
  EXPECT_EQ(heap.huge_bytes, 2048U * 1024);
  EXPECT_TRUE(heap.may_be_heap());
  EXPECT_TRUE(regions[7].may_be_heap());
  EXPECT_FALSE(regions[5].may_be_heap());
  EXPECT_FALSE(regions[8].may_be_heap());
  EXPECT_EQ(regions[8].inode, 7U);
}

TEST(Smaps, DamagedLinesAreSkipped) {
  // Goal: whatever a kernel writes, what can be read is read. Method: nonsense between good lines.
  const auto regions = parse_smaps(
      "Rss: 4 kB\nzzz\n\n1000-800 rw-p 0 0 0\nRss: 8 kB\n2000-3000 rw-p 0 0 0\nRss: x\nRss: 4 kB");
  ASSERT_EQ(regions.size(), 1U);
  EXPECT_EQ(regions[0].rss_bytes, 4096U);
}

}  // namespace
}  // namespace heapledger::collector
