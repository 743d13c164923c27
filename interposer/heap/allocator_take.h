// SPDX-License-Identifier: Apache-2.0
//
// How a request that the cache could not serve is served from an arena, in glibc's order:
//   fastbin, exact small bin, unsorted list (filing what does not fit), own large bin, next larger
//   bin, top, system.
// On the way, chunks of exactly the requested size go to the thread's cache until its bin is full.
// All functions here run with the arena's lock held, unless they say otherwise; `take` and its
// parts return nullptr where they have nothing.
#pragma once

#include <errno.h>

#include "interposer/base/fatal.h"
#include "interposer/heap/allocator.h"
#include "interposer/heap/user_data.h"

namespace heapledger::heap {

// ---- Entry points without a lock.

template <class L, OperatingSystem Os>
void* Allocator<L, Os>::allocate_slow(ThreadState& thread, size_t size) {
  if (size > kRequestMax) {
    refuse_size(thread, size);
    return nullptr;
  }
  const Request request = Request::of<L>(size);
  ensure_cache(thread, request.policy);
  // Not only the fast path's misses come here: the cache may have been in use, or its head damaged.
  if (is_cacheable(request.policy)) {
    Chunk* cached = cache_pop(thread, request.bytes);
    if (cached != nullptr) return View::block(cached);
  } else if (request.policy <= cache_large_max_) [[unlikely]] {
    Chunk* cached = large_pop(thread, request);
    if (cached != nullptr) return View::block(cached);
  }
  return allocate_uncached(thread, request);
}

// Where the version sees that a size is too large only with an arena at hand, a request with
// several threads looks for one, and for another when that has refused.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::refuse_size(ThreadState& thread, size_t size) {
  errno = ENOMEM;
  ensure_initialised();
  if (rules_.arena_refuses_size) look_for_arenas(thread, size, size);
}

// Looks for the arenas that a request would get if the first one had nothing.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::look_for_arenas(ThreadState& thread, size_t size, size_t first_bytes) {
  if (is_single_threaded() || is_nested(thread)) return;
  const ArenaType* arena = arena_for(thread, first_bytes);
  if (arena != nullptr) arena_to_retry(thread, *arena, size);
}

template <class L, OperatingSystem Os>
void* Allocator<L, Os>::allocate_uncached(ThreadState& thread, const Request& request) {
  Chunk* chunk = serve(thread, request, request.user,
                       [&](ArenaType& arena) { return take(thread, arena, request); });
  if (chunk == nullptr) {
    errno = ENOMEM;
    return nullptr;
  }
  return View::block(chunk);
}

// Serves a request from the thread's arena by `serve_from`, which runs with its lock held; where
// that has no memory, and there are several threads, from another. No arena at all: a mapping.
template <class L, OperatingSystem Os>
template <class Serve>
inline Chunk* Allocator<L, Os>::serve(ThreadState& thread, const Request& request,
                                      size_t first_bytes, const Serve& serve_from) {
  if (is_nested(thread)) [[unlikely]]
    return map_block(request);
  if (thread.deferred != nullptr) [[unlikely]]
    release_deferred(thread);
  const bool alone = is_single_threaded();
  ArenaType* arena = alone ? &main_ : arena_for(thread, first_bytes);
  return serve_from_one(thread, arena, request, alone, serve_from);
}

// The same from a given arena; `last_try`: from no other one.
template <class L, OperatingSystem Os>
template <class Serve>
inline Chunk* Allocator<L, Os>::serve_from_one(ThreadState& thread, ArenaType* arena,
                                               const Request& request, bool last_try,
                                               const Serve& serve_from) {
  if (arena == nullptr) [[unlikely]]
    return map_without_arena(request);
  Chunk* chunk = nullptr;
  {
    const ArenaScope<L> scope(thread, *arena, is_single_threaded());
    chunk = serve_from(*arena);
  }
  if (chunk != nullptr || last_try) [[likely]]
    return chunk;
  return serve_elsewhere(thread, *arena, request, serve_from);
}

// By value: a reference would keep the caller's object, and all that it refers to, in memory.
template <class L, OperatingSystem Os>
template <class Serve>
Chunk* Allocator<L, Os>::serve_elsewhere(ThreadState& thread, const ArenaType& failed,
                                         const Request& request, Serve serve_from) {
  ArenaType* arena = arena_to_retry(thread, failed, request.user);
  if (arena == nullptr) return map_without_arena(request);
  const ArenaScope<L> scope(thread, *arena, is_single_threaded());
  return serve_from(*arena);
}

