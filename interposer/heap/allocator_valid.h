// SPDX-License-Identifier: Apache-2.0
//
// The invariants of arena.h as code: a walk over everything an arena holds. For tests; slow.
#pragma once

#include <algorithm>

#include "interposer/heap/allocator.h"

namespace heapledger::heap {

template <class L, OperatingSystem Os>
bool Allocator<L, Os>::arena_is_valid(const ThreadState* thread, const char** why) {
  ensure_initialised();
  const char* fault = nullptr;
  for_each_arena([&](ArenaType& arena) {
    const AdminScope scope(*this, arena);
    if (fault == nullptr) fault = fault_in_arena(arena);
  });
  if (fault == nullptr && thread != nullptr) fault = fault_in_cache(*thread);
  if (why != nullptr) *why = fault;
  return fault == nullptr;
}

template <class L, OperatingSystem Os>
const char* Allocator<L, Os>::fault_in_arena(ArenaType& arena) {
  size_t walked_free = 0;
  size_t listed_free = 0;
  if (const char* fault = fault_in_parts(arena, &walked_free)) return fault;
  if (const char* fault = fault_in_bins(arena, &listed_free)) return fault;
  if (walked_free != listed_free && (&arena != &main_ || segment_count_ <= kSegmentsMax)) {
    return "3: the free chunks of the walk are not those of the bins";
  }
  return fault_in_fast_bins(arena);
}

// Walks every contiguous part from its first chunk to its fences or to the top, and counts the
// chunks that are in bins.
template <class L, OperatingSystem Os>
const char* Allocator<L, Os>::fault_in_parts(ArenaType& arena, size_t* free_chunks) {
  if (arena.top == nullptr) return nullptr;
  if (arena.top_bytes() < kMinChunk && &arena == &main_) return "1: the top is too small";
  if (!View::prev_in_use(arena.top)) return "2: the chunk before the top should be part of it";
  // malloc_trim() of the least possible top adds to it, in glibc too, and nobody notes the maximum.
  if (arena.system_bytes > arena.system_bytes_max && &arena != &main_) {
    return "6: more system memory than ever";
  }
  size_t held = 0;
  if (&arena == &main_) {
    for (size_t i = 0; i < segment_count_ && i < kSegmentsMax; ++i) {
      const char* fault = fault_in_part(arena, segments_[i], nullptr, &held, free_chunks);
      if (fault != nullptr) return fault;
    }
    return held > arena.system_bytes ? "6: the chunks are more than the system gave" : nullptr;
  }
  for (HeapType* heap = heap_of(arena.top); heap != nullptr; heap = heap->previous) {
    if (heap->arena != &arena) return "7: a heap of another arena";
    if (heap->bytes > heap->committed_bytes()) return "7: more in use than is accessible";
    held += base::address_of(first_chunk(heap)) - heap->begin();
    const auto* last_fence = reinterpret_cast<const Chunk*>(heap->end() - kFenceBytes);
    const char* fault = fault_in_part(arena, first_chunk(heap), last_fence, &held, free_chunks);
    if (fault != nullptr) return fault;
  }
  return held != arena.system_bytes ? "6: the chunks are not what the system gave" : nullptr;
}

// `last_fence`: where it is if the part is not the one with the top; null where two fences in a row
// tell.
template <class L, OperatingSystem Os>
const char* Allocator<L, Os>::fault_in_part(ArenaType& arena, Chunk* first, const Chunk* last_fence,
                                            size_t* held, size_t* free_chunks) {
  const uintptr_t limit =
      base::address_of(first) + std::max(arena.system_bytes, arena.system_bytes_max);
  bool prev_free = false;
  for (Chunk* chunk = first;;) {
    const size_t bytes = View::size(chunk);
    *held += bytes;
    if (chunk == arena.top) return nullptr;
    Chunk* next = View::after(chunk, bytes);
    if (next == last_fence || (bytes == kFenceBytes && View::size(next) == kFenceBytes)) {
      *held += kFenceBytes;
      return nullptr;
    }
    if (const char* fault = fault_in_chunk(chunk, limit, prev_free)) return fault;
    prev_free = !View::prev_in_use(next);
    if (prev_free) ++*free_chunks;
    chunk = next;
  }
}

template <class L, OperatingSystem Os>
const char* Allocator<L, Os>::fault_in_chunk(const Chunk* chunk, uintptr_t end, bool prev_free) {
  const size_t bytes = View::size(chunk);
  if (!base::is_aligned(base::address_of(chunk), kAlignment)) return "1: misaligned chunk";
  if (bytes < kFenceBytes || base::address_of(chunk) + bytes > end) return "1: impossible size";
  if (prev_free == View::prev_in_use(chunk)) return "2: kPrevInUse is wrong";
  const Chunk* next = View::after(chunk, bytes);
  if (View::prev_in_use(next)) return nullptr;
  if (prev_free) return "2: two free neighbours";
  if (View::prev_size(next) != bytes) return "3: a free chunk's foot is not its size";
  return nullptr;
}

template <class L, OperatingSystem Os>
const char* Allocator<L, Os>::fault_in_bins(ArenaType& arena, size_t* free_chunks) {
  for (size_t index = kUnsortedBin; index < kBinCount; ++index) {
    if (const char* fault = fault_in_bin(arena, index, free_chunks)) return fault;
    if (index <= kUnsortedBin) continue;
    if (View::next_link(arena.bin(index)) != arena.bin(index) &&
        (arena.bin_map[index / 64] >> (index % 64) & 1) == 0) {
      return "5: a bin with chunks is not in the map";
    }
    if (index > BinsOf::index(BinsOf::kSmallMax)) {
      if (const char* fault = fault_in_sizes(arena, index)) return fault;
    }
  }
  return nullptr;
}

template <class L, OperatingSystem Os>
const char* Allocator<L, Os>::fault_in_bin(ArenaType& arena, size_t index, size_t* free_chunks) {
  Chunk* bin = arena.bin(index);
  size_t bytes_before = SIZE_MAX;
  for (Chunk* chunk = View::next_link(bin); chunk != bin; chunk = View::next_link(chunk)) {
    ++*free_chunks;
    const size_t bytes = View::size(chunk);
    if (View::prev_link(View::next_link(chunk)) != chunk ||
        View::next_link(View::prev_link(chunk)) != chunk) {
      return "4: broken links";
    }
    if (View::in_use(chunk)) return "3: a chunk in a bin looks allocated";
    if (index == kUnsortedBin) continue;
    if (BinsOf::index(bytes) != index) return "4: a chunk in the wrong bin";
    if (bytes > bytes_before) return "4: a large bin that does not descend";
    bytes_before = bytes;
  }
  return nullptr;
}

// The by-size list of a large bin holds exactly the first chunk of each size, in order.
template <class L, OperatingSystem Os>
const char* Allocator<L, Os>::fault_in_sizes(ArenaType& arena, size_t index) {
  Chunk* bin = arena.bin(index);
  Chunk* first = View::next_link(bin);
  if (first == bin) return nullptr;
  Chunk* expected = first;
  size_t bytes_before = 0;
  for (Chunk* chunk = first; chunk != bin; chunk = View::next_link(chunk)) {
    const bool is_first = View::size(chunk) != bytes_before;
    bytes_before = View::size(chunk);
    if (is_first != (View::next_size_link(chunk) != nullptr)) return "4: by-size list membership";
    if (!is_first) continue;
    if (chunk != expected) return "4: by-size list order";
    expected = View::next_size_link(chunk);
    if (View::prev_size_link(expected) != chunk) return "4: by-size list links";
  }
  return expected == first ? nullptr : "4: by-size list is not circular";
}

template <class L, OperatingSystem Os>
const char* Allocator<L, Os>::fault_in_fast_bins(ArenaType& arena) {
  if (!rules_.has_fastbins) return nullptr;
  for (size_t index = 0; index < FastArenaType::kFastBins; ++index) {
    for (Chunk* chunk = with_fast(arena).first_fast(index); chunk != nullptr;) {
      if (is_single_threaded() && !arena.may_have_fast()) return "4: fast chunks nobody knows of";
      if (BinsOf::fast_index(View::size(chunk)) != index) return "4: wrong fastbin";
      if (!View::in_use(chunk)) return "3: a fast chunk looks free";
      auto* next = static_cast<FreeEntry*>(View::block(chunk))->next();
      chunk = next == nullptr ? nullptr : View::of_block(next);
    }
  }
  return nullptr;
}

template <class L, OperatingSystem Os>
const char* Allocator<L, Os>::fault_in_cache(const ThreadState& thread) {
  if (thread.cache != thread.owned) return "the cache is in use";
  if (thread.cache == nullptr) return nullptr;
  for (size_t index = 0; index < Cache::kBins; ++index) {
    size_t count = 0;
    for (const FreeEntry* entry = thread.cache->entries[index]; entry != nullptr;
         entry = entry->next()) {
      ++count;
      const Chunk* chunk = View::of_block(entry);
      if (Cache::index(View::size(chunk)) != index) return "4: wrong cache bin";
      if (!View::in_use(chunk)) return "3: a cached chunk looks free";
      if (L::kHasId && View::mark(chunk) != kFreedMark) return "a cached chunk is not marked";
    }
    if (count != thread.cache->counts[index] || count > cache_count_) return "a wrong cache count";
  }
  return nullptr;
}

}  // namespace heapledger::heap
