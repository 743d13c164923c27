// SPDX-License-Identifier: Apache-2.0
// A process's memory map at moments that the replay has passed.
//
// A moment is kept as a second map that lags behind: changes are noted, and played into the lagging
// map up to the moment when somebody asks, or when there are many. So a moment that is kept anew
// after each event, as the peak of a growing heap is, costs nothing but its place in the notes.
// When a moment lies further back than the notes may, its map is complete and the notes are
// dropped; keeping that moment anew then copies the map as it is now.
// Thread safety: none. Memory: the notes (some MB), and per moment one map.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "analyzer/replay/live_set.h"
#include "analyzer/replay/memory_map.h"

namespace heapledger::analyzer {

class PastMaps {
 public:
  using Change = std::function<void(MemoryMap&)>;

  // Does nothing while no moment needs it.
  template <typename Made>
  void note(Made change) {
    if (is_noting_) add(Change(std::move(change)));
  }
  // Keeps this moment as number `moment`, in place of the one that was; `now` is the map at it.
  void keep(size_t moment, const MemoryMap& now);
  // It is number `to` from now on, and this number's is not wanted.
  void move(size_t moment, size_t to);
  // The map at it; it must have been kept.
  const MemoryMap& at(size_t moment);

 private:
  static constexpr size_t kChangesMax = 1 << 15;
  struct Kept {
    std::optional<MemoryMap> map;
    size_t played = 0;      // Changes that are in the map,
    size_t until = 0;       // and those that are before the moment.
    bool is_behind = true;  // Later changes were dropped.
  };

  void add(Change change);
  void play(Kept& kept);
  void drop_played();

  std::array<Kept, kKeptMoments> kept_;
  std::vector<Change> changes_;
  bool is_noting_ = false;
};

}  // namespace heapledger::analyzer
