// SPDX-License-Identifier: Apache-2.0
//
// Memory of secondary arenas. Each heap is 64 MiB of addresses aligned to 64 MiB, of which as much
// is made accessible as is needed; an arena that outgrows a heap gets another one, and gives the
// newest back when all of it is free. Lock of the arena held in all of this.
#pragma once

#include <sys/mman.h>

#include <new>

#include "interposer/heap/allocator.h"

namespace heapledger::heap {

// A heap with room for `bytes`, its own header included, and as much of top_pad as fits. nullptr:
// too large, or no memory.
template <class L, OperatingSystem Os>
Heap<L>* Allocator<L, Os>::reserve_heap(size_t bytes) {
  const size_t padded = bytes + settings_.top_pad;
  const bool overflows = padded < bytes;
  if (bytes > kHeapBytesMax) return nullptr;
  size_t in_use = overflows || padded > kHeapBytesMax ? kHeapBytesMax : padded;
  if (in_use < kHeapBytesMin) in_use = kHeapBytesMin;
  in_use = base::align_up(in_use, base::kPageBytes);
  const uintptr_t begin = reserve_aligned();
  if (begin == 0) return nullptr;
  void* memory = base::pointer_to(begin);
  if (!os_.mprotect(memory, in_use, PROT_READ | PROT_WRITE, Cause::kNewHeap) ||
      !page_map_.set_range(os_, begin, begin + kHeapBytesMax, PageState::kHeap)) {
    page_map_.set_range(os_, begin, begin + kHeapBytesMax, PageState::kForeign);
    os_.munmap(memory, kHeapBytesMax, Cause::kNewHeap);
    return nullptr;
  }
  advise_huge(begin, in_use);
  return new (memory) HeapType{nullptr, nullptr, in_use, in_use};
}

// Addresses for a heap. The kernel does not align: twice the length is reserved and the rest given
// back, unless the addresses behind the previous heap are remembered and still free. 0: refused.
template <class L, OperatingSystem Os>
uintptr_t Allocator<L, Os>::reserve_aligned() {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (rules_.heaps_are_noreserve ? MAP_NORESERVE : 0);
  constexpr size_t kBytes = kHeapBytesMax;
  auto reserve = [&](uintptr_t hint, size_t bytes) {
    return base::address_of(
        os_.mmap(base::pointer_to(hint), bytes, PROT_NONE, flags, Cause::kNewHeap));
  };
  auto give_back = [&](uintptr_t begin, size_t bytes) {
    if (bytes != 0) os_.munmap(base::pointer_to(begin), bytes, Cause::kNewHeap);
  };
  const uintptr_t hint = __atomic_exchange_n(&heap_hint_, 0, __ATOMIC_RELAXED);
  if (hint != 0) {
    const uintptr_t begin = reserve(hint, kBytes);
    if (begin != 0 && base::is_aligned(begin, kBytes)) return begin;
    if (begin != 0) give_back(begin, kBytes);
  }
  const uintptr_t wide = reserve(0, 2 * kBytes);
  if (wide != 0) {
    const uintptr_t begin = base::align_up(wide, kBytes);
    const size_t lead = begin - wide;
    give_back(wide, lead);
    if (lead == 0) __atomic_store_n(&heap_hint_, begin + kBytes, __ATOMIC_RELAXED);
    give_back(begin + kBytes, kBytes - lead);
    return begin;
  }
  const uintptr_t lucky = reserve(0, kBytes);
  if (lucky == 0 || base::is_aligned(lucky, kBytes)) return lucky;
  give_back(lucky, kBytes);
  return 0;
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::destroy_heap(HeapType* heap) {
  const uintptr_t begin = heap->begin();
  const HeapType* previous = heap->previous;
  // Hint and page map first: from the system call on, the addresses may be anybody's.
  uintptr_t hint = begin + kHeapBytesMax;
  __atomic_compare_exchange_n(&heap_hint_, &hint, 0, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  page_map_.set_range(os_, begin, begin + kHeapBytesMax, PageState::kForeign);
  os_.munmap(heap, kHeapBytesMax, Cause::kDestroyHeap);
  os_.on_policy(PolicyKind::kHeapDestroyed, begin, base::address_of(previous));
}

// Without top_pad, unlike everything else that grows; what was accessible before still is.
template <class L, OperatingSystem Os>
bool Allocator<L, Os>::grow_heap(HeapType* heap, size_t bytes) {
  const size_t wanted = heap->bytes + base::align_up(bytes, base::kPageBytes);
  if (bytes > kHeapBytesMax || wanted > kHeapBytesMax) return false;
  if (wanted > heap->committed) {
    void* end = base::pointer_to(heap->begin() + heap->committed);
    if (!os_.mprotect(end, wanted - heap->committed, PROT_READ | PROT_WRITE, Cause::kGrowHeap)) {
      return false;
    }
    heap->committed = wanted;
  }
  heap->set_bytes(wanted);
  return true;
}

// Makes the top of a secondary arena large enough for a chunk of these bytes: in its heap, or at
// the start of a new one. False: no memory.
template <class L, OperatingSystem Os>
bool Allocator<L, Os>::grow_arena(ThreadState& thread, ArenaType& arena, size_t chunk_bytes) {
  Chunk* old_top = arena.top;
  const size_t old_bytes = arena.top_bytes();
  HeapType* heap = heap_of(old_top);
  const size_t before = heap->bytes;
  if (grow_heap(heap, chunk_bytes + kMinChunk - old_bytes)) {
    arena.system_bytes += heap->bytes - before;
    View::set_head(old_top, (heap->end() - base::address_of(old_top)) | kPrevInUse);
  } else {
    HeapType* fresh = reserve_heap(chunk_bytes + kMinChunk + kHeapHeaderBytes);
    if (fresh == nullptr) return false;
    fresh->arena = &arena;
    fresh->previous = heap;
    arena.system_bytes += fresh->bytes;
    arena.top = fresh->first_chunk();
    View::set_head(arena.top, (fresh->bytes - kHeapHeaderBytes) | kPrevInUse);
    os_.on_policy(PolicyKind::kHeapCreated, heap->begin(), fresh->begin());
    fence_full_heap(thread, arena, old_top, old_bytes);
  }
  if (arena.system_bytes > arena.system_bytes_max) arena.system_bytes_max = arena.system_bytes;
  return true;
}

// The old top of a full heap ends in two pseudo-chunks, the first with a foot, so that leave_heap()
// finds its way back. Where the top is too small for a chunk besides them, the first is larger.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::fence_full_heap(ThreadState& thread, ArenaType& arena, Chunk* old_top,
                                       size_t old_bytes) {
  const size_t rest = base::align_down(old_bytes - 2 * kFenceBytes, kAlignment);
  View::set_head(View::after(old_top, rest + kFenceBytes), kFenceBytes | kPrevInUse);
  if (rest < kMinChunk) {
    View::set_head(old_top, (rest + kFenceBytes) | kPrevInUse);
    View::set_foot(old_top, rest + kFenceBytes);
    return;
  }
  Chunk* fence = View::after(old_top, rest);
  View::set_head(fence, kFenceBytes | kPrevInUse);
  View::set_foot(fence, kFenceBytes);
  View::set_head(old_top, rest | kPrevInUse | kNonMain);
  free_chunk(thread, arena, old_top);
}

// After a large free: heaps that are all top go, then the end of what is left.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::trim_heap(ArenaType& arena) {
  while (leave_heap(arena)) {
  }
  const size_t top_bytes = arena.top_bytes();
  if (top_bytes < __atomic_load_n(&settings_.trim_threshold, __ATOMIC_RELAXED)) return;
  const size_t area = top_bytes - kMinChunk - 1;
  if (area <= settings_.top_pad) return;
  const size_t extra = base::align_down(area - settings_.top_pad, base::kPageBytes);
  if (extra == 0 || !shrink_heap(heap_of(arena.top), extra)) return;
  arena.system_bytes -= extra;
  View::set_head(arena.top, (top_bytes - extra) | kPrevInUse);
}

// Unmaps the newest heap if it is all top and the one before has room enough; its end becomes the
// top.
template <class L, OperatingSystem Os>
bool Allocator<L, Os>::leave_heap(ArenaType& arena) {
  HeapType* heap = heap_of(arena.top);
  HeapType* previous = heap->previous;
  if (previous == nullptr || arena.top != heap->first_chunk()) return false;
  Chunk* last_fence = reinterpret_cast<Chunk*>(previous->end() - kFenceBytes);
  Chunk* top = View::at(last_fence, -static_cast<ptrdiff_t>(View::prev_size(last_fence)));
  size_t bytes = View::size(top) + kFenceBytes;
  const bool ends_free = !View::prev_in_use(top);
  if (ends_free) bytes += View::prev_size(top);
  if (bytes + (kHeapBytesMax - previous->bytes) <
      settings_.top_pad + kMinChunk + base::kPageBytes) {
    return false;
  }
  arena.system_bytes -= heap->bytes;
  destroy_heap(heap);
  if (ends_free) {
    top = View::at(top, -static_cast<ptrdiff_t>(View::prev_size(top)));
    unlink(top);
  }
  arena.top = top;
  View::set_head(top, bytes | kPrevInUse);
  return true;
}

template <class L, OperatingSystem Os>
bool Allocator<L, Os>::releases_by_remap() {
  enum : uint8_t { kUnknown = 0, kNo = 1, kYes = 2 };
  uint8_t known = __atomic_load_n(&releases_by_remap_, __ATOMIC_RELAXED);
  if (known == kUnknown) {
    known = kNo;
    if constexpr (requires(Os os) { os.release_by_remap(); }) {
      if (os_.release_by_remap()) known = kYes;
    }
    __atomic_store_n(&releases_by_remap_, known, __ATOMIC_RELAXED);
  }
  return known == kYes;
}

// Gives pages at the end of a heap back; the addresses stay reserved.
template <class L, OperatingSystem Os>
bool Allocator<L, Os>::shrink_heap(HeapType* heap, size_t bytes) {
  if (heap->bytes < bytes + sizeof(HeapType)) return false;
  const size_t kept = heap->bytes - bytes;
  void* end = base::pointer_to(heap->begin() + kept);
  if (releases_by_remap()) {
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    if (os_.mmap(end, bytes, PROT_NONE, kFlags, Cause::kTrimHeap) == nullptr) return false;
    heap->committed = kept;
  } else {
    os_.madvise(end, bytes, MADV_DONTNEED, Cause::kTrimHeap);
  }
  heap->set_bytes(kept);
  return true;
}

}  // namespace heapledger::heap
