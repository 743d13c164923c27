// SPDX-License-Identifier: Apache-2.0
//
// Under glibc's own layout every number is glibc's: the traces checked on 2.36 by strace,
// unadapted, and a random run that shows the layout's structure sound.
#include <cstring>
#include <random>
#include <vector>

#include "tests/interposer/heap/heap_fixture.h"

namespace heapledger::heap {
namespace {

class GlibcLayout : public HeapTestOf<Glibc> {};

TEST_F(GlibcLayout, UsableSizesAreGlibcs) {
  EXPECT_EQ(AllocatorType::usable_size(alloc(0)), 24U);
  EXPECT_EQ(AllocatorType::usable_size(alloc(24)), 24U);
  EXPECT_EQ(AllocatorType::usable_size(alloc(25)), 40U);
  EXPECT_EQ(AllocatorType::usable_size(alloc(41)), 56U);
  EXPECT_EQ(AllocatorType::usable_size(alloc(200000)), 200688U);
}

// The numbers of the blocks that made the break of a C program grow, on glibc 2.36.
TEST_F(GlibcLayout, AStreamOfSmallRequestsGrowsAtGlibcsBlocks) {
  const std::vector<int> glibcs = {134,  268,  402,  536,  670,  804,  938,
                                   1073, 1207, 1341, 1475, 1609, 1743, 1877};
  std::vector<int> ours;
  alloc(1);
  calls();
  for (int i = 1; i <= 2000; ++i) {
    alloc(1000);
    const std::string made = calls();
    if (made.empty()) continue;
    EXPECT_EQ(made, "brk +135168");
    ours.push_back(i);
  }
  EXPECT_EQ(ours, glibcs);
}

TEST_F(GlibcLayout, TheTopIsWhatStraceShows) {
  alloc(1);
  EXPECT_EQ(calls(), "brk ?; brk +135168");
  EXPECT_EQ(heap().info().top_bytes, 134480U);  // 135168 - 656 - 32.
}

// memalign of 70000 at 64 KiB on that top; then three blocks of 60000, freed in reverse: one step
// of the break down each.
TEST_F(GlibcLayout, FreesInReverseEndWhereTheyBegan) {
  alloc(1);
  calls();
  release(aligned(65536, 70000));
  EXPECT_EQ(calls(), "mmap 139264; munmap 139264");
  heap().set_option(-3, 131072);  // Back from what that free raised.
  heap().set_option(-1, 131072);
  std::vector<char*> blocks;
  for (int i = 0; i < 3; ++i) blocks.push_back(alloc(60000));
  calls();
  for (int i = 2; i >= 0; --i) {
    release(blocks[static_cast<size_t>(i)]);
    const std::string made = calls();
    EXPECT_EQ(made.substr(0, 5), "brk -") << made;
    EXPECT_EQ(made.find(';'), std::string::npos) << made;
  }
  EXPECT_EQ(heap().info().top_bytes, 134480U);
}

TEST_F(GlibcLayout, FallbackMappingsAreThoseOf236) {
  alloc(1);
  calls();
  space_.set_wall(true);
  std::vector<std::string> made;
  for (int i = 0; i < 14; ++i) {
    alloc(100000);
    const std::string text = calls();
    if (!text.empty()) made.push_back(text);
  }
  ASSERT_GE(made.size(), 2U);
  EXPECT_NE(made[0].find("mmap 1048576"), std::string::npos) << made[0];
  EXPECT_EQ(made[1], "brk +233472 refused; mmap 233472");
}

// What strace shows of glibc at the ends of the range of sizes.
TEST_F(GlibcLayout, AbsurdSizesAreAskedForWhereGlibcAsks) {
  alloc(5000);
  calls();
  EXPECT_EQ(aligned(257, size_t{1} << 62), nullptr);
  EXPECT_EQ(calls().substr(0, 5), "mmap ");
  EXPECT_EQ(aligned(size_t{1} << 62, PTRDIFF_MAX), nullptr);
  EXPECT_EQ(calls(), "");
}

// glibc's arithmetic wraps there; strace shows the break go up.
TEST_F(GlibcLayout, TrimOfTheLeastTopAddsToIt) {
  settings_.top_pad = 0;
  settings_.threshold_is_dynamic = false;
  alloc(3400);
  EXPECT_EQ(calls(), "brk ?; brk +4096");
  EXPECT_EQ(heap().info().top_bytes, 32U);
  EXPECT_TRUE(heap().trim(0));
  EXPECT_EQ(calls(), "brk +4096");
  EXPECT_EQ(heap().info().top_bytes, 32U + 4096U);
}

TEST_F(GlibcLayout, TrimBeforeTheFirstBlockAsksWhereTheBreakIs) {
  EXPECT_FALSE(heap().trim(0));
  EXPECT_EQ(calls(), "brk ?");
}

// realloc in place must not touch the program's bytes: under this layout there is no word of ours
// among them.
TEST_F(GlibcLayout, ReallocKeepsEveryByte) {
  char* block = alloc(300000);
  std::memset(block, 'r', 300000);
  block = resize(block, 300008);
  block = resize(block, 900000);
  EXPECT_EQ(std::string(block, 300000), std::string(300000, 'r'));
  char* small = alloc(1000);
  std::memset(small, 's', 1000);
  small = resize(small, 900);
  small = resize(small, 1200);
  EXPECT_EQ(std::string(small, 900), std::string(900, 's'));
}

TEST_F(GlibcLayout, RandomCallsKeepContentsAndInvariants) {
  std::mt19937_64 random(20260);
  std::vector<std::pair<char*, size_t>> live;
  for (int i = 1; i <= 30000; ++i) {
    if (live.size() < 400 && random() % 2 == 0) {
      const size_t size = random() % (random() % 8 == 0 ? 150000 : 1500);
      char* block = random() % 5 == 0 ? aligned(size_t{1} << (random() % 10), size) : alloc(size);
      std::memset(block, static_cast<int>(size), AllocatorType::usable_size(block));
      live.emplace_back(block, size);
    } else if (!live.empty()) {
      std::swap(live[random() % live.size()], live.back());
      const auto [block, size] = live.back();
      for (size_t at = 0; at < size; ++at) ASSERT_EQ(block[at], static_cast<char>(size));
      release(block);
      live.pop_back();
    }
    if (i % 1000 == 0) expect_valid();
  }
}

}  // namespace
}  // namespace heapledger::heap
