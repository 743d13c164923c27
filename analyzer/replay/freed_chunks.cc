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

uint64_t chunk_bytes_of(const Block& block) { return block.usable + kHeaderBytes; }

// A chunk may be larger than its request needs, where the rest was too small to be one.
uint64_t policy_bytes_of(const Block& block) {
  const uint64_t needed = std::max(kChunkBytesMin, (block.size + 15) / 16 * 16 + kHeaderBytes);
  const uint64_t by_glibc = std::max(kChunkBytesMin, (block.size + 8 + 15) / 16 * 16);
  const uint64_t bytes = chunk_bytes_of(block);
  return by_glibc + (bytes > needed ? bytes - needed : 0);
}

FreedChunks::FreedChunks(const FreedChunks& other)
    : rules_(other.rules_),
      arenas_(other.arenas_),
      fast_(other.fast_),
      fast_lists_(other.fast_lists_) {
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
  fast_lists_.swap(copy.fast_lists_);
  return *this;
}

size_t FreedChunks::cache_room(uint32_t thread, uint64_t chunk_bytes) const {
  const size_t size_class = class_of(chunk_bytes);
  if (size_class >= kClasses) return 0;
  const Cache* own = find_cache(thread);
  const size_t used = own == nullptr ? 0 : (*own)[size_class].size();
  return rules_.cache_count - std::min(rules_.cache_count, used);
}

std::vector<FreedChunks::Entry>& FreedChunks::cache_list(uint32_t thread, size_t size_class) {
  if (thread >= caches_.size()) caches_.resize(std::max<size_t>(thread + 1, caches_.size() * 2));
  if (!caches_[thread]) caches_[thread] = std::make_unique<Cache>();
  return (*caches_[thread])[size_class];
}

uint64_t& FreedChunks::last_arena(uint32_t thread) {
  if (thread >= arenas_.size()) arenas_.resize(std::max<size_t>(thread + 1, arenas_.size() * 2));
  return arenas_[thread];
}

bool FreedChunks::push_cache(uint32_t thread, const Block& block) {
  const size_t size_class = class_of(chunk_bytes_of(block));
  if (size_class >= kClasses || !is_cacheable(policy_bytes_of(block))) return false;
  std::vector<Entry>& entries = cache_list(thread, size_class);
  if (entries.size() >= rules_.cache_count) return false;
  entries.push_back({block.address, block.stack});
  return true;
}

bool FreedChunks::take_from_cache(uint32_t thread, const Block& block) {
  const size_t size_class = class_of(chunk_bytes_of(block));
  Cache* own = size_class < kClasses ? find_cache(thread) : nullptr;
  if (own == nullptr) return false;
  std::vector<Entry>& entries = (*own)[size_class];
  // Mostly the last one: calloc and realloc pass over the cache.
  for (size_t i = entries.size(); i-- > 0;) {
    if (entries[i].address != block.address) continue;
    entries.erase(entries.begin() + static_cast<ptrdiff_t>(i));
    return true;
  }
  return false;
}

void FreedChunks::push_fast(uint64_t arena, const FastEntry& entry, uint64_t chunk_bytes) {
  const size_t size_class = class_of(chunk_bytes);
  if (size_class >= kFastClasses) return;
  fast_.put(entry.address / 16, static_cast<uint32_t>(size_class));
  fast_lists_[arena][size_class].push_back(entry);
}

void FreedChunks::free_past_cache(uint32_t thread, const Block& block, const ChunkPlace& place) {
  if (place.is_mapped) return;
  if (is_fast(policy_bytes_of(block))) {
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
  if (fast_.take(block.address / 16) == FlatMap::kNone) return;
  std::vector<FastEntry>& list = fast_lists_[arena][size_class];
  std::vector<Entry>& entries = cache_list(thread, size_class);
  while (!list.empty()) {
    const bool is_there = is_in_fast(list.back(), size_class);
    if (is_there && entries.size() >= rules_.cache_count) return;
    if (is_there) {
      entries.push_back({list.back().address, list.back().stack});
      fast_.take(list.back().address / 16);
    }
    list.pop_back();
  }
}

void FreedChunks::consolidate(uint64_t arena) {
  const auto found = fast_lists_.find(arena);
  if (found == fast_lists_.end()) return;
  for (size_t size_class = 0; size_class < kFastClasses; ++size_class) {
    for (const FastEntry& entry : found->second[size_class]) {
      if (is_in_fast(entry, size_class)) fast_.take(entry.address / 16);
    }
    found->second[size_class].clear();
  }
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
  caches_[thread].reset();
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
