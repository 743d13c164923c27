// SPDX-License-Identifier: Apache-2.0
//
// realloc and memalign: blocks that change size, and blocks at chosen addresses.
#pragma once

#include <errno.h>

#include "interposer/heap/allocator.h"
#include "interposer/heap/user_data.h"

namespace heapledger::heap {

template <class L, OperatingSystem Os>
void* Allocator<L, Os>::reallocate(ThreadState& thread, void* old, size_t size,
                                   const ReleaseObserver& observer) {
  if (old == nullptr) return allocate(thread, size);
  if (size == 0) {
    observer(old);
    release_checked(thread, old);
    return nullptr;
  }
  Chunk* chunk = View::of_block(old);
  if (size > kRequestMax) {
    // A thread's first call makes its cache even so, but not for a mapped block.
    const bool is_mapped = (View::head(chunk) & kIsMapped) != 0;
    if (!is_mapped && rules_.cache_birth == CacheBirth::kAnyCall) ensure_cache(thread, 0);
    errno = ENOMEM;
    return nullptr;
  }
  if (keeps_block(chunk, size)) {
    observer(old);
    View::set_mark(chunk, 0);
    return old;
  }
  const Request request = Request::of<L>(size);
  if ((View::head(chunk) & kIsMapped) != 0) {
    return reallocate_mapped(thread, chunk, request, observer);
  }
  if (rules_.cache_birth == CacheBirth::kAnyCall) ensure_cache(thread, request.policy);
  ArenaType& arena = arena_of_chunk(chunk);
  if (is_nested(thread)) [[unlikely]] {
    void* fresh = reallocate_nested(thread, chunk, request, observer);
    if (fresh == nullptr) errno = ENOMEM;
    return fresh;
  }
  {
    const ArenaScope<L> scope(thread, arena, is_single_threaded());
    if (Chunk* resized = resize_in_arena(thread, arena, chunk, request, observer)) {
      return View::block(resized);
    }
  }
  // The arena has nothing. With several threads the cache or another arena may; glibc tries them
  // only then.
  if (is_single_threaded()) {
    errno = ENOMEM;
    return nullptr;
  }
  void* fresh = allocate(thread, size);
  if (fresh == nullptr) return nullptr;
  copy_data(os_, fresh, old, View::usable(chunk));
  observer(old);
  if (rules_.internal_frees_are_cached) {
    release_checked(thread, old);
  } else {
    release_in_arena(thread, chunk);
  }
  return fresh;
}

// Whether the block is handed back before anything else is asked.
template <class L, OperatingSystem Os>
bool Allocator<L, Os>::keeps_block(const Chunk* chunk, size_t size) const {
  const ReallocKeeps keeps = rules_.realloc_keeps;
  const size_t usable = View::policy_usable(chunk);
  if (keeps == ReallocKeeps::kNothing || size > usable || size > View::usable(chunk)) return false;
  if (usable - size < kAlignment) return true;
  const bool is_mapped = (View::head(chunk) & kIsMapped) != 0;
  return keeps == ReallocKeeps::kPaddingOrMappedPage && is_mapped &&
         usable - size <= base::kPageBytes;
}

// A mapped block stays one, however small it becomes, unless the kernel refuses.
template <class L, OperatingSystem Os>
void* Allocator<L, Os>::reallocate_mapped(ThreadState& thread, Chunk* old, const Request& request,
                                          const ReleaseObserver& observer) {
  if (Chunk* moved = remap_block(old, request, observer)) return View::block(moved);
  void* block = View::block(old);
  if (rules_.mapped_has_tail ? request.user <= View::usable(old)
                             : request.policy <= View::size(old) - 8) {
    View::set_mark(old, 0);
    return block;
  }
  void* fresh = allocate(thread, request.user);
  if (fresh == nullptr) return nullptr;
  copy_data(os_, fresh, block, View::usable(old));
  observer(block);
  if (!page_map_.take_mapped(base::address_of(old))) {
    base::fatal("munmap_chunk(): invalid pointer");
  }
  unmap_block(old);
  return fresh;
}

// Lock held. nullptr: no memory, nothing changed.
template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::resize_in_arena(ThreadState& thread, ArenaType& arena, Chunk* old,
                                         const Request& request, const ReleaseObserver& observer) {
  const size_t old_bytes = View::size(old);
  if (old_bytes >= arena.system_bytes) base::fatal("realloc(): invalid old size");
  const size_t next_bytes = View::size(View::after(old, old_bytes));
  if (next_bytes < kFenceBytes || next_bytes >= arena.system_bytes) {
    base::fatal("realloc(): invalid next size");
  }
  if (old_bytes < request.bytes && !grow_in_place(arena, old, request.bytes)) {
    Chunk* moved = move_chunk(thread, arena, old, request, observer);
    if (moved != old) return moved;
  }
  observer(View::block(old));
  split_tail(thread, arena, old, request);
  return hand_out(arena, old, request);
}

// Into the top or a free chunk behind, if that is enough. The chunk may then be larger than asked.
template <class L, OperatingSystem Os>
bool Allocator<L, Os>::grow_in_place(ArenaType& arena, Chunk* old, size_t bytes) {
  const size_t old_bytes = View::size(old);
  const size_t flags = View::head(old) & kFlagMask;
  Chunk* next = View::after(old, old_bytes);
  const size_t both = old_bytes + View::size(next);
  if (next == arena.top) {
    if (both < bytes + kMinChunk) return false;
    View::set_head(old, bytes | flags);
    arena.top = View::after(old, bytes);
    View::set_head(arena.top, (both - bytes) | kPrevInUse);
    return true;
  }
  if (both < bytes || View::in_use(next)) return false;
  unlink(next);
  View::set_head(old, both | flags);
  View::set_prev_in_use(View::after(old, both));
  return true;
}

// Returns the new chunk, or `old` itself, grown, where the new chunk turned out to be the one
// behind it; nullptr: no memory.
template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::move_chunk(ThreadState& thread, ArenaType& arena, Chunk* old,
                                    const Request& request, const ReleaseObserver& observer) {
  // glibc asks its malloc for nb - 15 bytes: the last few sizes that realloc takes fail there.
  if (request.policy > kRequestMax + 15) return nullptr;
  Chunk* fresh = take(thread, arena, request);
  if (fresh == nullptr) return nullptr;
  const size_t old_bytes = View::size(old);
  const bool is_mapped = (View::head(fresh) & kIsMapped) != 0;
  if (!is_mapped && fresh == View::after(old, old_bytes)) {
    const size_t flags = View::head(old) & kFlagMask;
    View::set_head(old, (old_bytes + View::size(fresh)) | flags);
    return old;
  }
  copy_data(os_, View::block(fresh), View::block(old), View::usable(old));
  observer(View::block(old));
  free_chunk(thread, arena, old);
  return fresh;
}

// Cuts an allocated chunk down to the request and frees the rest, if that can be a chunk. May trim.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::split_tail(ThreadState& thread, ArenaType& arena, Chunk* chunk,
                                  const Request& request) {
  const size_t bytes = View::size(chunk);
  const size_t rest_bytes = bytes - request.bytes;
  if (rest_bytes < kMinChunk) return;
  Chunk* rest = View::after(chunk, request.bytes);
  View::set_head(chunk, request.bytes | (View::head(chunk) & kFlagMask));
  View::set_head(rest, rest_bytes | kPrevInUse | arena.chunk_flag);
  View::set_prev_in_use(View::after(rest, rest_bytes));
  free_chunk(thread, arena, rest);
}

