// SPDX-License-Identifier: Apache-2.0
//
// Memory from the system and back: mapped blocks, growth of the top by the break, what happens when
// the break was moved by somebody else or cannot move, trimming, mremap, the dynamic mmap
// threshold. The policy is glibc 2.36's; its two oddities that programs can observe are kept and
// named where they are.
#pragma once

#include <sys/mman.h>

#include "interposer/heap/allocator.h"

namespace heapledger::heap {

// Bins and top have failed: existing free space always wins over a mapping.
template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::take_from_system(ThreadState& thread, ArenaType& arena,
                                          const Request& request) {
  const size_t threshold = __atomic_load_n(&settings_.mmap_threshold, __ATOMIC_RELAXED);
  const size_t mapped = __atomic_load_n(&mapped_count_, __ATOMIC_RELAXED);
  const int mapped_max = settings_.mmap_max;
  const bool prefers_mapping =
      request.policy >= threshold && mapped_max > 0 && mapped < static_cast<size_t>(mapped_max);
  if (prefers_mapping) {
    if (Chunk* chunk = map_block(request)) return chunk;
  }
  if (&arena == &main_) {
    return grow_top(thread, arena, request.bytes) ? take_top(arena, request) : nullptr;
  }
  if (grow_arena(thread, arena, request.bytes)) return take_top(arena, request);
  // Too large for a heap: mapped whatever the settings say.
  return prefers_mapping ? nullptr : map_block(request, false);
}

// ---- Mapped blocks.

template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::map_block(const Request& request, bool may_be_huge) {
  if (may_be_huge && huge_bytes_ != 0 && request.policy >= huge_bytes_) {
    if (Chunk* chunk = map_block_in(request, huge_bytes_)) return chunk;
  }
  return map_block_in(request, base::kPageBytes);
}

template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::map_block_in(const Request& request, size_t page_bytes) {
  // Both layouts need 16 bytes before the block, and nb leaves 8 of them: no borrowing behind the
  // end of a mapping. With a tail, what is borrowed lies in the mapping.
  const size_t tail = rules_.mapped_has_tail ? kMappedTailBytes : 0;
  const size_t length = base::align_up(request.policy + (tail != 0 ? tail : 8), page_bytes);
  if (length <= request.policy) return nullptr;
  const uintptr_t begin = map_pages(length, page_bytes, Cause::kMapBlock);
  if (begin == 0) return nullptr;
  auto* chunk = reinterpret_cast<Chunk*>(begin);
  if (!page_map_.set(os_, begin, PageState::kMapped)) {
    os_.munmap(chunk, length, Cause::kUnmapBlock);
    return nullptr;
  }
  const size_t huge = page_bytes != base::kPageBytes ? kMappedHuge : 0;
  View::set_head(chunk, (length - tail) | kIsMapped | (tail != 0 ? kMappedTail | huge : 0));
  View::set_mark(chunk, 0);
  count_mapping(length);
  return chunk;
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::count_mapping(size_t bytes) {
  // The maxima are statistics: a lost race between two threads costs exactness of a maximum,
  // nothing else.
  const size_t count = __atomic_add_fetch(&mapped_count_, 1, __ATOMIC_RELAXED);
  const size_t total = __atomic_add_fetch(&mapped_bytes_, bytes, __ATOMIC_RELAXED);
  if (count > __atomic_load_n(&mapped_count_max_, __ATOMIC_RELAXED)) {
    __atomic_store_n(&mapped_count_max_, count, __ATOMIC_RELAXED);
  }
  if (total > __atomic_load_n(&mapped_bytes_max_, __ATOMIC_RELAXED)) {
    __atomic_store_n(&mapped_bytes_max_, total, __ATOMIC_RELAXED);
  }
}

// Bytes between the start of the mapping and the chunk: non-zero only after memalign.
template <class L, OperatingSystem Os>
size_t Allocator<L, Os>::front_offset(const Chunk* chunk) {
  return (View::head(chunk) & kSlack) != 0 ? View::prev_size(chunk) : 0;
}

// Freeing a large mapping says: blocks of this size come and go. From now on they come from the
// break.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::raise_threshold(size_t mapped_chunk_bytes) {
  if (!settings_.threshold_is_dynamic) return;
  // glibc compares the size word with its mapped flag (2) in it: a chunk of exactly 32 MiB does not
  // count.
  const size_t compared = mapped_chunk_bytes | 2;
  const size_t old = __atomic_load_n(&settings_.mmap_threshold, __ATOMIC_RELAXED);
  if (compared <= old || compared > kDynamicThresholdMax) return;
  __atomic_store_n(&settings_.mmap_threshold, mapped_chunk_bytes, __ATOMIC_RELAXED);
  __atomic_store_n(&settings_.trim_threshold, 2 * mapped_chunk_bytes, __ATOMIC_RELAXED);
  os_.on_policy(PolicyKind::kThresholdRaised, old, mapped_chunk_bytes);
}

// The chunk's page is out of the page map already: nobody else can free it.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::unmap_block(Chunk* chunk) {
  const size_t offset = front_offset(chunk);
  const size_t length = View::mapped_bytes(chunk) + offset;
  __atomic_sub_fetch(&mapped_count_, 1, __ATOMIC_RELAXED);
  __atomic_sub_fetch(&mapped_bytes_, length, __ATOMIC_RELAXED);
  os_.munmap(View::at(chunk, -static_cast<ptrdiff_t>(offset)), length, Cause::kUnmapBlock);
}

