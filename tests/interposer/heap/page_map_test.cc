// SPDX-License-Identifier: Apache-2.0
//
// The page map: states per page, leaves on demand, exactly one winner of a take.
#include "interposer/heap/page_map.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <vector>

#include "tests/interposer/heap/simulated_os.h"

namespace heapledger::heap {
namespace {

TEST(PageMapTest, EachPageHasItsOwnState) {
  SimulatedSpace space;
  SimulatedOs os{&space};
  auto map = std::make_unique<PageMap<SimulatedOs>>();
  EXPECT_EQ(map->lookup(0x7000'1234'5000), PageState::kForeign);
  EXPECT_TRUE(map->set(os, 0x7000'1234'5010, PageState::kMapped));
  EXPECT_TRUE(map->set_range(os, 0x7000'1234'6000, 0x7000'1234'8000, PageState::kArena));
  EXPECT_EQ(map->lookup(0x7000'1234'4fff), PageState::kForeign);
  EXPECT_EQ(map->lookup(0x7000'1234'5000), PageState::kMapped);
  EXPECT_EQ(map->lookup(0x7000'1234'5fff), PageState::kMapped);
  EXPECT_EQ(map->lookup(0x7000'1234'6000), PageState::kArena);
  EXPECT_EQ(map->lookup(0x7000'1234'7fff), PageState::kArena);
  EXPECT_EQ(map->lookup(0x7000'1234'8000), PageState::kForeign);
  EXPECT_EQ(map->lookup(UINTPTR_MAX), PageState::kForeign);
  EXPECT_FALSE(map->set(os, UINTPTR_MAX, PageState::kMapped));
  EXPECT_EQ(space.take_text(), "");
}

// Far-apart addresses need leaves of their own: the object's own eight first, then mappings, whose
// refusal is reported.
TEST(PageMapTest, LeavesAreMappedOnlyWhenTheOwnOnesAreUsed) {
  SimulatedSpace space;
  SimulatedOs os{&space};
  auto map = std::make_unique<PageMap<SimulatedOs>>();
  for (uintptr_t i = 0; i < 8; ++i) EXPECT_TRUE(map->set(os, i << 30, PageState::kArena));
  EXPECT_EQ(space.take_text(), "");
  EXPECT_TRUE(map->set(os, uintptr_t{8} << 30, PageState::kArena));
  EXPECT_EQ(space.take_calls().at(0).cause, Cause::kRegistry);
  space.set_map_fails(true);
  EXPECT_FALSE(map->set(os, uintptr_t{9} << 30, PageState::kArena));
  for (uintptr_t i = 0; i < 9; ++i) EXPECT_EQ(map->lookup(i << 30), PageState::kArena);
}

TEST(PageMapTest, OneOfSeveralTakersWins) {
  SimulatedSpace space;
  SimulatedOs os{&space};
  auto map = std::make_unique<PageMap<SimulatedOs>>();
  constexpr int kPages = 2000;
  for (uintptr_t i = 0; i < kPages; ++i) map->set(os, i * 4096, PageState::kMapped);
  std::vector<int> taken(4, 0);
  std::vector<std::thread> threads;
  for (int& count : taken) {
    threads.emplace_back([&map, &count] {
      for (uintptr_t i = 0; i < kPages; ++i) count += map->take_mapped(i * 4096) ? 1 : 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(taken[0] + taken[1] + taken[2] + taken[3], kPages);
}

}  // namespace
}  // namespace heapledger::heap