template <class L, OperatingSystem Os>
void* Allocator<L, Os>::allocate_aligned(ThreadState& thread, size_t alignment, size_t size) {
  if (alignment <= kAlignment) return allocate(thread, size);
  if (alignment > size_t{1} << 63) {
    errno = EINVAL;
    return nullptr;
  }
  alignment = std::bit_ceil(alignment);
  // The sum is the request that must not be too large; as it wraps in glibc 2.36, that one returns
  // a block in the wrong place.
  const Request wanted = Request::of<L>(size);
  const size_t sum = wanted.policy + alignment + kMinChunk;
  ensure_initialised();
  if (size > kRequestMax || sum < alignment || sum > kRequestMax) {
    errno = ENOMEM;
    const bool is_early = size > kRequestMax && rules_.aligned_checks_size;
    if (!is_early) look_for_arenas(thread, size, size + alignment + kMinChunk);
    return nullptr;
  }
  if (rules_.cache_birth != CacheBirth::kAnyCall) ensure_cache(thread, wanted.policy);
  if (rules_.aligned_uses_cache && is_cacheable_at_all(wanted.policy)) {
    Chunk* cached = cache_pop_aligned(thread, alignment, wanted);
    if (cached != nullptr) return View::block(cached);
  }
  const Request padded = Request::of<L>(sum);
  // A first arena is made for the bytes that are asked for, a second one for the block alone.
  const Request retried = {padded.policy, padded.bytes, size};
  Chunk* chunk = serve(thread, retried, size + alignment + kMinChunk, [&](ArenaType& arena) {
    return take_aligned(thread, arena, alignment, wanted, padded);
  });
  // What came without an arena has not been aligned yet.
  if (chunk != nullptr && (View::head(chunk) & kIsMapped) != 0)
    chunk = align_mapped(alignment, chunk);
  if (chunk == nullptr) {
    errno = ENOMEM;
    return nullptr;
  }
  return View::block(chunk);
}

