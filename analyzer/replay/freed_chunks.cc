// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay/freed_chunks.h"

#include <algorithm>

namespace heapledger::analyzer {

namespace {

// glibc's limits: from this request on fastbins are merged first, and so are they when a free makes
// so large a free run.
constexpr uint64_t kLargePolicyBytes = 1024;
constexpr uint64_t kConsolidateBytes = 64 * 1024;

}  // namespace

FreedChunks::FreedChunks(const FreedChunks& other)
    : rules_(other.rules_), arenas_(other.arenas_), fast_lists_(other.fast_lists_) {
  // What is in a fastbin is in a list, too.
  for (const auto& [arena, lists] : fast_lists_) {
    for (uint32_t size_class = 0; size_class < kFastClasses; ++size_class) {
      for (const FastEntry& entry : lists[size_class]) {
        if (other.is_in_fast(entry, size_class)) set_fast_mark(entry.address, mark_of(size_class));
      }
    }
  }
  caches_.resize(other.caches_.size());
  for (size_t i = 0; i < caches_.size(); ++i) {
    if (other.caches_[i]) caches_[i] = std::make_unique<Cache>(*other.caches_[i]);
  }
}

FreedChunks& FreedChunks::operator=(const FreedChunks& other) {
  if (this == &other) return *this;
  FreedChunks copy(other);
  rules_ = copy.rules_;
  caches_.swap(copy.caches_);
  arenas_.swap(copy.arenas_);
  std::swap(fast_, copy.fast_);
  fast_count_ = copy.fast_count_;
  fast_lists_.swap(copy.fast_lists_);
  lists_ = nullptr;
  return *this;
}

size_t FreedChunks::cache_room(uint32_t thread, uint64_t chunk_bytes) const {
  const size_t size_class = class_of(chunk_bytes);
  if (size_class >= kClasses) return 0;
  const Cache* own = find_cache(thread);
  const size_t used = own == nullptr ? 0 : (*own)[size_class].size();
  return rules_.cache_count - std::min(rules_.cache_count, used);
}

FreedChunks::Cache& FreedChunks::make_cache(uint32_t thread) {
  if (thread >= caches_.size())
    caches_.resize(std::max<size_t>(size_t{thread} + 1, caches_.size() * 2));
  caches_[thread] = std::make_unique<Cache>();
  return *caches_[thread];
}

FreedChunks::FastLists& FreedChunks::find_lists(uint64_t arena) {
  lists_ = &fast_lists_[arena];
  listed_arena_ = arena;
  return *lists_;
}

void FreedChunks::push_fast(uint64_t arena, const FastEntry& entry, uint64_t chunk_bytes) {
  const size_t size_class = class_of(chunk_bytes);
  if (size_class >= kFastClasses) return;
  put_fast(entry.address, size_class);
  lists_of(arena)[size_class].push_back(entry);
  note({.change = Change::kListed, .size_class = static_cast<uint8_t>(size_class), .arena = arena});
}

void FreedChunks::set_fast_mark(uint64_t address, uint8_t mark) {
  const uint8_t before = fast_.put(address, mark);
  fast_count_ += static_cast<uint64_t>(mark != 0) - static_cast<uint64_t>(before != 0);
}

void FreedChunks::put_fast(uint64_t address, size_t size_class) {
  const uint8_t before = fast_.put(address, mark_of(size_class));
  fast_count_ += before == 0 ? 1 : 0;
  note({.change = Change::kFast, .stack = before, .address = address});
}

bool FreedChunks::take_fast_key(uint64_t address, size_t size_class) {
  if (!fast_.clear(address, mark_of(size_class))) return false;
  --fast_count_;
  note({.change = Change::kFast, .stack = mark_of(size_class), .address = address});
  return true;
}

void FreedChunks::free_past_cache(uint32_t thread, const Block& block, uint64_t policy,
                                  const ChunkPlace& place) {
  if (place.is_mapped) return;
  if (is_fast(policy)) {
    push_fast(place.arena, {block.address, thread, block.stack}, chunk_bytes_of(block));
  } else if (has_fast() && place.merged_bytes >= kConsolidateBytes) {
    consolidate(place.arena);
  }
}

void FreedChunks::allocate_past_cache(uint32_t thread, const Block& block,
                                      const ChunkPlace& place) {
  uint64_t& arena = last_arena(thread);
  if (!place.is_mapped) arena = place.arena;
  if (!has_fast()) return;
  const uint64_t policy = policy_bytes_of(block);
  if (policy >= kLargePolicyBytes) {
    consolidate(arena);
  } else if (is_fast(policy) && class_of(chunk_bytes_of(block)) < kFastClasses) {
    take_fast(thread, block, arena);
  }
}

// The bin's other chunks go to the cache until it is full.
void FreedChunks::take_fast(uint32_t thread, const Block& block, uint64_t arena) {
  const size_t size_class = class_of(chunk_bytes_of(block));
  const uint8_t was = fast_.get(block.address);
  if (was == 0) return;
  take_fast_key(block.address, was - size_t{1});
  std::vector<FastEntry>& list = lists_of(arena)[size_class];
  std::vector<Entry>& entries = cache_list(thread, size_class);
  while (!list.empty()) {
    const FastEntry& last = list.back();
    if (entries.size() >= rules_.cache_count) {
      if (is_in_fast(last, size_class)) return;
    } else if (take_fast_key(last.address, size_class)) {
      push(entries, thread, size_class, {last.address, last.stack});
    }
    unlist(arena, size_class, list);
  }
}

void FreedChunks::consolidate(uint64_t arena) {
  const auto found = fast_lists_.find(arena);
  if (found == fast_lists_.end()) return;
  for (size_t size_class = 0; size_class < kFastClasses; ++size_class) {
    std::vector<FastEntry>& list = found->second[size_class];
    while (!list.empty()) {
      take_fast_key(list.back().address, size_class);
      unlist(arena, size_class, list);
    }
  }
}

void FreedChunks::unlist(uint64_t arena, size_t size_class, std::vector<FastEntry>& list) {
  const FastEntry& last = list.back();
  note({Change::kUnlisted, static_cast<uint8_t>(size_class), 0, last.thread, last.stack,
        last.address, arena});
  list.pop_back();
}

void FreedChunks::end_thread(uint32_t thread) {
  Cache* own = find_cache(thread);
  if (own == nullptr) return;
  for (size_t size_class = 0; size_class < kClasses; ++size_class) {
    const uint64_t bytes = 32 + 16 * size_class;
    // Larger ones are merged. By the chunk's size: the request is not known any more.
    if (!is_fast(bytes)) break;
    for (const Entry& entry : (*own)[size_class]) {
      push_fast(last_arena(thread), {entry.address, thread, entry.stack}, bytes);
    }
  }
  for (size_t size_class = 0; size_class < kClasses; ++size_class) {
    const std::vector<Entry>& entries = (*own)[size_class];
    for (size_t i = entries.size(); i-- > 0;) {
      note({Change::kUncached, static_cast<uint8_t>(size_class), static_cast<uint16_t>(i), thread,
            entries[i].stack, entries[i].address});
    }
  }
  caches_[thread].reset();
}

void FreedChunks::keep(size_t moment) {
  kept_[moment] = {true, undo_.size(), nullptr};
  undoes_ = true;
  for (const Kept& kept : kept_) {
    if (kept.undoes && kept.from != undo_.size()) return;
  }
  undo_.clear();
  for (Kept& kept : kept_) kept.from = 0;
}

FreedChunks FreedChunks::at(size_t moment) const {
  const Kept& kept = kept_[moment];
  FreedChunks then(kept.undoes ? *this : *kept.copy);
  if (kept.undoes) then.undo_to(std::span(undo_).subspan(kept.from));
  return then;
}

// Copies the moments that are still to be undone: the notes are as many as they should be.
void FreedChunks::settle() {
  for (size_t moment = 0; moment < kKeptMoments; ++moment) {
    if (!kept_[moment].undoes) continue;
    kept_[moment].copy = std::make_unique<FreedChunks>(at(moment));
    kept_[moment].undoes = false;
  }
  undo_.clear();
  undoes_ = false;
}

void FreedChunks::undo_to(std::span<const Undo> changes) {
  for (size_t i = changes.size(); i-- > 0;) undo(changes[i]);
}

void FreedChunks::undo(const Undo& change) {
  switch (change.change) {
    case Change::kCached:
      cache_list(change.thread, change.size_class).pop_back();
      break;
    case Change::kUncached: {
      std::vector<Entry>& entries = cache_list(change.thread, change.size_class);
      entries.insert(entries.begin() + change.place, {change.address, change.stack});
      break;
    }
    case Change::kFast:
      set_fast_mark(change.address, static_cast<uint8_t>(change.stack));
      break;
    case Change::kListed:
      fast_lists_[change.arena][change.size_class].pop_back();
      break;
    case Change::kUnlisted:
      fast_lists_[change.arena][change.size_class].push_back(
          {change.address, change.thread, change.stack});
      break;
  }
}

void FreedChunks::for_each(const std::function<void(const FreedChunk&)>& visit) const {
  for (uint32_t thread = 0; thread < caches_.size(); ++thread) {
    if (!caches_[thread]) continue;
    for (size_t size_class = 0; size_class < kClasses; ++size_class) {
      for (const Entry& entry : (*caches_[thread])[size_class]) {
        visit({entry.address, 32 + 16 * size_class, thread, entry.stack, false});
      }
    }
  }
  for (const auto& [arena, lists] : fast_lists_) {
    for (size_t size_class = 0; size_class < kFastClasses; ++size_class) {
      for (const FastEntry& entry : lists[size_class]) {
        if (!is_in_fast(entry, size_class)) continue;
        visit({entry.address, 32 + 16 * size_class, entry.thread, entry.stack, true});
      }
    }
  }
}

}  // namespace heapledger::analyzer
