// SPDX-License-Identifier: Apache-2.0
//
// What does not serve requests: the end of threads, fork, malloc_trim, mallopt, statistics.
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
  if (cache == nullptr) {
    leave_arena(thread);
    return;
  }
  for (size_t index = 0; index < Cache::kBins; ++index) {
    while (FreeEntry* entry = cache->entries[index]) {
      if (!base::is_aligned(base::address_of(entry), kAlignment)) {
        base::fatal("tcache_thread_shutdown(): unaligned tcache chunk detected");
      }
      cache->entries[index] = entry->next();
      release_slow(thread, View::of_block(entry));
    }
  }
  release_large(thread, cache);
  release_slow(thread, View::of_block(cache));
  leave_arena(thread);
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::fork_prepare(ThreadState& thread) {
  thread.fork_locked = !is_nested(thread);
  if (!thread.fork_locked) return;
  ensure_initialised();
  init_lock_.lock();
  arenas_lock_.lock();
  for_each_arena([](ArenaType& arena) { arena.lock.lock(); });
  free_arenas_lock_.lock();
  // Other libraries' handlers may run between this and the fork, or before fork_parent(), and
  // allocate: nested, like a signal's.
  thread.in_arena = true;
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::fork_parent(ThreadState& thread) {
  if (!thread.fork_locked) return;
  thread.in_arena = false;
  free_arenas_lock_.unlock();
  for_each_arena([](ArenaType& arena) { arena.lock.unlock(); });
  arenas_lock_.unlock();
  init_lock_.unlock();
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::fork_child(ThreadState& thread) {
  // The other threads are gone: nobody waits, and nobody but us holds them. Where a handler forked
  // that had interrupted a holder, that one's unlock will find a free lock, which is harmless.
  if (thread.fork_locked) thread.in_arena = false;
  init_lock_.reset();
  arenas_lock_.reset();
  free_arenas_lock_.reset();
  if (is_untouched()) return;
  // The arenas of the threads that are gone wait for new ones.
  free_arenas_ = nullptr;
  for_each_arena([&](ArenaType& arena) {
    arena.lock.reset();
    arena.attached = 0;
    if (&arena == thread.arena) {
      arena.attached = 1;
      return;
    }
    arena.next_free = free_arenas_;
    free_arenas_ = &arena;
  });
}

// ---- Administration.

// Main first, then the newest first.
template <class L, OperatingSystem Os>
template <class Visit>
void Allocator<L, Os>::for_each_arena(const Visit& visit) {
  ArenaType* arena = &main_;
  do {
    visit(*arena);
    // Acquire: pairs with the release in create_arena().
    arena = __atomic_load_n(&arena->next, __ATOMIC_ACQUIRE);
  } while (arena != &main_);
}

// An arena's lock without a Thread at hand; see is_nested().
template <class L, OperatingSystem Os>
class Allocator<L, Os>::AdminScope {
 public:
  AdminScope(Allocator& allocator, ArenaType& arena) : allocator_(allocator), arena_(arena) {
    __atomic_fetch_add(&allocator_.admin_depth_, 1, __ATOMIC_RELAXED);
    arena_.lock.lock();
  }
  ~AdminScope() {
    arena_.lock.unlock();
    __atomic_fetch_sub(&allocator_.admin_depth_, 1, __ATOMIC_RELAXED);
  }
  AdminScope(const AdminScope&) = delete;
  AdminScope& operator=(const AdminScope&) = delete;

 private:
  Allocator& allocator_;
  ArenaType& arena_;
};

// Tops of secondary arenas stay as they are, as in glibc.
template <class L, OperatingSystem Os>
bool Allocator<L, Os>::trim(size_t pad) {
  ensure_initialised();
  bool released = false;
  for_each_arena([&](ArenaType& arena) {
    if (is_interrupted(arena)) return;
    const AdminScope scope(*this, arena);
    consolidate(arena);
    if (release_pages(arena)) released = true;
    if (&arena == &main_ && trim_top(arena, pad)) released = true;
  });
  return released;
}

template <class L, OperatingSystem Os>
bool Allocator<L, Os>::set_option(int parameter, int value) {
  ensure_initialised();
  const AdminScope scope(*this, main_);
  if (!is_interrupted(main_)) consolidate(main_);
  const bool accepted = apply_option(parameter, value);
  // Even of one that is unknown or refused: the fastbins are merged.
  os_.on_policy(PolicyKind::kSettingChanged, static_cast<uint64_t>(int64_t{parameter}),
                static_cast<uint64_t>(int64_t{value}));
  return accepted;
}

// Lock of the main arena held.
template <class L, OperatingSystem Os>
bool Allocator<L, Os>::apply_option(int parameter, int value) {
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
  // Values are ints that glibc widens with their sign: -1 is the largest size.
  const auto wide = static_cast<size_t>(static_cast<ptrdiff_t>(value));
  switch (parameter) {
    case kMxfast:
      if (!rules_.has_fastbins) return true;
      if (value < 0 || value > 160) return false;
      settings_.fast_chunk_max = value > 7 ? base::align_down(wide + 8, kAlignment) : 0;
      note_fast_limit();
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
      if (rules_.threshold_is_bounded && wide > kDynamicThresholdMax) return false;
      __atomic_store_n(&settings_.mmap_threshold, wide, __ATOMIC_RELAXED);
      settings_.threshold_is_dynamic = false;
      break;
    case kMmapMax:
      settings_.mmap_max = value;
      settings_.threshold_is_dynamic = false;
      break;
    case kPerturb:
      settings_.perturb = value;
      note_fast_limit();
      break;
    case kArenaTest:
      if (value > 0) settings_.arena_test = wide;
      break;
    case kArenaMax:
      if (value > 0) settings_.arena_max = wide;
      break;
    default:
      break;
  }
  return true;
}

template <class L, OperatingSystem Os>
Settings Allocator<L, Os>::settings() {
  ensure_initialised();
  const AdminScope scope(*this, main_);
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
  for (Chunk* chunk = with_fast(arena).first_fast(index); chunk != nullptr;) {
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
  ensure_initialised();
  ArenaType* arena = &main_;
  for (size_t i = 0; i < index; ++i) {
    arena = __atomic_load_n(&arena->next, __ATOMIC_ACQUIRE);
    if (arena == &main_) return false;
  }
  *report = {};
  const AdminScope scope(*this, *arena);
  report->system_bytes = arena->system_bytes;
  report->system_bytes_max = arena->system_bytes_max;
  if (arena != &main_) {
    for (HeapType* heap = heap_of(arena->top); heap != nullptr; heap = heap->previous) {
      ++report->heap_count;
      report->heap_bytes += heap->bytes;
      report->heap_committed_bytes += heap->committed_bytes();
    }
  }
  if (!is_interrupted(*arena)) report_lists(*arena, report);
  return true;
}

template <class L, OperatingSystem Os>
void Allocator<L, Os>::report_lists(ArenaType& arena, ArenaReport* report) {
  static_assert(FastArenaType::kFastBins <= ArenaReport::kFastMax);
  for (size_t i = 0; rules_.has_fastbins && i < FastArenaType::kFastBins; ++i) {
    report->fast[i] = sum_fast(arena, i);
    report->fast_bytes += report->fast[i].bytes;
    report->fast_count += report->fast[i].count;
  }
  for (size_t i = kUnsortedBin; i < kBinCount; ++i) {
    report->bins[i] = sum_bin(arena, i);
    report->rest_bytes += report->bins[i].bytes;
    report->rest_count += report->bins[i].count;
  }
  report->top_bytes = arena.top_bytes();
  report->rest_bytes += report->top_bytes;
  report->rest_count += 1;
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

}  // namespace heapledger::heap
