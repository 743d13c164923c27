// SPDX-License-Identifier: Apache-2.0
//
// Where the memory is that no block has: for an analysis of a model at rest. Slow.
//
// What is visited lies outside of every live block; between two live chunks the visits tile the
// memory without gaps, but for pieces below the smallest chunk and what others moved the break by.
#pragma once

#include "interposer/heap/allocator.h"

namespace heapledger::heap {

// Calls visit(begin, end, kind) for the arenas' memory; caches are visit_cache()'s.
template <class L, OperatingSystem Os>
template <class Visit>
void Allocator<L, Os>::visit_free(const Visit& visit) {
  if (is_untouched()) return;
  for_each_arena([&](ArenaType& arena) {
    const AdminScope scope(*this, arena);
    if (arena.top == nullptr) return;
    visit_lists(arena, visit);
    const uintptr_t top = base::address_of(arena.top);
    visit(top, top + arena.top_bytes(), FreeKind::kTop);
    if (&arena != &main_) visit_heaps(arena, visit);
  });
}

template <class L, OperatingSystem Os>
template <class Visit>
void Allocator<L, Os>::visit_lists(ArenaType& arena, const Visit& visit) {
  const auto visit_chunk = [&](const Chunk* chunk) {
    const uintptr_t begin = base::address_of(chunk);
    visit(begin, begin + View::size(chunk), FreeKind::kBin);
  };
  for (size_t index = kUnsortedBin; index < ArenaType::kBinHeads; ++index) {
    Chunk* bin = arena.bin(index);
    for (Chunk* chunk = View::next_link(bin); chunk != bin; chunk = View::next_link(chunk)) {
      visit_chunk(chunk);
    }
  }
  if (!rules_.has_fastbins) return;
  for (size_t index = 0; index < FastArenaType::kFastBins; ++index) {
    for (const Chunk* chunk = with_fast(arena).first_fast(index); chunk != nullptr;) {
      visit_chunk(chunk);
      const auto* next = static_cast<FreeEntry*>(View::block(chunk))->next();
      chunk = next == nullptr ? nullptr : View::of_block(next);
    }
  }
}

// Headers, fences, and what is accessible beyond the end of use.
template <class L, OperatingSystem Os>
template <class Visit>
void Allocator<L, Os>::visit_heaps(ArenaType& arena, const Visit& visit) {
  for (HeapType* heap = heap_of(arena.top); heap != nullptr; heap = heap->previous) {
    visit(heap->begin(), base::address_of(first_chunk(heap)), FreeKind::kOwn);
    const uintptr_t committed = heap->begin() + heap->committed_bytes();
    if (committed > heap->end()) visit(heap->end(), committed, FreeKind::kTop);
    if (heap != heap_of(arena.top))
      visit(heap->end() - 2 * kFenceBytes, heap->end(), FreeKind::kOwn);
  }
}

// A thread's cache: the blocks in it, and the chunk it is in itself.
template <class L, OperatingSystem Os>
template <class Visit>
void Allocator<L, Os>::visit_cache(const ThreadState& thread, const Visit& visit) {
  const Cache* cache = thread.owned;
  if (cache == nullptr) return;
  const auto visit_block = [&](const void* block, FreeKind kind) {
    const Chunk* chunk = View::of_block(block);
    const uintptr_t begin = base::address_of(chunk);
    visit(begin, begin + View::size(chunk), kind);
  };
  visit_block(cache, FreeKind::kOwn);
  const auto visit_list = [&](const FreeEntry* entry) {
    for (; entry != nullptr; entry = entry->next()) visit_block(entry, FreeKind::kCache);
  };
  for (const FreeEntry* entry : cache->entries) visit_list(entry);
  if (!rules_.has_large_cache) return;
  for (const FreeEntry* entry : cache->large) visit_list(entry);
}

}  // namespace heapledger::heap
