// SPDX-License-Identifier: Apache-2.0
#include "analyzer/finalize/arena_use.h"

#include <algorithm>

namespace heapledger::analyzer {

void ArenaUse::follow_until(int64_t now_ns) {
  for (; next_ < history_.size() && history_[next_].time_ns <= now_ns; ++next_) {
    follow(history_[next_]);
  }
  next_change_ns_ = next_ < history_.size() ? history_[next_].time_ns : INT64_MAX;
}

void ArenaUse::follow(const ArenaChange& change) {
  const uint64_t window = change.heap >> kWindowBits;
  const auto arena = static_cast<uint32_t>(change.arena);
  const uint32_t old = arena != 0 ? heaps_.put(window + 1, arena) : heaps_.take(window + 1);
  if (old != FlatMap::kNone) windows_[old].erase(window);
  if (arena >= windows_.size()) windows_.resize(arena + 1);
  if (arena != 0) windows_[arena].insert(window);
  window_ = UINT64_MAX;
}

uint64_t ArenaUse::held_bytes(uint32_t arena) const {
  const RangeMap::Map& ranges = memory_->held().ranges();
  uint64_t bytes = 0;
  if (arena == kMainArena) {
    // The break is below all mappings.
    for (const auto& [start, range] : ranges) {
      if (range.kind != RangeKind::kBreak) break;
      bytes += range.end - start;
    }
  } else if (arena < windows_.size()) {
    for (const uint64_t window : windows_[arena]) {
      for (auto it = ranges.lower_bound(window << kWindowBits);
           it != ranges.end() && it->first >> kWindowBits == window; ++it) {
        bytes += it->second.end - it->first;
      }
    }
  }
  return bytes;
}

uint32_t ArenaUse::find_arena(uint64_t address) {
  const uint64_t window = address >> kWindowBits;
  if (const uint32_t arena = heaps_.find(window + 1); arena != FlatMap::kNone) {
    window_ = window;
    arena_ = arena;
    return arena;
  }
  const HeldRange* range = memory_->held().find(address);
  if (range == nullptr) return kNoArena;
  if (range->kind == RangeKind::kMapped) return kNoArena;
  if (range->kind == RangeKind::kBreak) {
    window_ = window;
    arena_ = kMainArena;
  }
  return kMainArena;
}

ArenaThreadUse& ArenaUse::find_use(uint32_t arena, uint32_t thread) {
  if (arena >= arenas_.size()) arenas_.resize(arena + 1);
  std::vector<ArenaThreadUse>& threads = arenas_[arena];
  if (thread >= threads.size()) threads.resize(size_t{thread} + 1);
  last_key_ = uint64_t{arena} << 32 | thread;
  return *(last_use_ = &threads[thread]);
}

void ArenaUse::note_foreign(const Block& block) {
  uint32_t place = foreign_places_.find(block.stack + uint64_t{1});
  if (place == FlatMap::kNone) {
    place = static_cast<uint32_t>(foreign_.size());
    foreign_places_.put(block.stack + uint64_t{1}, place);
    foreign_.push_back({block.stack, 0, 0});
  }
  ++foreign_[place].blocks;
  foreign_[place].bytes += block.size;
}

std::vector<ForeignFrees> ArenaUse::foreign_frees() const {
  std::vector<ForeignFrees> sorted = foreign_;
  std::sort(sorted.begin(), sorted.end(), [](const ForeignFrees& a, const ForeignFrees& b) {
    return a.blocks != b.blocks ? a.blocks > b.blocks : a.stack < b.stack;
  });
  return sorted;
}

}  // namespace heapledger::analyzer
