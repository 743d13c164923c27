// SPDX-License-Identifier: Apache-2.0
//
// A thread's cache: made at its first call as a chunk of the arena, filled by frees and by what a
// request finds besides its own chunk, emptied by requests (malloc alone takes from it) and by
// thread_exit(). The two paths that must be fast are in allocator.h. No lock: the cache is its
// thread's; every operation takes it away from signal handlers while it lasts (see Thread).
#pragma once

#include <cstring>

#include "interposer/base/fatal.h"
#include "interposer/heap/allocator.h"

namespace heapledger::heap {

template <class L, OperatingSystem Os>
inline void Allocator<L, Os>::ensure_initialised() {
  // Acquire: pairs with the release in initialise().
  if (!__atomic_load_n(&initialised_, __ATOMIC_ACQUIRE)) [[unlikely]]
    initialise();
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::initialise() {
  base::LockGuard guard(init_lock_);
  if (initialised_) return;
  settings_ = os_.initial_settings();
  cache_policy_max_ = policy_bytes(settings_.cache_request_max);
  cache_count_ = settings_.cache_count;
  main_.init_bins();
  main_.next = &main_;
  main_.contiguous = true;
  free_arenas_ = &main_;  // The first thread to ask gets it.
  arena_count_ = 1;
  __atomic_store_n(&initialised_, 1, __ATOMIC_RELEASE);
}

template <class L, OperatingSystem Os>
inline void Allocator<L, Os>::ensure_cache(ThreadState& thread) {
  // Who has a cache has called before: one question for both.
  if (thread.owned != nullptr) [[likely]]
    return;
  ensure_initialised();
  if (!thread.ended) create_cache(thread);
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::create_cache(ThreadState& thread) {
  // glibc's struct is a chunk of nb 656 in the arena; ours may need more bytes but decides by the
  // same number.
  constexpr size_t kBytes = base::align_up(sizeof(Cache), kAlignment) + View::kHeaderBytes;
  static_assert(kBytes >= Cache::kPolicyBytes && kBytes - Cache::kPolicyBytes <= L::kSlackMax);
  if (is_nested(thread)) return;
  const Request request{Cache::kPolicyBytes, kBytes, Cache::kPolicyBytes - View::kHeaderBytes};
  // Also the only thread must have an arena of its own by the time there are several.
  ArenaType* own = thread.arena;
  if (own == nullptr) own = attach_arena(thread, request.user, nullptr);
  // Unlike all other requests, this one tries a second arena even without other threads.
  Chunk* chunk = serve_from_one(thread, own, request, false,
                                [&](ArenaType& arena) { return take(thread, arena, request); });
  if (chunk == nullptr) return;  // The next call tries again.
  void* memory = View::block(chunk);
  std::memset(memory, 0, sizeof(Cache));
  if (thread.owned != nullptr) {
    // A signal handler of this thread was faster.
    release_slow(thread, chunk);
    return;
  }
  thread.owned = static_cast<Cache*>(memory);
  base::compiler_barrier();
  thread.cache = thread.owned;
}

template <class L, OperatingSystem Os>
bool Allocator<L, Os>::cache_has_room(const ThreadState& thread, size_t chunk_bytes) const {
  return thread.cache != nullptr && thread.cache->counts[Cache::index(chunk_bytes)] < cache_count_;
}

template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::cache_pop(ThreadState& thread, size_t chunk_bytes) {
  Cache* cache = thread.cache;
  if (cache == nullptr) return nullptr;
  const size_t index = Cache::index(chunk_bytes);
  thread.cache = nullptr;
  base::compiler_barrier();
  FreeEntry* entry = cache->entries[index];
  if (entry != nullptr) {
    if (!base::is_aligned(base::address_of(entry), kAlignment)) {
      base::fatal("malloc(): unaligned tcache chunk detected");
    }
    cache->entries[index] = entry->next();
    --cache->counts[index];
  }
  base::compiler_barrier();
  thread.cache = cache;
  if (entry == nullptr) return nullptr;
  Chunk* chunk = View::of_block(entry);
  View::set_mark(chunk, 0);
  return chunk;
}

}  // namespace heapledger::heap
