// SPDX-License-Identifier: Apache-2.0
//
// The data structures of the allocator, as in glibc: an arena with its bins, and a thread's cache.
//
// Where a free chunk can be:
//
// - thread cache: LIFO lists per chunk size, 7 deep, no lock; its chunks keep looking allocated to
//   their neighbours;
// - fastbins: LIFO lists per small chunk size; likewise not merged;
// - unsorted, bin 1: everything just freed or split off, looked through oldest first;
// - small bins: one chunk size each, oldest taken first;
// - large bins: ranges of sizes, sorted descending; the chunks that are the first of their size are
//   linked among themselves too;
// - top: the chunk that ends the arena; never in a bin.
//
// Invariants, checked by Allocator::arena_is_valid():
//   1. chunks tile each part of the arena without gaps; sizes are multiples of 16, at least 32
//   (fences: 16)
//   2. no two neighbours are both in bins or one in a bin and the other top: they would have been
//   merged
//   3. a chunk is in exactly one bin iff its successor's kPrevInUse is clear; its foot then equals
//   its size
//   4. each list holds only sizes of its class; large bins descend; equal sizes share one entry in
//   the by-size list
//   5. a bin that is not empty has its bit in bin_map (an empty one may have)
//   6. system_bytes is what the arena got from the system, foreign gaps included
//   7. a secondary arena's heaps are linked from the newest, where its top is, to the one that
//   holds the Arena itself; every allocated chunk in them has kNonMain
//
// Thread safety: an arena's fields belong to the holder of its lock, but for the three of the lists
// of arenas (see there) and the fastbins: any thread may push to those at any time, without the
// lock; only its holder takes from them. A Thread belongs to its thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "interposer/base/lock.h"
#include "interposer/heap/layout.h"
#include "interposer/heap/settings.h"

namespace heapledger::heap {

inline constexpr size_t kBinCount = 128;
inline constexpr size_t kUnsortedBin = 1;
inline constexpr size_t kFastBinsBase = 10;      // glibc's number of fastbins.
inline constexpr size_t kSmallPolicyMax = 1008;  // Requests up to this nb are small.
inline constexpr size_t kConsolidateBytes =
    65536;  // A free this large merges the fastbins and may trim.

// Which bin holds free chunks of `bytes`, as glibc counts; a layout with slack has one small bin
// more.
template <class Layout>
struct Bins {
  static constexpr size_t kShift = Layout::kSlackMax / kAlignment;
  static constexpr size_t kSmallMax = kSmallPolicyMax + Layout::kSlackMax;

  static constexpr bool is_small(size_t bytes) { return bytes <= kSmallMax; }
  static constexpr size_t index(size_t bytes) {
    return is_small(bytes) ? bytes / kAlignment : kShift + large_index(bytes - Layout::kSlackMax);
  }
  // glibc's table: steps of 64, 512, 4 Ki, 32 Ki and 256 Ki bytes.
  static constexpr size_t large_index(size_t bytes) {
    if (bytes >> 6 <= 48) return 48 + (bytes >> 6);
    if (bytes >> 9 <= 20) return 91 + (bytes >> 9);
    if (bytes >> 12 <= 10) return 110 + (bytes >> 12);
    if (bytes >> 15 <= 4) return 119 + (bytes >> 15);
    if (bytes >> 18 <= 2) return 124 + (bytes >> 18);
    return 126;
  }
  static constexpr size_t fast_index(size_t bytes) { return bytes / kAlignment - 2; }
};

template <class Layout>
struct Arena {
  // Bins 1 to kBinCount - 1 of glibc's layout; one more where a small size is more. The by-size
  // links of the last head that is used are read too, and must not be null.
  static constexpr size_t kBinHeads = kBinCount - 1 + Bins<Layout>::kShift;

  base::Lock lock;
  bool contiguous = false;  // Memory comes from the break, without a gap so far as we know.
  // Some fastbin may be non-empty; a hint: set just after a push, so that it may come late.
  // Relaxed.
  bool has_fast_chunks = false;
  bool busy = false;       // Inside an ArenaScope: lists may be half-way through a change.
  uint8_t chunk_flag = 0;  // Of all chunks it hands out: kNonMain, or 0 in the main arena.
  Chunk* top = nullptr;
  // What the latest split for a small request left: further small requests are cut from it.
  Chunk* last_remainder = nullptr;
  Chunk* links[2 * kBinHeads] = {};  // Heads of the circular bin lists, next and previous.
  uint64_t bin_map[kBinCount / 64] = {};
  size_t system_bytes = 0;
  size_t system_bytes_max = 0;
  Arena* next = nullptr;       // All arenas, circular; set once, before others can see this one.
  Arena* next_free = nullptr;  // In the list of arenas without threads. These two belong to the
  size_t attached = 0;         // holder of Allocator::free_arenas_lock_; attached: its threads.

  // A pseudo-chunk whose links are the list head, so that lists need no special first element.
  // Index 1 to kBinHeads.
  Chunk* bin(size_t index) {
    return reinterpret_cast<Chunk*>(base::address_of(&links[2 * (index - 1)]) -
                                    static_cast<size_t>(Layout::kLinkAt));
  }
  bool may_have_fast() const { return __atomic_load_n(&has_fast_chunks, __ATOMIC_RELAXED); }
  void set_may_have_fast(bool value) {
    __atomic_store_n(&has_fast_chunks, value, __ATOMIC_RELAXED);
  }
  size_t top_bytes() const { return top == nullptr ? 0 : ChunkView<Layout>::size(top); }

