// SPDX-License-Identifier: Apache-2.0
//
// What only some versions of glibc do with a thread's cache: bins for sizes beyond the small ones
// (from 2.42 on, if tcache_max is raised), and memalign taking cached blocks that happen to be
// aligned (from 2.38 on). Twelve bins by powers of two up to 4 MiB, each sorted by size, smallest
// first. No counts are kept: the lists are walked anyway, and are short.
//
// No lock: as allocator_cache.h.
#pragma once

#include <bit>

#include "interposer/base/fatal.h"
#include "interposer/heap/allocator.h"

namespace heapledger::heap {

template <class L, OperatingSystem Os>
size_t Allocator<L, Os>::large_index(size_t policy) {
  constexpr int kFirstWidth = std::bit_width(policy_bytes(kCacheRequestMax));
  return static_cast<size_t>(std::bit_width(policy) - kFirstWidth);
}

// Takes the entry behind `before` (null: the first) out of a list.
template <class L, OperatingSystem Os>
FreeEntry* Allocator<L, Os>::take_entry(FreeEntry** head, FreeEntry* before) {
  FreeEntry* entry = before == nullptr ? *head : before->next();
  if (!base::is_aligned(base::address_of(entry), kAlignment)) {
    base::fatal("malloc(): unaligned tcache chunk detected");
  }
  if (before == nullptr) {
    *head = entry->next();
  } else {
    before->set_next(entry->next());
  }
  return entry;
}

// The first block of the request's bin that is `wanted`, taken out of it, or nullptr.
template <class L, OperatingSystem Os>
template <class Wanted>
Chunk* Allocator<L, Os>::cache_find(ThreadState& thread, const Request& request,
                                    const Wanted& wanted) {
  Cache* cache = thread.cache;
  if (cache == nullptr) return nullptr;
  const bool is_small = is_cacheable(request.policy);
  const size_t index = is_small ? Cache::index(request.bytes) : large_index(request.policy);
  FreeEntry** head = is_small ? &cache->entries[index] : &cache->large[index];
  thread.cache = nullptr;  // As in allocate_cached().
  base::compiler_barrier();
  FreeEntry* before = nullptr;
  FreeEntry* entry = *head;
  while (entry != nullptr && !wanted(View::of_block(entry))) {
    before = entry;
    entry = entry->next();
  }
  if (entry != nullptr) {
    entry = take_entry(head, before);
    if (is_small) --cache->counts[index];
  }
  base::compiler_barrier();
  thread.cache = cache;
  return taken_from_cache(entry);
}

// False: too large, or the bin is full.
template <class L, OperatingSystem Os>
bool Allocator<L, Os>::large_push(ThreadState& thread, Chunk* chunk) {
  const size_t policy = View::policy_size(chunk);
  Cache* cache = thread.cache;
  if (cache == nullptr || is_cacheable(policy) || policy > cache_large_max_) return false;
  thread.cache = nullptr;  // As in allocate_cached().
  base::compiler_barrier();
  FreeEntry** head = &cache->large[large_index(policy)];
  FreeEntry* before = nullptr;
  size_t count = 0;
  for (FreeEntry* at = *head; at != nullptr; at = at->next()) {
    if (View::policy_size(View::of_block(at)) < policy) before = at;
    ++count;
  }
  const bool has_room = count < cache_count_;
  if (has_room) {
    View::set_mark(chunk, kFreedMark);
    auto* entry = static_cast<FreeEntry*>(View::block(chunk));
    entry->set_next(before == nullptr ? *head : before->next());
    if (before == nullptr) {
      *head = entry;
    } else {
      before->set_next(entry);
    }
  }
  base::compiler_barrier();
  thread.cache = cache;
  return has_room;
}

template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::large_pop(ThreadState& thread, const Request& request) {
  return cache_find(thread, request, [&](const Chunk* chunk) {
    const size_t policy = View::policy_size(chunk);
    const bool fits =
        rules_.large_cache_is_exact ? policy == request.policy : policy >= request.policy;
    return fits && View::usable(chunk) >= request.user;
  });
}

template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::cache_pop_aligned(ThreadState& thread, size_t alignment,
                                           const Request& request) {
  return cache_find(thread, request, [&](const Chunk* chunk) {
    return base::is_aligned(base::address_of(View::block(chunk)), alignment) &&
           View::policy_size(chunk) == request.policy && View::usable(chunk) >= request.user;
  });
}

// At the end of the thread.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::release_large(ThreadState& thread, Cache* cache) {
  if (!rules_.has_large_cache) return;
  for (FreeEntry*& head : cache->large) {
    while (head != nullptr) {
      FreeEntry* entry = take_entry(&head, nullptr);
      release_slow(thread, View::of_block(entry));
    }
  }
}

}  // namespace heapledger::heap