// Resizes a mapping, in place or elsewhere. nullptr: the kernel refused, and nothing has changed.
template <class L, OperatingSystem Os>
Chunk* Allocator<L, Os>::remap_block(Chunk* chunk, const Request& request,
                                     const ReleaseObserver& observer) {
  const size_t offset = front_offset(chunk);
  const size_t flags = View::head(chunk) & kFlagMask;
  const size_t tail = View::mapped_bytes(chunk) - View::size(chunk);
  const size_t old_length = View::mapped_bytes(chunk) + offset;
  const size_t page_bytes = (flags & kMappedHuge) != 0 ? huge_bytes_ : base::kPageBytes;
  const size_t new_length =
      base::align_up(request.policy + offset + (tail != 0 ? tail : 8), page_bytes);
  observer(View::block(chunk));
  if (new_length == old_length) {
    View::set_mark(chunk, 0);
    return chunk;
  }
  // Out of the map first: the kernel may hand the old addresses to another thread before mremap has
  // returned here.
  page_map_.take_mapped(base::address_of(chunk));
  void* memory = os_.mremap(View::at(chunk, -static_cast<ptrdiff_t>(offset)), old_length,
                            new_length, MREMAP_MAYMOVE, Cause::kRemapBlock);
  if (memory == nullptr) {
    page_map_.set(os_, base::address_of(chunk), PageState::kMapped);
    return nullptr;
  }
  // The advice moves with the pages, as later versions know.
  if (!rules_.thp_serves_always || old_length < thp_bytes_) {
    advise_huge(base::address_of(memory), new_length);
  }
  Chunk* moved = View::after(static_cast<Chunk*>(memory), offset);
  HL_CHECK(page_map_.set(os_, base::address_of(moved), PageState::kMapped));
  // Not everything that an Os moves has contents.
  if (offset != 0) View::set_prev_size(moved, offset);
  View::set_head(moved, (new_length - offset - tail) | flags);
  View::set_mark(moved, 0);
  // glibc, too, forgets the old tail in this sum: it grows by 16 at each resize.
  const size_t total =
      __atomic_add_fetch(&mapped_bytes_, new_length - old_length + tail, __ATOMIC_RELAXED);
  if (total > __atomic_load_n(&mapped_bytes_max_, __ATOMIC_RELAXED)) {
    __atomic_store_n(&mapped_bytes_max_, total, __ATOMIC_RELAXED);
  }
  return moved;
}

// ---- The break.

// sbrk() over the break that libc's sbrk would know: returns the old break, 0 where the kernel
// refused. No system call for an increment of 0 once the break is known.
template <class L, OperatingSystem Os>
uintptr_t Allocator<L, Os>::move_break(ptrdiff_t increment, Cause cause) {
  if (break_is_off_) return 0;
  uintptr_t old = known_break();
  if (old == 0) {
    old = os_.brk(0, Cause::kQueryBreak);
    note_break(old);
    if (old == 0) return 0;
  }
  if (increment == 0) return old;
  const uintptr_t wanted = old + static_cast<uintptr_t>(increment);
  if ((increment > 0) != (wanted > old)) return 0;
  const uintptr_t now = os_.brk(wanted, cause);
  // libc's sbrk caches what the kernel answered even where it refused.
  note_break(now);
  return increment > 0 && now < wanted ? 0 : old;
}

