// SPDX-License-Identifier: Apache-2.0
// What a replay keeps of moments it has passed, against whole copies made when it was there.
#include <gtest/gtest.h>

#include <array>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "analyzer/replay/freed_chunks.h"
#include "analyzer/replay/live_set.h"
#include "analyzer/replay/past_maps.h"

namespace heapledger::analyzer {
namespace {

constexpr uint32_t kSeed = 20261123;

using Blocks = std::map<uint64_t, uint64_t>;  // Id -> address.

Blocks live_now(const LiveSet& set) {
  Blocks blocks;
  set.for_each([&](const Block& block) { blocks[block.id] = block.address; });
  return blocks;
}

Blocks live_at(const LiveSet& set, size_t moment) {
  Blocks blocks;
  set.for_each_at(moment, [&](const Block& block) { blocks[block.id] = block.address; });
  return blocks;
}

// Goal: the set is a map of its blocks, now and at kept moments. Method: random inserts and takes,
// by right and wrong addresses, of blocks that may claim one address; moments kept, moved and
// forgotten; beside std::map and copies of it.
TEST(LiveSet, IsAMapOfItsBlocksNowAndAtKeptMoments) {
  std::mt19937 random(kSeed);
  LiveSet set;
  Blocks model;
  std::array<std::optional<Blocks>, kKeptMoments> kept;
  uint64_t bytes = 0;
  for (uint64_t step = 1; step <= 60000; ++step) {
    if (random() % 9 < 5 || model.empty()) {
      Block block;
      block.id = step;
      block.address = random() % 50 == 0 ? 0 : 0x10000 + random() % 3000 * 32;
      block.size = block.usable = 24;
      block.step = step;
      ASSERT_NE(LiveSet::kNone, set.insert(block));
      if (block.address != 0) {
        ASSERT_EQ(LiveSet::kNone, set.insert(block)) << "it is there already";
      }
      model[block.id] = block.address;
      bytes += block.size;
    } else {
      const auto from = model.lower_bound(random() % step);
      const auto victim = from == model.end() ? model.begin() : from;
      // From the middle on some come with a wrong address.
      const bool wrong = step > 30000 && random() % 100 == 0;
      const uint32_t place = set.take(victim->first, wrong ? victim->second + 16 : victim->second);
      ASSERT_NE(LiveSet::kNone, place);
      const Block block = set.at(place);
      ASSERT_EQ(victim->first, block.id);
      ASSERT_EQ(victim->second, block.address);
      ASSERT_EQ(LiveSet::kNone, set.take(step + 1, victim->second)) << "nobody has this id";
      model.erase(victim);
      bytes -= block.size;
    }
    const size_t moment = random() % kKeptMoments;
    if (random() % 40 == 0) {
      set.keep(moment, step);
      kept[moment] = model;
    } else if (random() % 200 == 0 && kept[moment]) {
      const size_t to = (moment + 1) % kKeptMoments;
      set.move(moment, to);
      kept[to] = std::exchange(kept[moment], std::nullopt);
    } else if (random() % 500 == 0) {
      set.forget(moment);
      kept[moment].reset();
    }
    if (step % 500 != 0) continue;
    ASSERT_EQ(model.size(), set.blocks());
    ASSERT_EQ(bytes, set.requested_bytes());
    ASSERT_EQ(model, live_now(set));
    for (size_t i = 0; i < kKeptMoments; ++i) {
      if (!kept[i]) continue;
      ASSERT_EQ(*kept[i], live_at(set, i)) << "moment " << i << ", step " << step;
    }
  }
}

using Freed = std::multiset<std::tuple<uint64_t, uint64_t, uint32_t, uint32_t, bool>>;

Freed all_of(const FreedChunks& chunks) {
  Freed all;
  chunks.for_each([&](const FreedChunk& chunk) {
    all.emplace(chunk.address, chunk.bytes, chunk.thread, chunk.stack, chunk.in_fastbin);
  });
  return all;
}

// Goal: freed chunks of a kept moment are those that were there then. Method: threads that free and
// allocate at random and end, merges of fastbins; beside whole copies. First moments that are near,
// then some that lie further back than changes are noted.
TEST(FreedChunks, AreKnownAtKeptMoments) {
  std::mt19937 random(kSeed);
  FreedChunks chunks({7, 1040, 128});
  std::vector<Block> live;
  std::vector<Block> freed;
  std::array<std::optional<Freed>, kKeptMoments> kept;
  uint64_t next = 0x1000;
  for (int step = 0; step < 400000; ++step) {
    const auto thread = static_cast<uint32_t>(1 + random() % 3);
    const auto place = [&] {
      return ChunkPlace{thread == 3 ? 1u : 0u, false, random() % 50 == 0 ? 100000u : 0u};
    };
    if (random() % 2 == 0 || live.empty()) {
      Block block;
      if (!freed.empty() && random() % 3 != 0) {
        block = freed.back();
        freed.pop_back();
      } else {
        block.address = next;
        block.size = block.usable = 16 + 16 * (random() % 10);
        next += block.usable + 16;
      }
      block.stack = static_cast<uint32_t>(random() % 100);
      live.push_back(block);
      chunks.allocate(thread, block, place);
    } else {
      std::swap(live[random() % live.size()], live.back());
      freed.push_back(live.back());
      live.pop_back();
      chunks.free(thread, freed.back(), place);
    }
    if (random() % 500 == 0) chunks.end_thread(thread);
    const int often = step < 20000 ? 1 : 1000;
    if (random() % (100 * often) == 0) {
      const size_t moment = random() % kKeptMoments;
      chunks.keep(moment);
      kept[moment] = all_of(chunks);
    }
    if (random() % (300 * often) == 0) {
      const size_t moment = random() % kKeptMoments;
      const size_t to = (moment + 1) % kKeptMoments;
      if (kept[moment]) {
        chunks.move(moment, to);
        kept[to] = std::exchange(kept[moment], std::nullopt);
      }
    }
    if (step % (100 * often) != 0) continue;
    for (size_t i = 0; i < kKeptMoments; ++i) {
      if (!kept[i]) continue;
      ASSERT_EQ(*kept[i], all_of(chunks.at(i))) << "moment " << i << ", step " << step;
    }
  }
}

struct MapPicture {
  uint64_t held = 0, resident = 0, break_end = 0;
  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  std::vector<uint64_t> pages;
  friend bool operator==(const MapPicture&, const MapPicture&) = default;
};

MapPicture picture_of(const MemoryMap& map) {
  MapPicture picture{map.held_bytes(), map.held_resident_bytes(), map.break_end(), {}, {}};
  for (const auto& [start, range] : map.held().ranges()) {
    picture.ranges.emplace_back(start, range.end);
    map.resident().for_each(start, range.end,
                            [&](uint64_t page) { picture.pages.push_back(page); });
  }
  return picture;
}

// Goal: the map of a kept moment is the map as it was then. Method: a break that rises and falls
// and pages touched at random; beside whole pictures; moments near and far.
TEST(PastMaps, AreTheMapsOfKeptMoments) {
  std::mt19937 random(kSeed);
  constexpr uint64_t kStart = 0x100000;
  MemoryMap map(kStart);
  PastMaps past;
  std::array<std::optional<MapPicture>, kKeptMoments> kept;
  uint64_t pages = 0;
  const auto change = [&](auto made) {
    made(map);
    past.note(made);
  };
  for (int step = 0; step < 200000; ++step) {
    if (random() % 20 == 0 || pages == 0) {
      pages = random() % 200;
      SyscallRow call;
      call.time_ns = step;
      call.name = schema::SyscallName::kBrk;
      call.args[0] = kStart + pages * kPageBytes;
      call.result = static_cast<int64_t>(call.args[0]);
      change([call](MemoryMap& to) {
        to.enter(call);
        while (to.next_acquisition() != INT64_MAX) to.acquire_next();
      });
    } else {
      change(
          [address = kStart + random() % pages * kPageBytes](MemoryMap& to) { to.fault(address); });
    }
    const int often = step < 20000 ? 1 : 1000;
    const size_t moment = random() % kKeptMoments;
    if (random() % (50 * often) == 0) {
      past.keep(moment, map);
      kept[moment] = picture_of(map);
    } else if (random() % (300 * often) == 0 && kept[moment]) {
      const size_t to = (moment + 1) % kKeptMoments;
      past.move(moment, to);
      kept[to] = std::exchange(kept[moment], std::nullopt);
    }
    if (step % (100 * often) != 0) continue;
    for (size_t i = 0; i < kKeptMoments; ++i) {
      if (!kept[i]) continue;
      ASSERT_EQ(*kept[i], picture_of(past.at(i))) << "moment " << i << " " << step;
    }
  }
}

}  // namespace
}  // namespace heapledger::analyzer
