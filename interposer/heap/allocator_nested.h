// SPDX-License-Identifier: Apache-2.0
//
// A signal handler that allocates may have interrupted its own thread in the middle of a change to
// the arena, where the lock would never come free and the lists cannot be trusted. Such a nested
// call uses nothing of the arena: what it allocates gets a mapping of its own, and what it frees
// waits in a list of its thread until the next call that is not nested. No block is lost or used
// twice; only placement differs from glibc's, which has no answer for this case. The caches protect
// themselves (see Thread).
#pragma once

#include "interposer/heap/allocator.h"
#include "interposer/heap/user_data.h"

namespace heapledger::heap {

// The administrative functions hold the lock itself, without the thread's flag: alone in the
// process, that can only be this thread.
template <class L, OperatingSystem Os>
inline bool Allocator<L, Os>::is_nested(const ThreadState& thread) {
  return thread.in_arena ||
         (__atomic_load_n(&admin_depth_, __ATOMIC_RELAXED) != 0 && is_single_threaded());
}

// For the administrative functions: without other threads no lock tells that a handler interrupted
// a change. They then do what needs no lists.
template <class L, OperatingSystem Os>
inline bool Allocator<L, Os>::is_interrupted(const ArenaType& arena) {
  return is_single_threaded() && arena.busy;
}

template <class L, OperatingSystem Os>
void* Allocator<L, Os>::reallocate_nested(ThreadState& thread, Chunk* old, const Request& request,
                                          const ReleaseObserver& observer) {
  Chunk* fresh = map_block(request);
  if (fresh == nullptr) return nullptr;
  const size_t usable = View::usable(old);
  void* block = View::block(fresh);
  copy_data(os_, block, View::block(old), usable < request.user ? usable : request.user);
  observer(View::block(old));
  defer(thread, old);
  return block;
}

// The handler may itself be interrupted by another one: the list is only changed by single
// instructions.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::defer(ThreadState& thread, Chunk* chunk) {
  View::set_mark(chunk, kFreedMark);
  auto* entry = static_cast<FreeEntry*>(View::block(chunk));
  FreeEntry* first = __atomic_load_n(&thread.deferred, __ATOMIC_RELAXED);
  do {
    entry->set_next(first);
  } while (!__atomic_compare_exchange_n(&thread.deferred, &first, entry, true, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED));
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::release_deferred(ThreadState& thread) {
  FreeEntry* entry = __atomic_exchange_n(&thread.deferred, nullptr, __ATOMIC_RELAXED);
  while (entry != nullptr) {
    FreeEntry* next = entry->next();
    Chunk* chunk = View::of_block(entry);
    ArenaType& arena = arena_of_chunk(chunk);
    const ArenaScope<L> scope(thread, arena, is_single_threaded());
    free_past_cache(arena, chunk);
    entry = next;
  }
}

}  // namespace heapledger::heap