// Makes the top large enough for a chunk of these bytes. False: no memory.
template <class L, OperatingSystem Os>
bool Allocator<L, Os>::grow_top(ThreadState& thread, ArenaType& arena, size_t chunk_bytes) {
  const size_t old_bytes = arena.top_bytes();
  size_t bytes = chunk_bytes + settings_.top_pad + kMinChunk;
  // Contiguous memory continues the old top; otherwise the new part must hold the chunk alone.
  if (arena.contiguous) bytes -= old_bytes;
  if (thp_bytes_ != 0) {
    // Earlier versions count from 0 before the first question.
    if (rules_.thp_serves_always) move_break(0, Cause::kNone);
    bytes = base::align_up(known_break() + bytes, thp_bytes_) - known_break();
  } else {
    bytes = base::align_up(bytes, base::kPageBytes);
  }
  const auto increment = static_cast<ptrdiff_t>(bytes);
  uintptr_t begin = increment > 0 ? move_break(increment, Cause::kGrowTop) : 0;
  const bool from_break = begin != 0;
  if (from_break) {
    advise_huge(begin, bytes);
  } else {
    begin = map_fallback(arena, &bytes, old_bytes, chunk_bytes);
    if (begin == 0) return false;
  }
  const size_t system_before = arena.system_bytes;
  adopt_memory(thread, arena, begin, bytes, from_break);
  if (arena.system_bytes > arena.system_bytes_max) arena.system_bytes_max = arena.system_bytes;
  os_.on_policy(PolicyKind::kTopGrown, system_before, arena.system_bytes);
  return true;
}

// The break cannot move: a mapping takes its place, and the arena is never contiguous again.
template <class L, OperatingSystem Os>
uintptr_t Allocator<L, Os>::map_fallback(ArenaType& arena, size_t* bytes, size_t old_bytes,
                                         size_t chunk_bytes) {
  const size_t asked = *bytes;
  size_t length = 0;
  uintptr_t begin = 0;
  for (const size_t page_bytes : {huge_bytes_, base::kPageBytes}) {
    if (page_bytes == 0 || begin != 0) continue;
    length = fallback_bytes(arena, asked, old_bytes, chunk_bytes, page_bytes);
    if (length > chunk_bytes) begin = map_pages(length, page_bytes, Cause::kFallbackTop);
  }
  if (begin == 0) return 0;
  if (!page_map_.set_range(os_, begin, begin + length, PageState::kArena)) {
    page_map_.set_range(os_, begin, begin + length, PageState::kForeign);
    os_.munmap(base::pointer_to(begin), length, Cause::kFallbackTop);
    return 0;
  }
  arena.contiguous = false;
  *bytes = length;
  os_.on_policy(PolicyKind::kTopFallback, asked, length);
  return begin;
}

template <class L, OperatingSystem Os>
size_t Allocator<L, Os>::fallback_bytes(const ArenaType& arena, size_t asked, size_t old_bytes,
                                        size_t chunk_bytes, size_t page_bytes) const {
  constexpr size_t kLargeUnit = 1024 * 1024;
  const bool is_huge = page_bytes != base::kPageBytes;
  const bool is_swapped = rules_.fallback_size == FallbackSize::kSwapped && !is_huge;
  const size_t unit = is_swapped ? kLargeUnit : page_bytes;
  const size_t least = is_swapped || is_huge ? page_bytes : kLargeUnit;
  size_t length = asked;
  if (rules_.fallback_size == FallbackSize::kWithoutOldTop) {
    length = base::align_up(chunk_bytes + settings_.top_pad + kMinChunk, unit);
  } else if (arena.contiguous) {
    length = base::align_up(asked + old_bytes, unit);
  }
  return length < least ? least : length;
}

// New memory continues the top, or becomes the new top while the old one is fenced off and freed.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::adopt_memory(ThreadState& thread, ArenaType& arena, uintptr_t begin,
                                    size_t bytes, bool from_break) {
  Chunk* old_top = arena.top;
  const size_t old_bytes = arena.top_bytes();
  const uintptr_t old_end = base::address_of(old_top) + old_bytes;
  if (main_base_ == 0) main_base_ = begin;
  arena.system_bytes += bytes;
  if (from_break && old_bytes != 0 && begin == old_end) {
    View::set_head(old_top, (old_bytes + bytes) | kPrevInUse);
    note_main_range(begin, begin + bytes);
    return;
  }
  if (arena.contiguous && old_bytes != 0) {
    if (begin < old_end) base::fatal("break adjusted to free malloc space");
    arena.system_bytes += begin - old_end;
    os_.on_policy(PolicyKind::kForeignBreak, old_end, begin);
  }
  const uintptr_t end = end_new_part(arena, begin, bytes, from_break);
  const uintptr_t aligned = base::align_up(begin, kAlignment);
  arena.top = reinterpret_cast<Chunk*>(aligned);
  View::set_head(arena.top, base::align_down(end - aligned, kAlignment) | kPrevInUse);
  if (segment_count_ < kSegmentsMax) segments_[segment_count_] = arena.top;
  ++segment_count_;
  if (from_break) note_main_range(begin, end);
  if (old_bytes != 0) fence_old_top(thread, arena, old_top, old_bytes);
}