template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::map_without_arena(const Request& request) {
  Chunk* chunk = map_block(request);
  if (chunk != nullptr) fill_new(chunk, request);
  return chunk;
}

template <class L, OperatingSystem Os>
void* Allocator<L, Os>::allocate_zeroed(ThreadState& thread, size_t count, size_t size) {
  size_t bytes = 0;
  if (__builtin_mul_overflow(count, size, &bytes)) {
    errno = ENOMEM;
    return nullptr;
  }
  if (bytes > kRequestMax) {
    refuse_size(thread, bytes);
    return nullptr;
  }
  const Request request = Request::of<L>(bytes);
  ensure_cache(thread, request.policy);
  if (rules_.zeroed_uses_cache && is_cacheable_at_all(request.policy)) {
    Chunk* cached = is_cacheable(request.policy) ? cache_pop(thread, request.bytes)
                                                 : large_pop(thread, request);
    if (cached != nullptr) {
      clear_data(os_, View::block(cached), View::usable(cached));
      return View::block(cached);
    }
  }
  Chunk* old_top = nullptr;
  size_t dirty_bytes = 0;  // How much of old_top may hold old data.
  Chunk* chunk = serve(thread, request, bytes, [&](ArenaType& arena) {
    old_top = arena.top;
    dirty_bytes = dirty_top_bytes(arena);
    return take(thread, arena, request);
  });
  if (chunk == nullptr) {
    errno = ENOMEM;
    return nullptr;
  }
  void* block = View::block(chunk);
  if ((View::head(chunk) & kIsMapped) != 0) {
    if (settings_.perturb != 0) fill_data(os_, block, 0, bytes);
    return block;
  }
  size_t clear = View::usable(chunk);
  if (settings_.perturb == 0 && chunk == old_top && dirty_bytes - View::kHeaderBytes < clear) {
    clear = dirty_bytes - View::kHeaderBytes;
    fill_data(os_, block, 0, clear);  // May be less than the smallest block.
  } else {
    clear_data(os_, block, clear);
  }
  return block;
}

// From the top on: what the memory once reached and gave back counts as dirty, as in glibc.
template <class L, OperatingSystem Os>
size_t Allocator<L, Os>::dirty_top_bytes(ArenaType& arena) {
  if (arena.top == nullptr) return 0;
  const uintptr_t top = base::address_of(arena.top);
  // Behind a fallback mapping the difference is negative, that is, huge: everything counts.
  const size_t reached =
      &arena == &main_ ? main_base_ + arena.system_bytes_max - top
                       : heap_of(arena.top)->begin() + heap_of(arena.top)->committed_bytes() - top;
  return reached > arena.top_bytes() ? reached : arena.top_bytes();
}

// ---- One request against one arena.

// The last step of every way to serve a request: the chunk remembers nb and its arena, and is
// marked live.
template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::hand_out(ArenaType& arena, Chunk* chunk, const Request& request) {
  remember_request(arena, chunk, request);
  View::set_mark(chunk, 0);
  return chunk;
}

template <class L, OperatingSystem Os>
inline void Allocator<L, Os>::remember_request(ArenaType& arena, Chunk* chunk,
                                               const Request& request) {
  View::set_head(chunk, (View::head(chunk) & ~kSlack) | request.slack_flag() | arena.chunk_flag);
}

template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::take(ThreadState& thread, ArenaType& arena, const Request& request) {
  Chunk* chunk = take_free(thread, arena, request);
  if (chunk == nullptr) [[unlikely]] {
    chunk = take_from_system(thread, arena, request);
    if (chunk == nullptr) return nullptr;
    if ((View::head(chunk) & kIsMapped) != 0) {
      fill_new(chunk, request);
      return chunk;
    }
  }
  hand_out(arena, chunk, request);
  fill_new(chunk, request);
  return chunk;
}

template <class L, OperatingSystem Os>
inline void Allocator<L, Os>::fill_new(Chunk* chunk, const Request& request) {
  if (settings_.perturb == 0) return;
  fill_data(os_, View::block(chunk), settings_.perturb ^ 0xff, request.user);
}

