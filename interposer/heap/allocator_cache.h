// SPDX-License-Identifier: Apache-2.0
//
// A thread's cache: made at its first call as a chunk of the arena, filled by frees and by what a
// request finds besides its own chunk, emptied by requests (malloc alone takes from it) and by
// thread_exit(). The two paths that must be fast are in allocator.h. No lock: the cache is its
// thread's; every operation takes it away from signal handlers while it lasts (see Thread).
#pragma once

#include <cstring>

#include "interposer/base/fatal.h"
#include "interposer/base/signal_block.h"
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
  const base::SignalBlock signals;  // A handler's first call would wait for this one.
  base::LockGuard guard(init_lock_);
  if (initialised_) return;
  settings_ = os_.initial_settings();
  rules_ = glibc_rules(settings_.glibc_version);
  cache_policy_max_ = policy_bytes(settings_.cache_request_max);
  if (settings_.cache_request_max > kCacheRequestMax) {
    cache_large_max_ = cache_policy_max_;
    cache_policy_max_ = policy_bytes(kCacheRequestMax);
  }
  cache_count_ = settings_.cache_count;
  note_fast_limit();
  if (settings_.hugetlb != 0) configure_huge_pages();
  configure_heaps();
  main_.init_bins();
  main_.next = &main_;
  main_.contiguous = true;
  free_arenas_ = &main_;  // The first thread to ask gets it.
  arena_count_ = 1;
  __atomic_store_n(&initialised_, 1, __ATOMIC_RELEASE);
}

// What is to be overwritten when it is freed, or may belong in a large cache bin, takes the long
// way.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::note_fast_limit() {
  const bool is_direct = settings_.perturb == 0 && cache_large_max_ == 0;
  __atomic_store_n(&fast_unlocked_max_, is_direct ? settings_.fast_chunk_max : 0, __ATOMIC_RELAXED);
}

// For a request of `policy` bytes.
template <class L, OperatingSystem Os>
inline void Allocator<L, Os>::ensure_cache(ThreadState& thread, size_t policy) {
  // Who has a cache has called before: one question for both.
  if (thread.owned != nullptr) [[likely]]
    return;
  ensure_initialised();
  if (thread.ended) return;
  if (rules_.cache_birth == CacheBirth::kAnyCall ||
      (rules_.cache_birth == CacheBirth::kCacheableRequest && is_cacheable_at_all(policy))) {
    create_cache(thread);
  } else if (thread.arena == nullptr && is_single_threaded()) {
    attach_arena(thread, 0, nullptr);  // The main arena is the first thread's.
  }
}

// Whether a thread's free of such a chunk makes its cache, if it has none.
template <class L, OperatingSystem Os>
bool Allocator<L, Os>::is_born_by_free(size_t policy) const {
  return rules_.cache_birth == CacheBirth::kAnyCall ||
         (rules_.cache_birth == CacheBirth::kFirstUse && is_cacheable_at_all(policy));
}

// The cache as a request for `size` bytes: ours may need more of them, but decides by the same
// number.
template <class L, OperatingSystem Os>
Request Allocator<L, Os>::cache_request(size_t size) const {
  constexpr size_t kBytes = base::align_up(offsetof(Cache, large), kAlignment) + View::kHeaderBytes;
  constexpr size_t kLargeBytes = base::align_up(sizeof(Cache), kAlignment) + View::kHeaderBytes;
  static_assert(kBytes >= 656 && kBytes - 656 <= L::kSlackMax && kLargeBytes <= 768);
  const size_t policy = policy_bytes(size);
  const size_t bytes = rules_.has_large_cache ? kLargeBytes : kBytes;
  return {policy, bytes > policy ? bytes : policy, size};
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::create_cache(ThreadState& thread) {
  const bool only_once = rules_.cache_birth == CacheBirth::kFirstUse;
  if (only_once && cache_count_ == 0) thread.ended = true;
  if (thread.ended || is_nested(thread)) return;
  const Request request = cache_request(rules_.cache_bytes);
  // Also the only thread must have an arena of its own by the time there are several.
  const auto take_from = [&](ArenaType& arena) { return take(thread, arena, request); };
  ArenaType* own = thread.arena;
  if (own == nullptr) own = attach_arena(thread, request.user, nullptr);
  // Not another one by what this finds in the bins.
  thread.ended = only_once;
  // At first, unlike all other requests, this one tried a second arena even without other threads.
  const bool only_main = rules_.cache_birth != CacheBirth::kAnyCall && is_single_threaded();
  Chunk* chunk = serve_from_one(thread, only_main ? &main_ : own, request, only_main, take_from);
  if (chunk == nullptr) return;  // The next call tries again, unless this was the only try.
  thread.ended = false;
  if (!adopt_cache(thread, chunk)) release_slow(thread, chunk);
}

// The same where a request finds blocks that the cache could keep. Lock held.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::create_cache_inside(ThreadState& thread, ArenaType& arena) {
  if (thread.ended || rules_.cache_birth != CacheBirth::kFirstUse) return;
  thread.ended = true;  // For good, where this fails; and not another one inside.
  if (cache_count_ == 0) return;
  // glibc asks for the size of its chunk here.
  Chunk* chunk = take(thread, arena, cache_request(policy_bytes(rules_.cache_bytes)));
  if (chunk == nullptr) return;
  thread.ended = false;
  if (!adopt_cache(thread, chunk)) free_past_cache(arena, chunk);
}

// False: a signal handler of this thread was faster.
template <class L, OperatingSystem Os>
bool Allocator<L, Os>::adopt_cache(ThreadState& thread, Chunk* chunk) {
  void* memory = View::block(chunk);
  std::memset(memory, 0, rules_.has_large_cache ? sizeof(Cache) : offsetof(Cache, large));
  if (thread.owned != nullptr) return false;
  thread.owned = static_cast<Cache*>(memory);
  base::compiler_barrier();
  thread.cache = thread.owned;
  return true;
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
    take_entry(&cache->entries[index], nullptr);
    --cache->counts[index];
  }
  base::compiler_barrier();
  thread.cache = cache;
  return taken_from_cache(entry);
}

// The chunk of an entry that is in no list any more; null remains null.
template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::taken_from_cache(FreeEntry* entry) {
  if (entry == nullptr) return nullptr;
  Chunk* chunk = View::of_block(entry);
  View::set_mark(chunk, 0);
  return chunk;
}

}  // namespace heapledger::heap