// Where the new part that begins at `begin` ends. Behind a foreign break the part is made to end on
// a page boundary, and to hold as much as if the old top had continued: a second step of the break.
template <class L, OperatingSystem Os>
uintptr_t Allocator<L, Os>::end_new_part(ArenaType& arena, uintptr_t begin, size_t bytes,
                                         bool from_break) {
  if (!from_break) return begin + bytes;
  if (!arena.contiguous) return move_break(0, Cause::kNone);
  size_t correction = base::align_up(begin, kAlignment) - begin + arena.top_bytes();
  const uintptr_t end = begin + bytes + correction;
  correction += base::align_up(end, base::kPageBytes) - end;
  const uintptr_t second = move_break(static_cast<ptrdiff_t>(correction), Cause::kAlignForeign);
  // Refused: the first step alone is used. It holds the chunk only if the caller is lucky;
  // take_top() finds out.
  if (second == 0) return begin + bytes;
  advise_huge(second, correction);
  arena.system_bytes += correction;
  return second + correction;
}

// An old top that nothing continues ends in two pseudo-chunks that look allocated, so that no merge
// runs beyond it.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::fence_old_top(ThreadState& thread, ArenaType& arena, Chunk* old_top,
                                     size_t old_bytes) {
  const size_t rest = base::align_down(old_bytes - 2 * kFenceBytes, kAlignment);
  View::set_head(old_top, rest | kPrevInUse);
  View::set_head(View::after(old_top, rest), kFenceBytes | kPrevInUse);
  View::set_head(View::after(old_top, rest + kFenceBytes), kFenceBytes | kPrevInUse);
  if (rest >= kMinChunk) free_chunk(thread, arena, old_top);
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::note_main_range(uintptr_t begin, uintptr_t end) {
  if (main_begin_ == 0) __atomic_store_n(&main_begin_, begin, __ATOMIC_RELAXED);
  if (end > main_end_) __atomic_store_n(&main_end_, end, __ATOMIC_RELAXED);
}

// Gives back what the top holds above `pad`, if the break is where the top ends.
template <class L, OperatingSystem Os>
bool Allocator<L, Os>::trim_top(ArenaType& arena, size_t pad) {
  const size_t top_bytes = arena.top_bytes();
  // Wraps where there is no top, or the least one, as in glibc: malloc_trim() then asks where the
  // break is, and adds to a top that ends there.
  const size_t area = top_bytes - kMinChunk - 1;
  if (area <= pad) return false;
  const size_t unit = thp_bytes_ != 0 ? thp_bytes_ : base::kPageBytes;
  const size_t extra = base::align_down(area - pad, unit);
  if (extra == 0) return false;
  const uintptr_t top_end = base::address_of(arena.top) + top_bytes;
  const uintptr_t now = move_break(0, Cause::kNone);  // 0 where the break is never moved.
  if (arena.top == nullptr || now != top_end) return false;
  move_break(-static_cast<ptrdiff_t>(extra), Cause::kTrimTop);
  const size_t released = top_end - known_break();
  if (released == 0) return false;
  const size_t system_before = arena.system_bytes;
  arena.system_bytes -= released;
  View::set_head(arena.top, (top_bytes - released) | kPrevInUse);
  __atomic_store_n(&main_end_, top_end - released, __ATOMIC_RELAXED);
  os_.on_policy(PolicyKind::kTopTrimmed, system_before, arena.system_bytes);
  return true;
}

// malloc_trim's other half: the whole pages inside large free chunks are dropped; links and the
// foot stay.
template <class L, OperatingSystem Os>
bool Allocator<L, Os>::release_pages(ArenaType& arena) {
  constexpr size_t kChunkStructBytes = 48;  // glibc's sizeof(struct malloc_chunk).
  constexpr size_t kPage = base::kPageBytes;
  bool released = false;
  for (size_t index = kUnsortedBin; index < kBinCount; ++index) {
    if (index != kUnsortedBin && index < BinsOf::index(kPage + L::kSlackMax)) continue;
    Chunk* bin = arena.bin(index);
    for (Chunk* chunk = View::prev_link(bin); chunk != bin; chunk = View::prev_link(chunk)) {
      if (View::size(chunk) <= kPage - 1 + kChunkStructBytes) continue;
      const uintptr_t begin = base::align_up(base::address_of(chunk) + kChunkStructBytes, kPage);
      // A layout that keeps the foot inside the chunk must not lose it.
      const size_t foot = L::kPrevSizeAt < 0 ? static_cast<size_t>(-L::kPrevSizeAt) : 0;
      const uintptr_t end = base::align_down(base::address_of(View::next(chunk)) - foot, kPage);
      if (end <= begin) continue;
      os_.madvise(base::pointer_to(begin), end - begin, MADV_DONTNEED, Cause::kReleasePages);
      released = true;
    }
  }
  return released;
}

}  // namespace heapledger::heap
