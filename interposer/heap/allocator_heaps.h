// SPDX-License-Identifier: Apache-2.0
//
// Memory of secondary arenas. Each heap is 64 MiB of addresses (other sizes: configure_heaps())
// aligned to as much, of which as much is made accessible as is needed; an arena that outgrows a
// heap gets another one, and gives the newest back when all of it is free. Lock of the arena held
// in all of this.
#pragma once

#include <sys/mman.h>

#include <new>

#include "interposer/heap/allocator.h"

namespace heapledger::heap {

// By the rules and by what was found of huge pages. The Arena of a version has exactly glibc's
// place in glibc's layout; another one may need more.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::configure_heaps() {
  static_assert(sizeof(HeapType) <= 32);
  static_assert(L::kHasId || (sizeof(ArenaType) <= 2112 && sizeof(FastArenaType) <= 2200));
  const size_t own = rules_.has_fastbins ? sizeof(FastArenaType) : sizeof(ArenaType);
  const size_t glibcs = rules_.arena_bytes;
  const size_t arena_bytes = own > glibcs ? own : glibcs;
  first_chunk_at_ = base::align_up(rules_.heap_header_bytes + arena_bytes, kAlignment);
  heap_bytes_ = kHeapBytes;
  heap_bytes_min_ = kHeapBytesMin;
  heap_page_bytes_ = base::kPageBytes;
  if (break_is_off_) {
    heap_bytes_min_ = huge_bytes_;
    if (!rules_.hugetlb_keeps_heaps) heap_bytes_ = 4 * huge_bytes_;
  } else if (rules_.thp_serves_always && thp_bytes_ != 0) {
    heap_page_bytes_ = thp_bytes_;
  }
}

// A heap with room for `bytes`, its own header included, and as much of top_pad as fits. nullptr:
// too large, or no memory.
template <class L, OperatingSystem Os>
Heap<L>* Allocator<L, Os>::reserve_heap(size_t bytes) {
  if (break_is_off_) {
    HeapType* heap = reserve_heap_in(bytes, huge_bytes_, huge_flags(huge_bytes_));
    if (heap != nullptr) {
      heap->committed |= HeapType::kFromPool;
      return heap;
    }
  }
  const int flags = rules_.heaps_are_noreserve ? MAP_NORESERVE : 0;
  return reserve_heap_in(bytes, heap_page_bytes_, flags);
}

template <class L, OperatingSystem Os>
Heap<L>* Allocator<L, Os>::reserve_heap_in(size_t bytes, size_t page_bytes, int flags) {
  size_t in_use = bytes + settings_.top_pad;  // May wrap, as in glibc: the heap is then too small.
  if (in_use < heap_bytes_min_) in_use = heap_bytes_min_;
  if (in_use > heap_bytes_) {
    if (bytes > heap_bytes_) return nullptr;
    in_use = heap_bytes_;
  }
  in_use = base::align_up(in_use, page_bytes);
  const uintptr_t begin = reserve_aligned(flags);
  if (begin == 0) return nullptr;
  void* memory = base::pointer_to(begin);
  if (!os_.mprotect(memory, in_use, PROT_READ | PROT_WRITE, Cause::kNewHeap) ||
      !page_map_.set_range(os_, begin, begin + heap_bytes_, PageState::kHeap)) {
    page_map_.set_range(os_, begin, begin + heap_bytes_, PageState::kForeign);
    os_.munmap(memory, heap_bytes_, Cause::kNewHeap);
    return nullptr;
  }
  advise_huge(begin, in_use);
  return new (memory) HeapType{nullptr, nullptr, in_use, in_use};
}