  void init_bins() {
    for (size_t i = 1; i <= kBinHeads; ++i) {
      ChunkView<Layout>::next_link(bin(i)) = bin(i);
      ChunkView<Layout>::prev_link(bin(i)) = bin(i);
    }
  }
};

// With fastbins, where the version has them: the memory of an arena without would not hold them.
template <class Layout>
struct FastArena : Arena<Layout> {
  static constexpr size_t kFastBins = kFastBinsBase + Layout::kSlackMax / kAlignment;

  Chunk* fast[kFastBins] = {};  // Atomic.

  // Acquire: pairs with the release in push_fast(), so that the chunk's link can be followed.
  Chunk* first_fast(size_t index) const { return __atomic_load_n(&fast[index], __ATOMIC_ACQUIRE); }
};

// ---- Secondary arenas: memory in heaps, each a reserved range of addresses aligned to its own
// length, so that a chunk finds its heap, and there its arena, by masking its address. The first
// heap of an arena also holds the Arena.
//
//   heap +0   Heap            +48  Arena (the first heap only)      ... chunks ...  bytes
//   committed (readable) up to `committed`, reserved without access up to the heap's full length

inline constexpr size_t kHeapBytes = 2 * kDynamicThresholdMax;  // Reserved: glibc's HEAP_MAX_SIZE.
inline constexpr size_t kHeapBytesMin = 32 * 1024;              // In use from the start.

template <class Layout>
struct Heap {
  Arena<Layout>* arena = nullptr;
  Heap* previous = nullptr;  // The heap that was full before; null: the arena's first.
  size_t bytes = 0;          // In use: chunks end here.
  size_t committed = 0;      // Readable and writable; at least `bytes`. Bit 0: see below.

  static constexpr size_t kFromPool = 1;  // In `committed`: it has pages of the huge pool.

  uintptr_t begin() const { return base::address_of(this); }
  // Relaxed, without the lock: a live block never lies in what shrinking takes or growing adds.
  uintptr_t end() const { return begin() + __atomic_load_n(&bytes, __ATOMIC_RELAXED); }
  void set_bytes(size_t value) { __atomic_store_n(&bytes, value, __ATOMIC_RELAXED); }
  bool is_from_pool() const { return (committed & kFromPool) != 0; }
  size_t committed_bytes() const { return committed & ~kFromPool; }
  void set_committed(size_t value) { committed = value | (committed & kFromPool); }
};

// A freed block in a cache or fastbin: its first word is the next one, disguised by its own address
// (glibc's safe-linking), so that a stray write is noticed by the misalignment it causes.
struct FreeEntry {
  uintptr_t disguised_next = 0;

  FreeEntry* next() const {
    return reinterpret_cast<FreeEntry*>(disguised_next ^ (base::address_of(this) >> 12));
  }
  void set_next(const FreeEntry* entry) {
    disguised_next = base::address_of(entry) ^ (base::address_of(this) >> 12);
  }
};

// Freed blocks kept for the thread that freed them. Allocated from the arena as glibc does, as a
// chunk with glibc's nb.
template <class Layout>
struct ThreadCache {
  static constexpr size_t kBins = 64 + Layout::kSlackMax / kAlignment;
  static constexpr size_t kLargeBins = 12;

  static constexpr size_t index(size_t chunk_bytes) {
    return (chunk_bytes - kMinChunk) / kAlignment;
  }

  uint16_t counts[kBins] = {};
  FreeEntry* entries[kBins] = {};
  // Sizes above those, by powers of two, smallest first; see allocator_large_cache.h. Where the
  // version has none, the chunk ends before them.
  FreeEntry* large[kLargeBins] = {};
};

// What the allocator keeps per thread. Its owner puts it where it likes: the shim in initial-exec
// TLS, a simulator in an array. Constant-initialised and trivially destructible. Handed to every
// call that may use the cache.
//
// A signal handler may allocate, whatever its thread was doing; see allocator_nested.h. `cache` is
// null while a cache operation is under way, before the first call, and for ever after
// thread_exit(): whoever finds it null goes past the cache. `in_arena` says that the bins may be
// half-way through a change.
template <class Layout>
struct Thread {
  ThreadCache<Layout>* cache = nullptr;  // Ready to use.
  ThreadCache<Layout>* owned = nullptr;  // The same, also while it is not ready.
  Arena<Layout>* arena = nullptr;        // Where this thread allocates; null: none yet.
  FreeEntry* deferred = nullptr;         // Freed by signal handlers that could not take the lock.
  bool in_arena = false;                 // This thread holds an arena's lock, or waits for it.
  bool ended = false;                    // No cache any more: thread_exit() ran, or none was had.
  bool fork_locked = false;              // fork_prepare() of this thread took the locks.
};

// The right to an arena for a scope. Without other threads the flag alone is enough.
template <class Layout>
class ArenaScope {
 public:
  // Inlined early, or the object would be kept in memory throughout the flattened callers.
  [[gnu::always_inline]] ArenaScope(Thread<Layout>& thread, Arena<Layout>& arena,
                                    bool single_threaded) noexcept
      : thread_(thread), arena_(arena), locked_(!single_threaded) {
    thread_.in_arena = true;
    base::compiler_barrier();
    if (locked_) arena_.lock.lock();
    arena_.busy = true;
    base::compiler_barrier();
  }
  [[gnu::always_inline]] ~ArenaScope() {
    base::compiler_barrier();
    arena_.busy = false;
    if (locked_) arena_.lock.unlock();
    base::compiler_barrier();
    thread_.in_arena = false;
  }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Thread<Layout>& thread_;
  Arena<Layout>& arena_;
  const bool locked_;
};

}  // namespace heapledger::heap
