// SPDX-License-Identifier: Apache-2.0
//
// free: what a pointer must look like, where a freed chunk goes (cache, fastbin, merged into
// unsorted or top), what that triggers.
//
// The checks are glibc's, with its texts, plus one that the header makes possible: a freed chunk is
// marked in the word that holds a live block's id, which finds most double frees exactly, also
// across threads.
#pragma once

#include "interposer/base/fatal.h"
#include "interposer/heap/allocator.h"
#include "interposer/heap/user_data.h"

namespace heapledger::heap {

// ---- Is this a live block?

template <class L, OperatingSystem Os>
void Allocator<L, Os>::fatal_foreign(Use use) {
  base::fatal(use == Use::kFree ? "free(): invalid pointer" : "realloc(): invalid pointer");
}

template <class L, OperatingSystem Os>
bool Allocator<L, Os>::owns(const void* pointer) const {
  const uintptr_t address = base::address_of(pointer);
  return in_main_range(address) || page_map_.lookup(address) != PageState::kForeign;
}

template <class L, OperatingSystem Os>
Checked Allocator<L, Os>::check_slow(const void* block, Use use) {
  const Chunk* chunk = View::of_block(block);
  const uintptr_t address = base::address_of(chunk);
  const bool aligned = base::is_aligned(address, kAlignment);
  if (in_arenas(base::address_of(block))) {
    if (!aligned || !in_arenas(address)) fatal_foreign(use);
    check_arena_chunk(chunk, use);
  } else if (page_map_.lookup(address) == PageState::kMapped) {
    if (!aligned) fatal_foreign(use);
    check_mapped_chunk(chunk, use);
  } else {
    return {};
  }
  return {true, id_of(block)};
}

// glibc's words for a size that no chunk can have.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::fatal_size(const Chunk* chunk, Use use) {
  const size_t head = View::head(chunk);
  const size_t bytes = head & ~kFlagMask;
  const bool is_free = use == Use::kFree;
  if ((head & kIsMapped) != 0) {
    base::fatal(is_free ? "munmap_chunk(): invalid pointer" : "mremap_chunk(): invalid pointer");
  }
  // A size of 0 wraps around too.
  if (base::address_of(chunk) >= 0 - bytes) fatal_foreign(use);
  base::fatal(is_free ? "free(): invalid size" : "realloc(): invalid old size");
}

// All reads are of words that do not change while the block is live, or by relaxed atomics: no
// lock.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::check_arena_chunk(const Chunk* chunk, Use use) {
  const size_t head = View::head(chunk);
  const size_t bytes = head & ~kFlagMask;
  const uintptr_t end = base::address_of(chunk) + bytes;
  if (View::mark(chunk) == kFreedMark) fatal_double_free(chunk, use);
  if (bytes < kMinChunk || (head & kIsMapped) != 0 || end < base::address_of(chunk)) {
    fatal_size(chunk, use);
  }
  if (use == Use::kFree && is_cacheable(View::policy_size_of(head))) return;
  // The flag says where the arena is to be found. In a heap, only a free chunk has none, and to
  // glibc lies outside the main arena; elsewhere, glibc would take the program's data for an arena.
  const bool in_heap = &arena_at(chunk) != &main_;
  if (in_heap && (head & kNonMain) == 0) {
    base::fatal(use == Use::kRealloc && bytes >= main_.system_bytes
                    ? "realloc(): invalid old size"
                    : "double free or corruption (out)");
  }
  if (!in_heap && (head & kNonMain) != 0) fatal_foreign(use);
  const Chunk* next = View::after(chunk, bytes);
  if (!in_arenas(end)) fatal_end(chunk, use);
  const bool is_fast = View::policy_size_of(head) <= settings_.fast_chunk_max;
  if (use == Use::kFree && !is_fast && !View::prev_in_use(next)) fatal_double_free(chunk, use);
  if (View::size(next) < kFenceBytes) {
    base::fatal(use == Use::kRealloc ? "realloc(): invalid next size"
                : is_fast            ? "free(): invalid next size (fast)"
                                     : "free(): invalid next size (normal)");
  }
  // A chunk in a bin. glibc notices where realloc moves it, and not where it stays.
  if (use == Use::kRealloc && !View::prev_in_use(next)) {
    base::fatal("double free or corruption (!prev)");
  }
}