// Takes enough for the worst case, then frees what lies before and behind.
template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::take_aligned(ThreadState& thread, ArenaType& arena, size_t alignment,
                                      const Request& wanted, const Request& padded) {
  Chunk* chunk = take(thread, arena, padded);
  if (chunk == nullptr) return nullptr;
  if ((View::head(chunk) & kIsMapped) != 0) return chunk;
  const size_t flag = arena.chunk_flag;
  if (const size_t lead = lead_to(alignment, chunk)) {
    Chunk* aligned = View::after(chunk, lead);
    View::set_head(aligned, (View::size(chunk) - lead) | kPrevInUse | flag);
    View::set_head(chunk, lead | (View::head(chunk) & kPrevInUse) | flag);
    if (rules_.aligned_rest_merges) {
      free_merging(arena, chunk, lead);
    } else {
      free_chunk(thread, arena, chunk);
    }
    chunk = aligned;
  }
  if (rules_.aligned_rest_merges) {
    merge_tail(arena, chunk, wanted);
  } else if (View::size(chunk) > wanted.bytes + kMinChunk) {
    split_tail(thread, arena, chunk, wanted);
  }
  return hand_out(arena, chunk, wanted);
}

// split_tail() for versions that merge at once, also what is no chunk by itself.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::merge_tail(ArenaType& arena, Chunk* chunk, const Request& request) {
  const size_t bytes = View::size(chunk);
  const size_t rest_bytes = bytes - request.bytes;
  if (rest_bytes == 0) return;
  const Chunk* next = View::after(chunk, bytes);
  const bool next_is_free = next == arena.top || !View::in_use(next);
  if (rest_bytes < kMinChunk && (rules_.aligned_short_tail_stays || !next_is_free)) return;
  Chunk* rest = View::after(chunk, request.bytes);
  View::set_head(chunk, request.bytes | (View::head(chunk) & kFlagMask));
  View::set_head(rest, rest_bytes | kPrevInUse);
  give_back_after(arena, merge_and_file(arena, rest, rest_bytes, false));
}

// Bytes to cut off in front so that the rest is aligned: 0, or enough for a chunk where that must
// be one.
template <class L, OperatingSystem Os>
size_t Allocator<L, Os>::lead_to(size_t alignment, const Chunk* chunk) const {
  const uintptr_t block = base::address_of(View::block(chunk));
  const size_t lead = base::align_up(block, alignment) - block;
  const bool is_tight = rules_.aligned_mapping_is_tight && (View::head(chunk) & kIsMapped) != 0;
  return lead == 0 || lead >= kMinChunk || is_tight ? lead : lead + alignment;
}

// Nothing of a mapping is given back: the chunk remembers where it starts. nullptr: no memory for
// that; the mapping is gone.
template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::align_mapped(size_t alignment, Chunk* chunk) {
  const size_t lead = lead_to(alignment, chunk);
  if (lead == 0) return chunk;
  Chunk* aligned = View::after(chunk, lead);
  const size_t bytes = View::size(chunk) - lead;
  page_map_.take_mapped(base::address_of(chunk));
  if (!page_map_.set(os_, base::address_of(aligned), PageState::kMapped)) {
    unmap_block(chunk);
    return nullptr;
  }
  View::set_prev_size(aligned, lead);
  View::set_head(aligned, bytes | kIsMapped | kSlack | (View::head(chunk) & kMappedTail));
  View::set_mark(aligned, 0);
  return aligned;
}

}  // namespace heapledger::heap