// Bins and top: what needs no system call.
template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::take_free(ThreadState& thread, ArenaType& arena, const Request& request) {
  if (request.policy <= settings_.fast_chunk_max) {
    if (Chunk* chunk = take_fast(thread, arena, request)) return chunk;
  }
  if (request.policy <= kSmallPolicyMax) {
    if (Chunk* chunk = take_small(thread, arena, request)) return chunk;
  } else if (arena.may_have_fast()) {
    consolidate(arena);
  }
  for (;;) {
    if (Chunk* chunk = take_unsorted(thread, arena, request)) return chunk;
    if (request.policy > kSmallPolicyMax) {
      if (Chunk* chunk = take_large(arena, request)) return chunk;
    }
    if (Chunk* chunk = take_next_bin(arena, request)) return chunk;
    if (Chunk* chunk = take_top(arena, request)) return chunk;
    // Fast chunks may merge to something large enough: once more from the unsorted list, where they
    // go.
    if (!arena.may_have_fast()) return nullptr;
    consolidate(arena);
  }
}

// What `pop` gives goes to the thread's cache until that is full.
template <class L, OperatingSystem Os>
template <class Pop>
inline void Allocator<L, Os>::fill_cache(ThreadState& thread, ArenaType& arena,
                                         const Request& request, const Pop& pop) {
  Cache* cache = thread.cache;
  if (cache == nullptr) return;
  const size_t index = Cache::index(request.bytes);
  thread.cache = nullptr;  // As in allocate_cached().
  base::compiler_barrier();
  size_t count = cache->counts[index];
  while (count < cache_count_) {
    Chunk* more = pop();
    if (more == nullptr) break;
    remember_request(arena, more, request);
    View::set_mark(more, kFreedMark);
    auto* entry = static_cast<FreeEntry*>(View::block(more));
    entry->set_next(cache->entries[index]);
    cache->entries[index] = entry;
    ++count;
  }
  cache->counts[index] = static_cast<uint16_t>(count);
  base::compiler_barrier();
  thread.cache = cache;
}

template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::take_fast(ThreadState& thread, ArenaType& arena, const Request& request) {
  const size_t index = BinsOf::fast_index(request.bytes);
  auto pop = [&](const char* misaligned) -> Chunk* {
    Chunk* chunk = with_fast(arena).first_fast(index);
    for (;;) {
      if (chunk == nullptr) return nullptr;
      if (!base::is_aligned(base::address_of(chunk), kAlignment)) base::fatal(misaligned);
      auto* next = static_cast<FreeEntry*>(View::block(chunk))->next();
      Chunk* rest = next == nullptr ? nullptr : View::of_block(next);
      if (is_single_threaded()) {
        __atomic_store_n(&with_fast(arena).fast[index], rest, __ATOMIC_RELAXED);
        return chunk;
      }
      // With other threads, glibc looks at the next one already here.
      if (!base::is_aligned(base::address_of(next), kAlignment)) {
        base::fatal("malloc(): unaligned fastbin chunk detected");
      }
      // Others may push, but only this thread takes: the link that was read stays right. Acquire,
      // as in first_fast().
      if (__atomic_compare_exchange_n(&with_fast(arena).fast[index], &chunk, rest, true,
                                      __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE)) {
        return chunk;
      }
    }
  };
  Chunk* taken = pop("malloc(): unaligned fastbin chunk detected 2");
  if (taken == nullptr) return nullptr;
  if (View::size(taken) != request.bytes) base::fatal("malloc(): memory corruption (fast)");
  if (is_cacheable(request.policy)) {
    fill_cache(thread, arena, request,
               [&] { return pop("malloc(): unaligned fastbin chunk detected 3"); });
  }
  return taken;
}

