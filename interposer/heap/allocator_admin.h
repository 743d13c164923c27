// SPDX-License-Identifier: Apache-2.0
//
// What does not serve requests: the end of threads, fork, malloc_trim, mallopt, statistics, and the
// walk that tests every invariant.
#pragma once

#include "interposer/base/fatal.h"
#include "interposer/heap/allocator.h"

namespace heapledger::heap {

// ---- Threads and processes.

template <class L, OperatingSystem Os>
void Allocator<L, Os>::thread_exit(ThreadState& thread) {
  Cache* cache = thread.owned;
  // Before anything else: a signal handler from here on works without a cache, and so does every
  // later call.
  thread.ended = true;
  thread.cache = nullptr;
  thread.owned = nullptr;
  base::compiler_barrier();
  if (thread.deferred != nullptr) release_deferred(thread);
  if (cache == nullptr) return;
  for (size_t index = 0; index < Cache::kBins; ++index) {
    while (FreeEntry* entry = cache->entries[index]) {
      if (!base::is_aligned(base::address_of(entry), kAlignment)) {
        base::fatal("tcache_thread_shutdown(): unaligned tcache chunk detected");
      }
      cache->entries[index] = entry->next();
      release_slow(thread, View::of_block(entry));
    }
  }
  release_slow(thread, View::of_block(cache));
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::fork_prepare(ThreadState& thread) {
  thread.fork_locked = !is_nested(thread, main_);
  if (!thread.fork_locked) return;
  init_lock_.lock();
  main_.lock.lock();
  // Other libraries' handlers may run between this and the fork, or before fork_parent(), and
  // allocate: nested, like a signal's.
  thread.in_arena = true;
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::fork_parent(ThreadState& thread) {
  if (!thread.fork_locked) return;
  thread.in_arena = false;
  main_.lock.unlock();
  init_lock_.unlock();
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::fork_child(ThreadState& thread) {
  // The other threads are gone: nobody waits, and nobody but us holds them. Where a handler forked
  // that had interrupted a holder, that one's unlock will find a free lock, which is harmless.
  if (thread.fork_locked) thread.in_arena = false;
  main_.lock.reset();
  init_lock_.reset();
}

// ---- Administration.

template <class L, OperatingSystem Os>
bool Allocator<L, Os>::trim(size_t pad) {
  ensure_initialised();
  if (is_interrupted(main_)) return false;
  base::LockGuard guard(main_.lock);
  consolidate(main_);
  const bool released = release_pages(main_);
  return trim_top(main_, pad) || released;
}

template <class L, OperatingSystem Os>
bool Allocator<L, Os>::set_option(int parameter, int value) {
  // mallopt's numbers; unknown ones succeed without effect.
  enum : int {
    kMxfast = 1,
    kTrimThreshold = -1,
    kTopPad = -2,
    kMmapThreshold = -3,
    kMmapMax = -4,
    kPerturb = -6,
    kArenaTest = -7,
    kArenaMax = -8
  };
  ensure_initialised();
  base::LockGuard guard(main_.lock);
  if (!is_interrupted(main_)) consolidate(main_);
  // Values are ints that glibc widens with their sign: -1 is the largest size.
  const auto wide = static_cast<size_t>(static_cast<ptrdiff_t>(value));
  switch (parameter) {
    case kMxfast:
      if (value < 0 || value > 160) return false;
      settings_.fast_chunk_max = value > 7 ? base::align_down(wide + 8, kAlignment) : 0;
      break;
    case kTrimThreshold:
      __atomic_store_n(&settings_.trim_threshold, wide, __ATOMIC_RELAXED);
      settings_.threshold_is_dynamic = false;
      break;
    case kTopPad:
      settings_.top_pad = wide;
      settings_.threshold_is_dynamic = false;
      break;
    case kMmapThreshold:
      __atomic_store_n(&settings_.mmap_threshold, wide, __ATOMIC_RELAXED);
      settings_.threshold_is_dynamic = false;
      break;
    case kMmapMax:
      settings_.mmap_max = value;
      settings_.threshold_is_dynamic = false;
      break;
    case kPerturb:
      settings_.perturb = value;
      break;
    case kArenaTest:
      if (value > 0) settings_.arena_test = wide;
      break;
    case kArenaMax:
      if (value > 0) settings_.arena_max = wide;
      break;
    default:
      return true;
  }
  os_.on_policy(PolicyKind::kSettingChanged, static_cast<uint64_t>(int64_t{parameter}), wide);
  return true;
}

template <class L, OperatingSystem Os>
Settings Allocator<L, Os>::settings() {
  ensure_initialised();
  base::LockGuard guard(main_.lock);
  Settings copy = settings_;
  copy.mmap_threshold = __atomic_load_n(&settings_.mmap_threshold, __ATOMIC_RELAXED);
  copy.trim_threshold = __atomic_load_n(&settings_.trim_threshold, __ATOMIC_RELAXED);
  return copy;
}

// ---- Statistics.

template <class L, OperatingSystem Os>
SizeClass Allocator<L, Os>::sum_bin(ArenaType& arena, size_t index) {
  SizeClass sum;
  Chunk* bin = arena.bin(index);
  for (Chunk* chunk = View::next_link(bin); chunk != bin; chunk = View::next_link(chunk)) {
    const size_t bytes = View::size(chunk);
    if (sum.count == 0 || bytes < sum.from) sum.from = bytes;
    if (bytes > sum.to) sum.to = bytes;
    sum.bytes += bytes;
    ++sum.count;
  }
  return sum;
}

template <class L, OperatingSystem Os>
SizeClass Allocator<L, Os>::sum_fast(ArenaType& arena, size_t index) {
  SizeClass sum;
  const size_t bytes = (index + 2) * kAlignment;
  for (Chunk* chunk = arena.fast[index]; chunk != nullptr;) {
    sum.from = sum.to = bytes;
    sum.bytes += bytes;
    ++sum.count;
    auto* next = static_cast<FreeEntry*>(View::block(chunk))->next();
    chunk = next == nullptr ? nullptr : View::of_block(next);
  }
  return sum;
}

template <class L, OperatingSystem Os>
bool Allocator<L, Os>::report_arena(size_t index, ArenaReport* report) {
  static_assert(ArenaType::kFastBins <= ArenaReport::kFastMax);
  if (index != 0) return false;
  ensure_initialised();
  *report = {};
  base::LockGuard guard(main_.lock);
  report->system_bytes = main_.system_bytes;
  report->system_bytes_max = main_.system_bytes_max;
  if (is_interrupted(main_)) return true;
  for (size_t i = 0; i < ArenaType::kFastBins; ++i) {
    report->fast[i] = sum_fast(main_, i);
    report->fast_bytes += report->fast[i].bytes;
    report->fast_count += report->fast[i].count;
  }
  for (size_t i = kUnsortedBin; i < kBinCount; ++i) {
    report->bins[i] = sum_bin(main_, i);
    report->rest_bytes += report->bins[i].bytes;
    report->rest_count += report->bins[i].count;
  }
  report->top_bytes = main_.top_bytes();
  report->rest_bytes += report->top_bytes;
  report->rest_count += 1;
  return true;
}

template <class L, OperatingSystem Os>
Info Allocator<L, Os>::info() {
  Info info;
  ArenaReport report;
  for (size_t index = 0; report_arena(index, &report); ++index) {
    ++info.arena_count;
    info.system_bytes += report.system_bytes;
    info.system_bytes_max += report.system_bytes_max;
    info.free_chunks += report.rest_count;
    info.fast_chunks += report.fast_count;
    info.fast_bytes += report.fast_bytes;
    info.free_bytes += report.fast_bytes + report.rest_bytes;
    if (index == 0) info.top_bytes = report.top_bytes;
  }
  info.mapped_count = __atomic_load_n(&mapped_count_, __ATOMIC_RELAXED);
  info.mapped_bytes = __atomic_load_n(&mapped_bytes_, __ATOMIC_RELAXED);
  info.mapped_count_max = __atomic_load_n(&mapped_count_max_, __ATOMIC_RELAXED);
  info.mapped_bytes_max = __atomic_load_n(&mapped_bytes_max_, __ATOMIC_RELAXED);
  return info;
}

// ---- Validity: the invariants of arena.h.

template <class L, OperatingSystem Os>
bool Allocator<L, Os>::arena_is_valid(const ThreadState* thread, const char** why) {
  ensure_initialised();
  base::LockGuard guard(main_.lock);
  size_t walked_free = 0;
  size_t listed_free = 0;
  const char* fault = fault_in_segments(main_, &walked_free);
  if (fault == nullptr) fault = fault_in_bins(main_, &listed_free);
  if (fault == nullptr && walked_free != listed_free &&
      main_.segment_count <= ArenaType::kSegmentsMax) {
    fault = "3: the free chunks of the walk are not those of the bins";
  }
  if (fault == nullptr) fault = fault_in_fast_bins(main_);
  if (fault == nullptr && thread != nullptr) fault = fault_in_cache(*thread);
  if (why != nullptr) *why = fault;
  return fault == nullptr;
}

// Walks every contiguous part from its first chunk to its fences or to the top, and counts the
// chunks that are in bins.
template <class L, OperatingSystem Os>
const char* Allocator<L, Os>::fault_in_segments(ArenaType& arena, size_t* free_chunks) {
  if (arena.top == nullptr) return nullptr;
  if (arena.top_bytes() < kMinChunk) return "1: the top is too small";
  if (!View::prev_in_use(arena.top)) return "2: the chunk before the top should be part of it";
  if (arena.system_bytes > arena.system_bytes_max) return "6: more system memory than ever";
  size_t held = 0;
  for (size_t i = 0; i < arena.segment_count && i < ArenaType::kSegmentsMax; ++i) {
    bool prev_free = false;
    Chunk* chunk = arena.segments[i];
    const uintptr_t limit = base::address_of(chunk) + arena.system_bytes_max;
    for (;;) {
      const size_t bytes = View::size(chunk);
      held += bytes;
      if (chunk == arena.top) break;
      Chunk* next = View::after(chunk, bytes);
      if (bytes == kFenceBytes && View::size(next) == kFenceBytes) {
        held += kFenceBytes;
        break;
      }
      if (const char* fault = fault_in_chunk(chunk, limit, prev_free)) return fault;
      prev_free = !View::prev_in_use(next);
      if (prev_free) ++*free_chunks;
      chunk = next;
    }
  }
  if (held > arena.system_bytes) return "6: the chunks are more than the system gave";
  return nullptr;
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
        (arena.bin_map[index / 32] >> (index % 32) & 1) == 0) {
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
  for (size_t index = 0; index < ArenaType::kFastBins; ++index) {
    for (Chunk* chunk = arena.fast[index]; chunk != nullptr;) {
      if (!arena.has_fast_chunks) return "4: fast chunks nobody knows of";
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