// The chunk ends outside our memory. The process ends here in any case: the lock is not needed for
// a choice of words.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::fatal_end(const Chunk* chunk, Use use) {
  const ArenaType& arena = arena_at(chunk);
  if (use == Use::kRealloc) {
    base::fatal(View::size(chunk) >= arena.system_bytes ? "realloc(): invalid old size"
                                                        : "realloc(): invalid next size");
  }
  base::fatal(chunk == arena.top ? "double free or corruption (top)"
                                 : "double free or corruption (out)");
}

// No lock, as in fatal_end().
template <class L, OperatingSystem Os>
void Allocator<L, Os>::fatal_double_free(const Chunk* chunk, Use use) {
  if (use == Use::kRealloc) base::fatal("realloc(): invalid pointer");
  ArenaType& arena = arena_at(chunk);
  const size_t policy = View::policy_size(chunk);
  if (policy >= kMinChunk && policy <= settings_.fast_chunk_max &&
      with_fast(arena).first_fast(BinsOf::fast_index(View::size(chunk))) == chunk) {
    base::fatal("double free or corruption (fasttop)");
  }
  if (is_cacheable(policy)) base::fatal("free(): double free detected in tcache 2");
  // As in check_arena_chunk().
  if (&arena != &main_ && (View::head(chunk) & kNonMain) == 0) {
    base::fatal("double free or corruption (out)");
  }
  // A chunk that became the top's start and was left behind, inside it, has the top's end.
  const uintptr_t top_end = base::address_of(arena.top) + arena.top_bytes();
  if (chunk == arena.top) base::fatal("double free or corruption (top)");
  if (arena.contiguous && base::address_of(View::next(chunk)) >= top_end) {
    base::fatal("double free or corruption (out)");
  }
  base::fatal("double free or corruption (!prev)");
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::check_mapped_chunk(const Chunk* chunk, Use use) {
  const size_t head = View::head(chunk);
  const size_t offset = front_offset(chunk);
  const uintptr_t begin = base::address_of(chunk) - offset;
  const size_t length = View::mapped_bytes(chunk) + offset;
  const size_t in_page = base::address_of(View::block(chunk)) & (base::kPageBytes - 1);
  const bool good = (head & kIsMapped) != 0 && offset <= base::address_of(chunk) &&
                    base::is_aligned(begin | length, base::kPageBytes) &&
                    length >= base::kPageBytes && (in_page & (in_page - 1)) == 0;
  if (!good) fatal_size(chunk, use);
  if (View::mark(chunk) == kFreedMark) {
    base::fatal(use == Use::kFree ? "free(): double free detected in tcache 2"
                                  : "realloc(): invalid pointer");
  }
}

template <class L, OperatingSystem Os>
size_t Allocator<L, Os>::usable_size(const void* block) {
  if (block == nullptr) return 0;
  const Chunk* chunk = View::of_block(block);
  const bool is_mapped = (View::head(chunk) & kIsMapped) != 0;
  return is_mapped || View::in_use(chunk) ? View::usable(chunk) : 0;
}

// ---- Release.

template <class L, OperatingSystem Os>
bool Allocator<L, Os>::release_uncached(ThreadState& thread, void* block) {
  if (!check_slow(block, Use::kFree).ours) return false;
  release_checked(thread, block);
  return true;
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::release_slow(ThreadState& thread, Chunk* chunk) {
  const bool is_mapped = (View::head(chunk) & kIsMapped) != 0;
  const size_t policy = View::policy_size(chunk);
  const bool may_be_cached = !is_mapped || rules_.mapped_blocks_are_cached;
  if (thread.owned == nullptr && !thread.ended && may_be_cached && is_born_by_free(policy)) {
    create_cache(thread);
    if (is_cacheable(policy) && cache_push(thread, chunk, View::size(chunk))) return;
  }
  if (cache_large_max_ != 0 && may_be_cached && large_push(thread, chunk)) return;
  if (is_mapped) {
    release_mapped(chunk);
  } else {
    release_in_arena(thread, chunk);
  }
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::release_mapped(Chunk* chunk) {
  if (!page_map_.take_mapped(base::address_of(chunk))) {
    base::fatal("munmap_chunk(): invalid pointer");
  }
  raise_threshold(View::size(chunk));
  unmap_block(chunk);
}

template <class L, OperatingSystem Os>
template <class Free>
inline void Allocator<L, Os>::release_locked(ThreadState& thread, Chunk* chunk,
                                             const Free& free_in) {
  if (is_nested(thread)) [[unlikely]] {
    defer(thread, chunk);
    return;
  }
  if (thread.deferred != nullptr) [[unlikely]]
    release_deferred(thread);
  ArenaType& arena = arena_of_chunk(chunk);
  const ArenaScope<L> scope(thread, arena, is_single_threaded());
  free_in(arena);
}

// Apart from merging, which needs many registers.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::release_fast(ThreadState& thread, Chunk* chunk) {
  const size_t head = View::head(chunk);
  if (View::policy_size_of(head) <= __atomic_load_n(&fast_unlocked_max_, __ATOMIC_RELAXED) &&
      in_break_or_heap(base::address_of(chunk)) && release_unlocked(thread, chunk, head)) {
    return;
  }
  release_locked(thread, chunk,
                 [=, this](ArenaType& arena) { free_fast(arena, chunk, View::size(chunk)); });
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::release_merging(ThreadState& thread, Chunk* chunk) {
  release_locked(thread, chunk,
                 [=, this](ArenaType& arena) { free_merging(arena, chunk, View::size(chunk)); });
}

// Frees what the allocator itself split off: where the version has it so, the cache comes first as
// for the program's own free. Lock held.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::free_chunk(ThreadState& thread, ArenaType& arena, Chunk* chunk) {
  if (rules_.internal_frees_are_cached && is_cacheable(View::policy_size(chunk)) &&
      cache_push(thread, chunk, View::size(chunk))) {
    return;
  }
  free_past_cache(arena, chunk);
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::free_past_cache(ArenaType& arena, Chunk* chunk) {
  const size_t head = View::head(chunk);
  const size_t bytes = head & ~kFlagMask;
  if (View::policy_size_of(head) <= settings_.fast_chunk_max) {
    free_fast(arena, chunk, bytes);
  } else {
    free_merging(arena, chunk, bytes);
  }
}

// Fast chunks are neither merged nor do they trigger anything, even where they touch the top. Lock
// held.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::free_fast(ArenaType& arena, Chunk* chunk, size_t bytes) {
  const size_t next_bytes = View::size(View::after(chunk, bytes));
  if (next_bytes < kFenceBytes || next_bytes >= arena.system_bytes) {
    base::fatal("free(): invalid next size (fast)");
  }
  if (settings_.perturb != 0) {
    fill_data(os_, View::block(chunk), settings_.perturb, bytes - View::kHeaderBytes);
  }
  const Chunk* first = with_fast(arena).first_fast(BinsOf::fast_index(bytes));
  if (first == chunk) base::fatal("double free or corruption (fasttop)");
  if (first != nullptr && View::size(first) != bytes) base::fatal("invalid fastbin entry (free)");
  push_fast(arena, chunk, bytes);
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::free_merging(ArenaType& arena, Chunk* chunk, size_t bytes) {
  Chunk* next = View::after(chunk, bytes);
  if (chunk == arena.top) base::fatal("double free or corruption (top)");
  if (arena.contiguous &&
      base::address_of(next) >= base::address_of(arena.top) + arena.top_bytes()) {
    base::fatal("double free or corruption (out)");
  }
  if (!View::prev_in_use(next)) base::fatal("double free or corruption (!prev)");
  const size_t next_bytes = View::size(next);
  if (next_bytes < kFenceBytes || next_bytes >= arena.system_bytes) {
    base::fatal("free(): invalid next size (normal)");
  }
  if (settings_.perturb != 0) {
    fill_data(os_, View::block(chunk), settings_.perturb, bytes - View::kHeaderBytes);
  }
  // Stays readable where the chunk is merged into the one before: a second free of it is then
  // recognised.
  View::set_mark(chunk, kFreedMark);
  give_back_after(arena, merge_and_file(arena, chunk, bytes, false));
}

// What a free does besides, if it made so large a free chunk.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::give_back_after(ArenaType& arena, size_t merged_bytes) {
  if (merged_bytes < kConsolidateBytes) return;
  if (arena.may_have_fast()) consolidate(arena);
  if (&arena != &main_) {
    trim_heap(arena);  // Even where the top is small: its heap may have become empty.
    return;
  }
  const size_t threshold = __atomic_load_n(&settings_.trim_threshold, __ATOMIC_RELAXED);
  if (arena.top_bytes() >= threshold) trim_top(arena, settings_.top_pad);
}

// Merges a chunk with its free neighbours; the result becomes the top or goes to the front of the
// unsorted list or, where the version has it so, of its small bin. Returns its size.
template <class L, OperatingSystem Os>
size_t Allocator<L, Os>::merge_and_file(ArenaType& arena, Chunk* chunk, size_t bytes,
                                        bool consolidating) {
  Chunk* next = View::after(chunk, bytes);
  if (!View::prev_in_use(chunk)) {
    const size_t before_bytes = View::prev_size(chunk);
    chunk = View::at(chunk, -static_cast<ptrdiff_t>(before_bytes));
    if (View::size(chunk) != before_bytes) {
      base::fatal(consolidating ? "corrupted size vs. prev_size in fastbins"
                                : "corrupted size vs. prev_size while consolidating");
    }
    bytes += before_bytes;
    unlink(chunk);
  }
  if (next == arena.top) {
    bytes += View::size(next);
    View::set_head(chunk, bytes | kPrevInUse);
    arena.top = chunk;
    return bytes;
  }
  if (View::in_use(next)) {
    View::clear_prev_in_use(next);
  } else {
    bytes += View::size(next);
    unlink(next);
  }
  if (rules_.small_frees_are_filed && BinsOf::is_small(bytes) && !consolidating) {
    View::set_head(chunk, bytes | kPrevInUse);
    View::set_foot(chunk, bytes);
    file_in_bin(arena, chunk);
  } else {
    push_unsorted(arena, chunk, bytes);
  }
  return bytes;
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::push_unsorted(ArenaType& arena, Chunk* chunk, size_t bytes) {
  Chunk* unsorted = arena.bin(kUnsortedBin);
  Chunk* first = View::next_link(unsorted);
  if (View::prev_link(first) != unsorted) base::fatal("free(): corrupted unsorted chunks");
  View::next_link(chunk) = first;
  View::prev_link(chunk) = unsorted;
  if (!BinsOf::is_small(bytes)) {
    View::next_size_link(chunk) = nullptr;
    View::prev_size_link(chunk) = nullptr;
  }
  View::next_link(unsorted) = chunk;
  View::prev_link(first) = chunk;
  View::set_head(chunk, bytes | kPrevInUse);
  View::set_foot(chunk, bytes);
}

// Takes a free chunk out of its bin, and out of the by-size list where it is in it.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::unlink(Chunk* chunk) {
  if (View::size(chunk) != View::prev_size(View::next(chunk))) {
    base::fatal("corrupted size vs. prev_size");
  }
  Chunk* next = View::next_link(chunk);
  Chunk* before = View::prev_link(chunk);
  if (View::prev_link(next) != chunk || View::next_link(before) != chunk) {
    base::fatal("corrupted double-linked list");
  }
  View::prev_link(next) = before;
  View::next_link(before) = next;
  if (BinsOf::is_small(View::size(chunk)) || View::next_size_link(chunk) == nullptr) return;
  Chunk* smaller = View::next_size_link(chunk);
  Chunk* larger = View::prev_size_link(chunk);
  if (View::prev_size_link(smaller) != chunk || View::next_size_link(larger) != chunk) {
    base::fatal("corrupted double-linked list (not small)");
  }
  // The next chunk of the list takes its place if it has the same size, which it has iff it is not
  // in the by-size list itself.
  const bool has_heir = View::next_size_link(next) == nullptr;
  if (!has_heir) {
    View::prev_size_link(smaller) = larger;
    View::next_size_link(larger) = smaller;
    return;
  }
  const bool alone = smaller == chunk;
  View::next_size_link(next) = alone ? next : smaller;
  View::prev_size_link(next) = alone ? next : larger;
  if (!alone) {
    View::prev_size_link(smaller) = next;
    View::next_size_link(larger) = next;
  }
}

// Merges all fast chunks with their neighbours, smallest sizes first.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::consolidate(ArenaType& arena) {
  if (!rules_.has_fastbins) return;
  arena.set_may_have_fast(false);
  for (size_t index = 0; index < FastArenaType::kFastBins; ++index) {
    if (with_fast(arena).first_fast(index) == nullptr) continue;
    // Acquire, as in first_fast(): others may have pushed meanwhile.
    Chunk* chunk = __atomic_exchange_n(&with_fast(arena).fast[index], nullptr, __ATOMIC_ACQUIRE);
    while (chunk != nullptr) {
      if (!base::is_aligned(base::address_of(chunk), kAlignment)) {
        base::fatal("malloc_consolidate(): unaligned fastbin chunk detected");
      }
      const size_t bytes = View::size(chunk);
      if (bytes < kMinChunk || BinsOf::fast_index(bytes) != index) {
        base::fatal("malloc_consolidate(): invalid chunk size");
      }
      auto* entry = static_cast<FreeEntry*>(View::block(chunk))->next();
      __builtin_prefetch(entry, 1);
      merge_and_file(arena, chunk, bytes, true);
      chunk = entry == nullptr ? nullptr : View::of_block(entry);
    }
  }
}

}  // namespace heapledger::heap
