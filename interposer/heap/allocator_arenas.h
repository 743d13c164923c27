// SPDX-License-Identifier: Apache-2.0
//
// Which arena serves a thread, by glibc's rules: the first thread has the main arena. Each other
// one gets, at its first request that its cache cannot serve, an arena whose threads have all ended
// (the latest such first), or a new one while there are fewer than the limit, or else it shares
// one: the next in turn whose lock is free. While the process has a single thread, the main arena
// serves everything without a lock, whatever that thread had before.
//
// A block belongs to its arena for life: whoever frees it gives it back there. Arenas are never
// destroyed; those without threads wait in a list. Order of locks: arenas_lock_, arenas in the
// order of their list, free_arenas_lock_.
#pragma once

#include <new>

#include "interposer/heap/allocator.h"

namespace heapledger::heap {

// Where there are several threads. nullptr: there is none and none could be made; the request must
// be mapped.
template <class L, OperatingSystem Os>
inline Arena<L>* Allocator<L, Os>::arena_for(ThreadState& thread, size_t size) {
  if (thread.arena != nullptr) [[likely]]
    return thread.arena;
  return attach_arena(thread, size, nullptr);
}

// Gives the thread an arena, preferably not `avoid`. No lock held. `size` is the request that is
// waiting: a new arena starts large enough for it.
template <class L, OperatingSystem Os>
Arena<L>* Allocator<L, Os>::attach_arena(ThreadState& thread, size_t size, const ArenaType* avoid) {
  // A signal handler that interrupts this must not want the same locks.
  const bool was_in_arena = thread.in_arena;
  thread.in_arena = true;
  base::compiler_barrier();
  ArenaType* arena = choose_arena(thread, size, avoid);
  base::compiler_barrier();
  thread.in_arena = was_in_arena;
  return arena;
}

template <class L, OperatingSystem Os>
Arena<L>* Allocator<L, Os>::choose_arena(ThreadState& thread, size_t size, const ArenaType* avoid) {
  {
    base::LockGuard guard(free_arenas_lock_);
    ArenaType* waiting = free_arenas_;
    if (waiting != nullptr) {
      free_arenas_ = waiting->next_free;
      detach(thread);
      attach(thread, waiting);
      return waiting;
    }
  }
  ArenaType* arena = nullptr;
  arenas_lock_.lock();
  const size_t limit = arena_limit(arena_count_);
  const bool may_create = arena_count_ <= limit - 1;
  if (may_create) arena = create_arena(size);
  arenas_lock_.unlock();
  if (!may_create) arena = reuse_arena(avoid);
  if (arena == nullptr) return nullptr;
  base::LockGuard guard(free_arenas_lock_);
  // An arena that is shared may have lost its last thread by now.
  for (ArenaType** at = &free_arenas_; *at != nullptr; at = &(*at)->next_free) {
    if (*at != arena) continue;
    *at = arena->next_free;
    break;
  }
  detach(thread);
  attach(thread, arena);
  return arena;
}

// free_arenas_lock_ held.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::attach(ThreadState& thread, ArenaType* arena) {
  thread.arena = arena;
  ++arena->attached;
}

// free_arenas_lock_ held. A thread that takes another arena was refused memory by this one, which
// therefore does not wait for the next thread even if it has none now.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::detach(ThreadState& thread) {
  if (thread.arena != nullptr) --thread.arena->attached;
  thread.arena = nullptr;
}

// What the last thread leaves when it ends waits for the next one.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::leave_arena(ThreadState& thread) {
  ArenaType* arena = thread.arena;
  if (arena == nullptr) return;
  base::LockGuard guard(free_arenas_lock_);
  detach(thread);
  if (arena->attached != 0) return;
  arena->next_free = free_arenas_;
  free_arenas_ = arena;
}

// An arena that failed is given up for another: the main one first.
template <class L, OperatingSystem Os>
Arena<L>* Allocator<L, Os>::arena_to_retry(ThreadState& thread, const ArenaType& failed,
                                           size_t size) {
  return &failed != &main_ ? &main_ : attach_arena(thread, size, &main_);
}

// arenas_lock_ held. Once the number of CPUs counts, the limit stays.
template <class L, OperatingSystem Os>
size_t Allocator<L, Os>::arena_limit(size_t count) {
  constexpr size_t kArenasPerCpu = 8;
  if (arena_limit_ != 0) return arena_limit_;
  if (settings_.arena_max != 0) {
    arena_limit_ = settings_.arena_max;
  } else if (count > settings_.arena_test) {
    size_t cpus = 1;
    if constexpr (requires(Os os) { os.cpu_count(); }) cpus = os_.cpu_count();
    arena_limit_ = kArenasPerCpu * cpus;
  } else {
    return SIZE_MAX;
  }
  return arena_limit_;
}

// In turn, the next one whose lock is free; where all are held, the next one, but not `avoid`.
template <class L, OperatingSystem Os>
Arena<L>* Allocator<L, Os>::reuse_arena(const ArenaType* avoid) {
  ArenaType* start = __atomic_load_n(&next_to_share_, __ATOMIC_ACQUIRE);
  if (start == nullptr) start = &main_;
  // Acquire: pairs with the release in create_arena(): whoever sees an arena sees it whole.
  auto after = [](ArenaType* arena) { return __atomic_load_n(&arena->next, __ATOMIC_ACQUIRE); };
  ArenaType* found = start;
  while (found->lock.is_held()) {
    found = after(found);
    if (found != start) continue;
    if (found == avoid) found = after(found);
    break;
  }
  __atomic_store_n(&next_to_share_, after(found), __ATOMIC_RELEASE);
  return found;
}

// arenas_lock_ held. The Arena is the first thing in its first heap.
template <class L, OperatingSystem Os>
Arena<L>* Allocator<L, Os>::create_arena(size_t size) {
  const size_t overhead = size_t{rules_.heap_header_bytes} + rules_.arena_bytes + kAlignment;
  // The sum wraps in glibc, too, for the sizes that only fail with an arena at hand.
  HeapType* heap = reserve_heap(size + overhead);
  // The request is too large for any heap, and will be mapped: the arena need not hold it.
  if (heap == nullptr) heap = reserve_heap(overhead);
  if (heap == nullptr) return nullptr;
  void* behind = base::pointer_to(heap->begin() + rules_.heap_header_bytes);
  ArenaType* arena = rules_.has_fastbins ? new (behind) FastArenaType : new (behind) ArenaType;
  heap->arena = arena;
  arena->chunk_flag = kNonMain;
  arena->init_bins();
  arena->system_bytes = arena->system_bytes_max = heap->bytes;
  arena->top = first_chunk(heap);
  View::set_head(arena->top, (heap->end() - base::address_of(arena->top)) | kPrevInUse);
  arena->next = main_.next;
  ++arena_count_;
  // Release: pairs with the acquire loads of those who walk the list.
  __atomic_store_n(&main_.next, arena, __ATOMIC_RELEASE);
  os_.on_policy(PolicyKind::kArenaCreated, arena_count_ - 1, arena_count_);
  return arena;
}

}  // namespace heapledger::heap