// Addresses for a heap. The kernel does not align: twice the length is reserved and the rest given
// back, unless the addresses behind the previous heap are remembered and still free. 0: refused.
template <class L, OperatingSystem Os>
uintptr_t Allocator<L, Os>::reserve_aligned(int extra_flags) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | extra_flags;
  const size_t length = heap_bytes_;
  auto reserve = [&](uintptr_t hint, size_t bytes) {
    return base::address_of(
        os_.mmap(base::pointer_to(hint), bytes, PROT_NONE, flags, Cause::kNewHeap));
  };
  auto give_back = [&](uintptr_t begin, size_t bytes) {
    if (bytes != 0) os_.munmap(base::pointer_to(begin), bytes, Cause::kNewHeap);
  };
  const uintptr_t hint = __atomic_exchange_n(&heap_hint_, 0, __ATOMIC_RELAXED);
  if (hint != 0) {
    const uintptr_t begin = reserve(hint, length);
    if (begin != 0 && base::is_aligned(begin, length)) return begin;
    if (begin != 0) give_back(begin, length);
  }
  const uintptr_t wide = reserve(0, 2 * length);
  if (wide != 0) {
    const uintptr_t begin = base::align_up(wide, length);
    const size_t lead = begin - wide;
    give_back(wide, lead);
    if (lead == 0) __atomic_store_n(&heap_hint_, begin + length, __ATOMIC_RELAXED);
    give_back(begin + length, length - lead);
    return begin;
  }
  const uintptr_t lucky = reserve(0, length);
  if (lucky == 0 || base::is_aligned(lucky, length)) return lucky;
  give_back(lucky, length);
  return 0;
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::destroy_heap(HeapType* heap) {
  const uintptr_t begin = heap->begin();
  const HeapType* previous = heap->previous;
  // Hint and page map first: from the system call on, the addresses may be anybody's.
  uintptr_t hint = begin + heap_bytes_;
  __atomic_compare_exchange_n(&heap_hint_, &hint, 0, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  page_map_.set_range(os_, begin, begin + heap_bytes_, PageState::kForeign);
  os_.munmap(heap, heap_bytes_, Cause::kDestroyHeap);
  os_.on_policy(PolicyKind::kHeapDestroyed, begin, base::address_of(previous));
}

// Without top_pad, unlike everything else that grows; what was accessible before still is.
template <class L, OperatingSystem Os>
bool Allocator<L, Os>::grow_heap(HeapType* heap, size_t bytes) {
  const size_t wanted = heap->bytes + base::align_up(bytes, page_bytes(heap));
  if (bytes > heap_bytes_ || wanted > heap_bytes_) return false;
  const size_t committed = heap->committed_bytes();
  if (wanted > committed) {
    void* end = base::pointer_to(heap->begin() + committed);
    if (!os_.mprotect(end, wanted - committed, PROT_READ | PROT_WRITE, Cause::kGrowHeap)) {
      return false;
    }
    heap->set_committed(wanted);
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
    HeapType* fresh = reserve_heap(chunk_bytes + kMinChunk + rules_.heap_header_bytes);
    if (fresh == nullptr) return false;
    fresh->arena = &arena;
    fresh->previous = heap;
    arena.system_bytes += fresh->bytes;
    arena.top = first_chunk(fresh);
    View::set_head(arena.top, (fresh->bytes - rules_.heap_header_bytes) | kPrevInUse);
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
  HeapType* heap = heap_of(arena.top);
  const size_t extra = base::align_down(area - settings_.top_pad, page_bytes(heap));
  if (extra == 0 || !shrink_heap(heap, extra)) return;
  arena.system_bytes -= extra;
  View::set_head(arena.top, (top_bytes - extra) | kPrevInUse);
}

// Unmaps the newest heap if it is all top and the one before has room enough; its end becomes the
// top.
template <class L, OperatingSystem Os>
bool Allocator<L, Os>::leave_heap(ArenaType& arena) {
  HeapType* heap = heap_of(arena.top);
  HeapType* previous = heap->previous;
  if (previous == nullptr || arena.top != first_chunk(heap)) return false;
  Chunk* last_fence = reinterpret_cast<Chunk*>(previous->end() - kFenceBytes);
  Chunk* top = View::at(last_fence, -static_cast<ptrdiff_t>(View::prev_size(last_fence)));
  size_t bytes = View::size(top) + kFenceBytes;
  const bool ends_free = !View::prev_in_use(top);
  if (ends_free) bytes += View::prev_size(top);
  if (bytes + (heap_bytes_ - previous->bytes) < settings_.top_pad + kMinChunk + page_bytes(heap)) {
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
  if (heap->bytes < bytes + rules_.heap_header_bytes) return false;
  const size_t kept = heap->bytes - bytes;
  void* end = base::pointer_to(heap->begin() + kept);
  if (releases_by_remap()) {
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    if (os_.mmap(end, bytes, PROT_NONE, kFlags, Cause::kTrimHeap) == nullptr) return false;
    heap->set_committed(kept);
  } else {
    os_.madvise(end, bytes, MADV_DONTNEED, Cause::kTrimHeap);
  }
  heap->set_bytes(kept);
  return true;
}

}  // namespace heapledger::heap