template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::take_small(ThreadState& thread, ArenaType& arena, const Request& request) {
  Chunk* bin = arena.bin(BinsOf::index(request.bytes));
  auto pop = [&]() -> Chunk* {
    Chunk* chunk = View::prev_link(bin);
    if (chunk == bin) return nullptr;
    Chunk* before = View::prev_link(chunk);
    if (View::next_link(before) != chunk) {
      base::fatal("malloc(): smallbin double linked list corrupted");
    }
    View::set_prev_in_use(View::after(chunk, request.bytes));
    View::prev_link(bin) = before;
    View::next_link(before) = bin;
    return chunk;
  };
  Chunk* taken = pop();
  if (taken == nullptr) return nullptr;
  if (is_cacheable(request.policy)) {
    if (thread.owned == nullptr) [[unlikely]]
      create_cache_inside(thread, arena);
    fill_cache(thread, arena, request, pop);
  }
  return taken;
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::check_unsorted(ArenaType& arena, Chunk* chunk) {
  const size_t bytes = View::size(chunk);
  if (bytes < kMinChunk || bytes > arena.system_bytes) {
    base::fatal("malloc(): invalid size (unsorted)");
  }
  Chunk* next = View::after(chunk, bytes);
  if (View::size(next) < kFenceBytes || View::size(next) > arena.system_bytes) {
    base::fatal("malloc(): invalid next size (unsorted)");
  }
  if (View::prev_size(next) != bytes) {
    base::fatal("malloc(): mismatching next->prev_size (unsorted)");
  }
  if (View::next_link(View::prev_link(chunk)) != chunk ||
      View::next_link(chunk) != arena.bin(kUnsortedBin)) {
    base::fatal("malloc(): unsorted double linked list corrupted");
  }
  if (View::prev_in_use(next)) base::fatal("malloc(): invalid next->prev_inuse (unsorted)");
}

// Looks through the unsorted list, oldest first, and files everything that is not exactly right.
// The only chance of a chunk to be split without being filed is to be the remainder of the previous
// split: runs of small requests stay together.
template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::take_unsorted(ThreadState& thread, ArenaType& arena,
                                       const Request& request) {
  constexpr int kChunksMax = 10000;
  Chunk* unsorted = arena.bin(kUnsortedBin);
  if (View::prev_link(unsorted) == unsorted) return nullptr;
  const bool cacheable = is_cacheable(request.policy);
  bool cached_one = false;
  size_t scanned = 0;
  for (int filed = 0; filed < kChunksMax; ++filed) {
    Chunk* chunk = View::prev_link(unsorted);
    if (chunk == unsorted) break;
    check_unsorted(arena, chunk);
    const size_t bytes = View::size(chunk);
    Chunk* before = View::prev_link(chunk);
    if (request.policy <= kSmallPolicyMax && before == unsorted && chunk == arena.last_remainder &&
        bytes > request.bytes + kMinChunk) {
      return split_last_remainder(arena, chunk, request);
    }
    View::prev_link(unsorted) = before;
    View::next_link(before) = unsorted;
    if (bytes == request.bytes) {
      View::set_prev_in_use(View::after(chunk, bytes));
      if (thread.owned == nullptr) [[unlikely]]
        create_cache_inside(thread, arena);
      if (!cacheable || !cache_has_room(thread, bytes)) return chunk;
      cache_push(thread, hand_out(arena, chunk, request), bytes);
      cached_one = true;
      continue;  // At most a cache bin's worth of these.
    }
    file_in_bin(arena, chunk);
    ++scanned;  // Those before the first that fits count, too.
    if (cached_one && settings_.cache_unsorted_limit > 0 &&
        scanned > settings_.cache_unsorted_limit) {
      break;
    }
  }
  return cached_one ? cache_pop(thread, request.bytes) : nullptr;
}

template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::split_last_remainder(ArenaType& arena, Chunk* chunk,
                                              const Request& request) {
  Chunk* unsorted = arena.bin(kUnsortedBin);
  View::prev_link(unsorted) = unsorted;
  View::next_link(unsorted) = unsorted;
  return split_free(arena, chunk, request, true);
}

// Cuts a free chunk that is in no list; the rest, if it can be a chunk, goes to the front of the
// unsorted list.
template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::split_free(ArenaType& arena, Chunk* chunk, const Request& request,
                                    bool remember) {
  const size_t bytes = View::size(chunk);
  const size_t rest_bytes = bytes - request.bytes;
  if (rest_bytes < kMinChunk) {
    View::set_prev_in_use(View::after(chunk, bytes));
    return chunk;
  }
  Chunk* rest = View::after(chunk, request.bytes);
  View::set_head(chunk, request.bytes | kPrevInUse);
  push_unsorted(arena, rest, rest_bytes);
  if (remember) arena.last_remainder = rest;
  return chunk;
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::file_in_bin(ArenaType& arena, Chunk* chunk) {
  const size_t bytes = View::size(chunk);
  const size_t index = BinsOf::index(bytes);
  arena.bin_map[index / 64] |= uint64_t{1} << (index % 64);
  if (!BinsOf::is_small(bytes)) {
    file_in_large_bin(arena, chunk, index);
    return;
  }
  Chunk* bin = arena.bin(index);
  Chunk* first = View::next_link(bin);
  View::prev_link(chunk) = bin;
  View::next_link(chunk) = first;
  View::prev_link(first) = chunk;
  View::next_link(bin) = chunk;
}

// Large bins descend. The first chunk of each size is also in the by-size list (circular); a chunk
// of a size that is there already goes second, so that the by-size list need not change.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::file_in_large_bin(ArenaType& arena, Chunk* chunk, size_t index) {
  const size_t bytes = View::size(chunk);
  Chunk* bin = arena.bin(index);
  Chunk* before = bin;                  // Becomes the neighbour towards the larger ones.
  Chunk* after = View::next_link(bin);  // And the one towards the smaller ones.
  if (after == bin) {
    View::next_size_link(chunk) = chunk;
    View::prev_size_link(chunk) = chunk;
  } else if (bytes < View::size(View::prev_link(bin))) {
    // Smaller than all: the end of both lists. The common case after splits, worth its own test.
    Chunk* largest = View::next_link(bin);
    before = View::prev_link(bin);
    after = bin;
    View::next_size_link(chunk) = largest;
    View::prev_size_link(chunk) = View::prev_size_link(largest);
    View::next_size_link(View::prev_size_link(largest)) = chunk;
    View::prev_size_link(largest) = chunk;
  } else {
    while (bytes < View::size(after)) after = View::next_size_link(after);
    if (bytes == View::size(after)) {
      View::next_size_link(chunk) = nullptr;
      View::prev_size_link(chunk) = nullptr;
      after = View::next_link(after);
    } else {
      View::next_size_link(chunk) = after;
      View::prev_size_link(chunk) = View::prev_size_link(after);
      if (View::next_size_link(View::prev_size_link(after)) != after) {
        base::fatal("malloc(): largebin double linked list corrupted (nextsize)");
      }
      View::next_size_link(View::prev_size_link(after)) = chunk;
      View::prev_size_link(after) = chunk;
    }
    before = View::prev_link(after);
    if (View::next_link(before) != after) {
      base::fatal("malloc(): largebin double linked list corrupted (bk)");
    }
  }
  View::prev_link(chunk) = before;
  View::next_link(chunk) = after;
  View::prev_link(after) = chunk;
  View::next_link(before) = chunk;
}

// The smallest adequate chunk of the request's own large bin; not the first of its size if there is
// another, to spare the by-size list.
template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::take_large(ArenaType& arena, const Request& request) {
  // A large request may need a chunk just within the small bins of this layout: there the next step
  // finds it.
  if (BinsOf::is_small(request.bytes)) return nullptr;
  Chunk* bin = arena.bin(BinsOf::index(request.bytes));
  Chunk* largest = View::next_link(bin);
  if (largest == bin || View::size(largest) < request.bytes) return nullptr;
  Chunk* chunk = View::prev_size_link(largest);
  while (View::size(chunk) < request.bytes) chunk = View::prev_size_link(chunk);
  if (chunk != View::prev_link(bin) && View::size(chunk) == View::size(View::next_link(chunk))) {
    chunk = View::next_link(chunk);
  }
  unlink(chunk);
  return split_free(arena, chunk, request, false);
}

// The smallest chunk of the first non-empty bin above the request's own.
template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::take_next_bin(ArenaType& arena, const Request& request) {
  const bool own_bin_seen = !BinsOf::is_small(request.bytes) || request.policy <= kSmallPolicyMax;
  size_t index = BinsOf::index(request.bytes) + (own_bin_seen ? 1 : 0);
  while (index < kBinCount) {
    const uint64_t above = arena.bin_map[index / 64] & (~uint64_t{0} << (index % 64));
    if (above == 0) {
      index = (index / 64 + 1) * 64;
      continue;
    }
    index = index / 64 * 64 + static_cast<size_t>(std::countr_zero(above));
    Chunk* bin = arena.bin(index);
    Chunk* chunk = View::prev_link(bin);
    if (chunk != bin) {
      unlink(chunk);
      return split_free(arena, chunk, request, request.policy <= kSmallPolicyMax);
    }
    // Only here is the bit of an empty bin cleared: frees need not look.
    arena.bin_map[index / 64] &= ~(uint64_t{1} << (index % 64));
    ++index;
  }
  return nullptr;
}

template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::take_top(ArenaType& arena, const Request& request) {
  const size_t bytes = arena.top_bytes();
  if (bytes > arena.system_bytes) base::fatal("malloc(): corrupted top size");
  if (bytes < request.bytes + kMinChunk) return nullptr;
  Chunk* chunk = arena.top;
  arena.top = View::after(chunk, request.bytes);
  View::set_head(arena.top, (bytes - request.bytes) | kPrevInUse);
  View::set_head(chunk, request.bytes | kPrevInUse);
  return chunk;
}

}  // namespace heapledger::heap
