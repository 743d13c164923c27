// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay/past_maps.h"

#include <algorithm>

namespace heapledger::analyzer {

void PastMaps::add(Change change) {
  if (changes_.size() >= kChangesMax) drop_played();
  if (is_noting_) changes_.push_back(std::move(change));
}

void PastMaps::keep(size_t moment, const MemoryMap& now) {
  Kept& kept = kept_[moment];
  if (kept.is_behind) {
    kept.map = now;
    kept.played = changes_.size();
    kept.is_behind = false;
    is_noting_ = true;
  }
  kept.until = changes_.size();
}

void PastMaps::move(size_t moment, size_t to) {
  Kept& from = kept_[moment];
  if (from.is_behind || kept_[to].is_behind || kept_[to].played > from.until) {
    play(from);
    kept_[to] = from;
  }
  kept_[to].until = from.until;
}

const MemoryMap& PastMaps::at(size_t moment) {
  play(kept_[moment]);
  return *kept_[moment].map;
}

void PastMaps::play(Kept& kept) {
  for (; kept.played < kept.until; ++kept.played) changes_[kept.played](*kept.map);
}

// Makes room for more changes: those before the moments are played, and where that leaves many, the
// moments they come after must do without.
void PastMaps::drop_played() {
  size_t needed_from = changes_.size();
  is_noting_ = false;
  for (Kept& kept : kept_) {
    if (kept.is_behind) continue;
    play(kept);
    if (changes_.size() - kept.until > kChangesMax / 2) {
      kept.is_behind = true;
      kept.played = kept.until = 0;
    } else {
      needed_from = std::min(needed_from, kept.until);
      is_noting_ = true;
    }
  }
  changes_.erase(changes_.begin(), changes_.begin() + static_cast<ptrdiff_t>(needed_from));
  for (Kept& kept : kept_) {
    if (kept.is_behind) continue;
    kept.played -= needed_from;
    kept.until -= needed_from;
  }
}

}  // namespace heapledger::analyzer
