// SPDX-License-Identifier: Apache-2.0
//
// The allocator: glibc's decisions over any Layout (layout.h) and any Os (os.h). It knows nothing
// of tracing.
//
// Reading order: arena.h (data structures and invariants), this file (the interface and the two
// paths that must be fast), then allocator_cache.h (threads' caches), allocator_take.h (how a
// request is served), allocator_system.h (where the main arena's memory comes from and goes to),
// allocator_arenas.h (which arena serves a thread), allocator_heaps.h (memory of the others),
// allocator_release.h (free, checks), allocator_resize.h (realloc, memalign), allocator_nested.h
// (signal handlers), allocator_admin.h (mallopt, statistics, fork), allocator_valid.h (the
// invariants). Whoever instantiates the template includes allocator_impl.h once; everybody else
// this file and an `extern template`.
//
// Use: one constinit global per process; no constructor runs. The first call reads the settings
// from the Os. Thread safety: every public function may be called by any thread with its own
// Thread; see arena.h and fork_prepare(). A signal handler may allocate and free while its thread
// is inside allocate, release, reallocate and their kin, where glibc may deadlock or damage its
// heap; inside the administrative functions it may block.
// errno: ENOMEM where a function returns nullptr, EINVAL where it says so; otherwise untouched.
// Cost: a request served by the thread's cache is about 15 instructions without a lock; so is its
// release.
#pragma once

#include <cstddef>
#include <cstdint>

#include "interposer/base/bits.h"
#include "interposer/base/lock.h"
#include "interposer/heap/arena.h"
#include "interposer/heap/layout.h"
#include "interposer/heap/os.h"
#include "interposer/heap/page_map.h"
#include "interposer/heap/settings.h"

namespace heapledger::heap {

// Which call a pointer was handed to: decides the message where it is not a live block.
enum class Use : uint8_t { kFree, kRealloc };

// What check() found.
struct Checked {
  bool ours =
      false;  // False: outside all our memory; nothing was read or changed. The caller decides.
  uint64_t id = 0;  // The block's id (set_id), 0 where none was set.
};

// Told by reallocate() just before memory of the old block can be given to anybody else. May run
// more than once in one call: the last one counts; if reallocate() returns nullptr for a non-zero
// size, the old block lives on and none counts. Runs with an arena's lock held: it must not
// allocate.
struct ReleaseObserver {
  void (*before_release)(void* context, void* old_block) = nullptr;
  void* context = nullptr;

  void operator()(void* old_block) const {
    if (before_release != nullptr) before_release(context, old_block);
  }
};

// Numbers for mallinfo and friends. Bytes unless they are counts.
struct Info {
  size_t arena_count = 0;
  size_t system_bytes = 0;  // Held by all arenas (mallinfo.arena); mapped blocks not included.
  size_t system_bytes_max = 0;
  size_t free_chunks = 0;   // In bins, tops included (ordblks).
  size_t fast_chunks = 0;   // smblks
  size_t fast_bytes = 0;    // fsmblks
  size_t free_bytes = 0;    // Bins, fastbins and tops (fordblks). Caches count as in use.
  size_t top_bytes = 0;     // Main arena (keepcost).
  size_t mapped_count = 0;  // hblks
  size_t mapped_bytes = 0;  // hblkhd
  size_t mapped_count_max = 0;
  size_t mapped_bytes_max = 0;
};

// One line of malloc_info: free chunks of sizes from..to in one arena.
struct SizeClass {
  size_t from = 0;
  size_t to = 0;
  size_t bytes = 0;
  size_t count = 0;
};
struct ArenaReport {
  static constexpr size_t kFastMax = 11;
  SizeClass fast[kFastMax];   // count 0: empty.
  SizeClass bins[kBinCount];  // Index kUnsortedBin is the unsorted list.
  size_t fast_bytes = 0, fast_count = 0;
  size_t rest_bytes = 0, rest_count = 0;  // Bins and top.
  size_t top_bytes = 0;
  size_t system_bytes = 0, system_bytes_max = 0;
  size_t heap_count = 0;  // 0: the main arena. The next two are sums over the heaps.
  size_t heap_bytes = 0, heap_committed_bytes = 0;
};

// Memory of the arenas that no block has.
enum class FreeKind : uint8_t {
  kCache,  // Of a thread.
  kBin,    // Fastbins and the unsorted list among them.
  kTop,
  kOwn,  // The allocator's: headers of heaps, caches themselves, fences.
};

template <class LayoutT, OperatingSystem OsT>
class Allocator {
 public:
  using Layout = LayoutT;
  using Os = OsT;
  using ThreadState = Thread<Layout>;
  using ArenaType = Arena<Layout>;
  using FastArenaType = FastArena<Layout>;
  using HeapType = Heap<Layout>;

  constexpr Allocator() = default;
  constexpr explicit Allocator(const Os& os) : os_(os) {}
  Allocator(const Allocator&) = delete;
  Allocator& operator=(const Allocator&) = delete;

  // ---- Blocks. All return memory aligned to 16 whose id is 0, or nullptr with errno = ENOMEM.

  void* allocate(ThreadState& thread, size_t size) {
    void* block = allocate_cached(thread, size);
    return block != nullptr ? block : allocate_slow(thread, size);
  }
  // allocate() where the thread's cache has such a block; otherwise nullptr, nothing done.
  void* allocate_cached(ThreadState& thread, size_t size);
  // The rest of allocate(): for callers that keep it out of their fast path.
  [[gnu::flatten, gnu::noinline]] void* allocate_slow(ThreadState& thread, size_t size);

  // calloc. Clears what may hold old data, never what came fresh from the system.
  [[gnu::flatten, gnu::noinline]] void* allocate_zeroed(ThreadState& thread, size_t count,
                                                        size_t size);

  // memalign: an alignment that is no power of two is rounded up; above 2^63: nullptr with errno =
  // EINVAL. The wrappers with other rules (posix_memalign, valloc, pvalloc) check and round before
  // they call this.
  [[gnu::noinline]] void* allocate_aligned(ThreadState& thread, size_t alignment, size_t size);

  // realloc. Null `old`: allocate(size). Size 0: releases (observer told), returns nullptr, errno
  // untouched. `old` must be ours: check() it first with Use::kRealloc, or reallocate_any() below.
  // The observer is told:
  //   in place:  before the block changes (a shrunk block's tail can be reused afterwards)
  //   mremap:    before the system call, after which the old addresses can be mapped by anybody
  //   moving:    after the copy, before the old block is released
  // The new block's id is 0 in every case: the old one's must be read before.
  [[gnu::noinline]] void* reallocate(ThreadState& thread, void* old, size_t size,
                                     const ReleaseObserver& observer = {});

  // free for a pointer that check() accepted. Null is not allowed.
  void release_checked(ThreadState& thread, void* block);

  // check() and release_checked() in one, for a block that goes to the thread's cache or, where
  // that is full, to a fastbin: then kDone. kPast: it looks like a live block, but goes elsewhere.
  // kUnfit: any pointer, null too. Nothing was done after these two.
  enum class Cached : uint8_t { kDone, kPast, kUnfit };
  Cached release_cached(ThreadState& thread, void* block);
  // The rest of release() after kPast.
  void release_past_cache(ThreadState& thread, void* block);

  // free; a pointer outside our memory ends the program with glibc's message. Null: nothing.
  void release(ThreadState& thread, void* block) {
    const Cached cached = release_cached(thread, block);
    if (cached == Cached::kDone || block == nullptr) return;
    if (cached == Cached::kPast) {
      release_past_cache(thread, block);
    } else if (!release_uncached(thread, block)) {
      fatal_foreign(Use::kFree);
    }
  }
  // The rest of release() after kUnfit, for a pointer that is not null. False: it is outside our
  // memory.
  [[gnu::noinline]] bool release_uncached(ThreadState& thread, void* block);

  // Finds out whether `block` (not null) is a live block of ours, without changing anything: call
  // it before the free event is written. Inside our memory but not a live block (misaligned, freed
  // already, overwritten header): the program ends with glibc's message. Outside our memory:
  // {false}.
  Checked check(const void* block, Use use);

  // check() for callers that have no use for foreign pointers: ends the program there too. Returns
  // the id.
  uint64_t checked_id(const void* block, Use use = Use::kFree) {
    const Checked found = check(block, use);
    if (!found.ours) fatal_foreign(use);
    return found.id;
  }
  // glibc's message for a pointer that is not the heap's, and abort.
  [[noreturn]] static void fatal_foreign(Use use);

  // Word 1 of the header of a live block. Layouts without an id word ignore it.
  static void set_id(void* block, uint64_t id) { View::set_mark(View::of_block(block), id); }
  static uint64_t id_of(const void* block) { return View::mark(View::of_block(block)); }

  // Bytes of a live block that the program may use; 0 for null and for a block that is seen to be
  // free.
  static size_t usable_size(const void* block);

  // Bytes before `block` that its header takes (the chunk starts there).
  static constexpr size_t kHeaderBytes = ChunkView<Layout>::kHeaderBytes;

  // True where the address lies in memory the allocator holds: arenas in full, mapped blocks by
  // their first page.
  bool owns(const void* pointer) const;

  // ---- Threads and processes.

  // Gives the thread's cache back; later calls of this thread work without one. Call it as late as
  // possible.
  [[gnu::noinline]] void thread_exit(ThreadState& thread);

  // Around fork(): prepare takes all locks, the other two give them back. The child keeps the
  // calling thread's Thread; the caches of the other threads stay allocated for ever, as with
  // glibc.
  // In a signal handler that interrupted this thread inside the allocator, the locks are left as
  // they are.
  void fork_prepare(ThreadState& thread);
  void fork_parent(ThreadState& thread);
  void fork_child(ThreadState& thread);

  // ---- Administration.

  // malloc_trim. Returns whether anything went back to the system.
  [[gnu::noinline]] bool trim(size_t pad);

  // mallopt, by glibc's parameter numbers and rules. Returns false only where glibc's mallopt
  // returns 0.
  [[gnu::noinline]] bool set_option(int parameter, int value);

  // Consistent per arena, not across arenas.
  Info info();
  // Fills *report for arena `index` in the order of glibc's list (0: main, then the newest first);
  // false where there is none.
  bool report_arena(size_t index, ArenaReport* report);

  // A copy of the parameters as they are now, the dynamic threshold included.
  Settings settings();

  // The break as the allocator knows it (0: it has not asked yet), as libc's sbrk() caches it. The
  // program's own brk and sbrk must use and update the same value, or the next one would take
  // memory from under the heap.
  uintptr_t known_break() const { return __atomic_load_n(&break_, __ATOMIC_RELAXED); }
  void note_break(uintptr_t address) { __atomic_store_n(&break_, address, __ATOMIC_RELAXED); }

  // True while no call has initialised the allocator: it then owns nothing.
  bool is_untouched() const { return !__atomic_load_n(&initialised_, __ATOMIC_ACQUIRE); }

  // The rules of settings().glibc_version.
  const GlibcRules& rules() {
    ensure_initialised();
    return rules_;
  }

  Os& os() { return os_; }

  // Walks all arenas and tests the invariants of arena.h, and the cache of `thread` if given. Slow;
  // for tests. On failure *why (if given) names the broken invariant.
  bool arena_is_valid(const ThreadState* thread = nullptr, const char** why = nullptr);

  // allocator_walk.h, for analyses: visit(begin, end, FreeKind) for what is in no live block.
  template <class Visit>
  void visit_free(const Visit& visit);
  template <class Visit>
  void visit_cache(const ThreadState& thread, const Visit& visit);

 private:
  using View = ChunkView<Layout>;
  using BinsOf = Bins<Layout>;
  using Cache = ThreadCache<Layout>;

  // In the mark word of a chunk that was freed. Never an id: its slot number is beyond any that is
  // handed out.
  static constexpr uint64_t kFreedMark = 0xfff1'ced0'b10c'4eadULL;
  static constexpr size_t kCacheChunkMax = kCacheRequestMax + 8 + Layout::kSlackMax;

  // The ways that programs take often are made of small functions, but compiled as one (flatten):
  // calls among them would cost as much as what they do. What is rare is kept out of there
  // (noinline).

  // allocator_cache.h
  void ensure_initialised();
  void note_fast_limit();
  [[gnu::noinline]] void initialise();
  void ensure_cache(ThreadState& thread, size_t policy);
  [[gnu::noinline]] void create_cache(ThreadState& thread);
  [[gnu::noinline]] void create_cache_inside(ThreadState& thread, ArenaType& arena);
  Request cache_request(size_t size) const;
  bool adopt_cache(ThreadState& thread, Chunk* chunk);
  bool is_born_by_free(size_t policy) const;
  bool is_cacheable(size_t policy) const { return policy <= cache_policy_max_; }
  bool cache_has_room(const ThreadState& thread, size_t chunk_bytes) const;
  bool cache_push(ThreadState& thread, Chunk* chunk, size_t chunk_bytes);
  Chunk* cache_pop(ThreadState& thread, size_t chunk_bytes);
  static Chunk* taken_from_cache(FreeEntry* entry);

  // allocator_large_cache.h
  bool is_cacheable_at_all(size_t policy) const {
    return is_cacheable(policy) || policy <= cache_large_max_;
  }
  static size_t large_index(size_t policy);
  static FreeEntry* take_entry(FreeEntry** head, FreeEntry* before);
  template <class Wanted>
  Chunk* cache_find(ThreadState& thread, const Request& request, const Wanted& wanted);
  [[gnu::noinline]] bool large_push(ThreadState& thread, Chunk* chunk);
  [[gnu::noinline]] Chunk* large_pop(ThreadState& thread, const Request& request);
  Chunk* cache_pop_aligned(ThreadState& thread, size_t alignment, const Request& request);
  void release_large(ThreadState& thread, Cache* cache);

  // allocator_take.h: a request against one arena, lock held.
  void* allocate_uncached(ThreadState& thread, const Request& request);
  [[gnu::noinline]] void refuse_size(ThreadState& thread, size_t size);
  void look_for_arenas(ThreadState& thread, size_t size, size_t first_bytes);
  template <class Serve>
  Chunk* serve(ThreadState& thread, const Request& request, size_t first_bytes,
               const Serve& serve_from);
  template <class Serve>
  Chunk* serve_from_one(ThreadState& thread, ArenaType* arena, const Request& request,
                        bool last_try, const Serve& serve_from);
  template <class Serve>
  [[gnu::noinline]] Chunk* serve_elsewhere(ThreadState& thread, const ArenaType& failed,
                                           const Request& request, Serve serve_from);
  [[gnu::noinline]] Chunk* map_without_arena(const Request& request);
  [[gnu::flatten, gnu::noinline]] Chunk* take(ThreadState& thread, ArenaType& arena,
                                              const Request& request);
  Chunk* take_free(ThreadState& thread, ArenaType& arena, const Request& request);
  template <class Pop>
  void fill_cache(ThreadState& thread, ArenaType& arena, const Request& request, const Pop& pop);
  Chunk* take_fast(ThreadState& thread, ArenaType& arena, const Request& request);
  Chunk* take_small(ThreadState& thread, ArenaType& arena, const Request& request);
  Chunk* take_unsorted(ThreadState& thread, ArenaType& arena, const Request& request);
  Chunk* take_large(ArenaType& arena, const Request& request);
  Chunk* take_next_bin(ArenaType& arena, const Request& request);
  Chunk* take_top(ArenaType& arena, const Request& request);
  Chunk* split_last_remainder(ArenaType& arena, Chunk* chunk, const Request& request);
  Chunk* split_free(ArenaType& arena, Chunk* chunk, const Request& request, bool remember);
  void file_in_bin(ArenaType& arena, Chunk* chunk);
  void file_in_large_bin(ArenaType& arena, Chunk* chunk, size_t index);
  void check_unsorted(ArenaType& arena, Chunk* chunk);
  void fill_new(Chunk* chunk, const Request& request);
  Chunk* hand_out(ArenaType& arena, Chunk* chunk, const Request& request);
  void remember_request(ArenaType& arena, Chunk* chunk, const Request& request);
  size_t dirty_top_bytes(ArenaType& arena);

  // allocator_arenas.h
  ArenaType* arena_for(ThreadState& thread, size_t size);
  [[gnu::noinline]] ArenaType* attach_arena(ThreadState& thread, size_t size,
                                            const ArenaType* avoid);
  ArenaType* choose_arena(ThreadState& thread, size_t size, const ArenaType* avoid);
  ArenaType* arena_to_retry(ThreadState& thread, const ArenaType& failed, size_t size);
  ArenaType* create_arena(size_t size);
  ArenaType* reuse_arena(const ArenaType* avoid);
  void attach(ThreadState& thread, ArenaType* arena);
  void detach(ThreadState& thread);
  void leave_arena(ThreadState& thread);
  size_t arena_limit(size_t count);

  // allocator_heaps.h: memory of secondary arenas.
  void configure_heaps();
  HeapType* reserve_heap(size_t bytes);
  HeapType* reserve_heap_in(size_t bytes, size_t page_bytes, int flags);
  uintptr_t reserve_aligned(int flags);
  void destroy_heap(HeapType* heap);
  bool grow_heap(HeapType* heap, size_t bytes);
  bool grow_arena(ThreadState& thread, ArenaType& arena, size_t chunk_bytes);
  void fence_full_heap(ThreadState& thread, ArenaType& arena, Chunk* old_top, size_t old_bytes);
  void trim_heap(ArenaType& arena);
  bool leave_heap(ArenaType& arena);
  bool releases_by_remap();
  bool shrink_heap(HeapType* heap, size_t bytes);
  // By the mask of the address: only for chunks that are known to lie in a heap.
  HeapType* heap_of(const void* pointer) const {
    return static_cast<HeapType*>(
        base::pointer_to(base::align_down(base::address_of(pointer), heap_bytes_)));
  }
  // Behind its header and, in the first of an arena, behind that.
  Chunk* first_chunk(const HeapType* heap) const {
    const size_t at = heap->previous == nullptr ? first_chunk_at_ : rules_.heap_header_bytes;
    return reinterpret_cast<Chunk*>(heap->begin() + at);
  }
  // What its accessible part grows and shrinks by.
  size_t page_bytes(const HeapType* heap) const {
    return heap->is_from_pool() ? huge_bytes_ : heap_page_bytes_;
  }

  // allocator_system.h: memory from and to the system, main arena and mapped blocks.
  [[gnu::noinline]] Chunk* take_from_system(ThreadState& thread, ArenaType& arena,
                                            const Request& request);
  [[gnu::noinline]] Chunk* map_block(const Request& request, bool may_be_huge = true);
  Chunk* map_block_in(const Request& request, size_t page_bytes);
  uintptr_t map_pages(size_t length, size_t page_bytes, Cause cause);
  void configure_huge_pages();
  static int huge_flags(size_t page_bytes);
  void advise_huge(uintptr_t begin, size_t bytes);
  bool grow_top(ThreadState& thread, ArenaType& arena, size_t chunk_bytes);
  void adopt_memory(ThreadState& thread, ArenaType& arena, uintptr_t begin, size_t bytes,
                    bool from_break);
  uintptr_t end_new_part(ArenaType& arena, uintptr_t begin, size_t bytes, bool from_break);
  void fence_old_top(ThreadState& thread, ArenaType& arena, Chunk* old_top, size_t old_bytes);
  uintptr_t map_fallback(ArenaType& arena, size_t* bytes, size_t old_bytes, size_t chunk_bytes);
  size_t fallback_bytes(const ArenaType& arena, size_t asked, size_t old_bytes, size_t chunk_bytes,
                        size_t page_bytes) const;
  [[gnu::noinline]] bool trim_top(ArenaType& arena, size_t pad);
  bool release_pages(ArenaType& arena);
  uintptr_t move_break(ptrdiff_t increment, Cause cause);
  void note_main_range(uintptr_t begin, uintptr_t end);
  [[gnu::noinline]] void unmap_block(Chunk* chunk);
  Chunk* remap_block(Chunk* chunk, const Request& request, const ReleaseObserver& observer);
  void raise_threshold(size_t mapped_chunk_bytes);
  void count_mapping(size_t bytes);
  static size_t front_offset(const Chunk* chunk);

  // allocator_release.h
  [[gnu::flatten, gnu::noinline]] Checked check_slow(const void* block, Use use);
  void check_arena_chunk(const Chunk* chunk, Use use);
  void check_mapped_chunk(const Chunk* chunk, Use use);
  [[noreturn]] void fatal_size(const Chunk* chunk, Use use);
  [[noreturn]] void fatal_end(const Chunk* chunk, Use use);
  [[noreturn]] void fatal_double_free(const Chunk* chunk, Use use);
  [[gnu::noinline]] void release_slow(ThreadState& thread, Chunk* chunk);
  [[gnu::noinline]] void release_mapped(Chunk* chunk);
  void release_in_arena(ThreadState& thread, Chunk* chunk);
  [[gnu::flatten, gnu::noinline]] void release_fast(ThreadState& thread, Chunk* chunk);
  [[gnu::flatten, gnu::noinline]] void release_merging(ThreadState& thread, Chunk* chunk);
  template <class Free>
  void release_locked(ThreadState& thread, Chunk* chunk, const Free& free_in);
  void free_chunk(ThreadState& thread, ArenaType& arena, Chunk* chunk);
  void free_past_cache(ArenaType& arena, Chunk* chunk);
  bool release_unlocked(ThreadState& thread, Chunk* chunk, size_t head);
  void push_fast(ArenaType& arena, Chunk* chunk, size_t bytes);
  void free_fast(ArenaType& arena, Chunk* chunk, size_t bytes);
  void free_merging(ArenaType& arena, Chunk* chunk, size_t bytes);
  size_t merge_and_file(ArenaType& arena, Chunk* chunk, size_t bytes, bool consolidating);
  void give_back_after(ArenaType& arena, size_t merged_bytes);
  [[gnu::noinline]] void consolidate(ArenaType& arena);
  static void unlink(Chunk* chunk);
  void push_unsorted(ArenaType& arena, Chunk* chunk, size_t bytes);

  // allocator_resize.h
  void* reallocate_mapped(ThreadState& thread, Chunk* old, const Request& request,
                          const ReleaseObserver& observer);
  Chunk* resize_in_arena(ThreadState& thread, ArenaType& arena, Chunk* old, const Request& request,
                         const ReleaseObserver& observer);
  bool grow_in_place(ArenaType& arena, Chunk* old, size_t bytes);
  Chunk* move_chunk(ThreadState& thread, ArenaType& arena, Chunk* old, const Request& request,
                    const ReleaseObserver& observer);
  void split_tail(ThreadState& thread, ArenaType& arena, Chunk* chunk, const Request& request);
  void merge_tail(ArenaType& arena, Chunk* chunk, const Request& request);
  bool keeps_block(const Chunk* chunk, size_t size) const;
  Chunk* take_aligned(ThreadState& thread, ArenaType& arena, size_t alignment,
                      const Request& wanted, const Request& padded);
  size_t lead_to(size_t alignment, const Chunk* chunk) const;
  Chunk* align_mapped(size_t alignment, Chunk* chunk);

  // allocator_nested.h: calls of a signal handler that interrupted its own thread in an arena.
  bool is_nested(const ThreadState& thread);
  // True while no other thread exists that could want a lock. Without an opinion of the Os: false.
  [[gnu::always_inline]] bool is_single_threaded() {
    if constexpr (requires(Os os) { os.is_single_threaded(); }) return os_.is_single_threaded();
    return false;
  }
  bool is_interrupted(const ArenaType& arena);
  [[gnu::noinline]] void* reallocate_nested(ThreadState& thread, Chunk* old, const Request& request,
                                            const ReleaseObserver& observer);
  [[gnu::noinline]] void defer(ThreadState& thread, Chunk* chunk);
  [[gnu::noinline]] void release_deferred(ThreadState& thread);

  // allocator_admin.h
  class AdminScope;
  bool apply_option(int parameter, int value);
  template <class Visit>
  void for_each_arena(const Visit& visit);
  static SizeClass sum_bin(ArenaType& arena, size_t index);
  static SizeClass sum_fast(ArenaType& arena, size_t index);
  void report_lists(ArenaType& arena, ArenaReport* report);

  // allocator_walk.h
  template <class Visit>
  void visit_lists(ArenaType& arena, const Visit& visit);
  template <class Visit>
  void visit_heaps(ArenaType& arena, const Visit& visit);

  // allocator_valid.h
  const char* fault_in_arena(ArenaType& arena);
  // Each returns nullptr or the broken invariant in words.
  const char* fault_in_parts(ArenaType& arena, size_t* free_chunks);
  const char* fault_in_part(ArenaType& arena, Chunk* first, const Chunk* last_fence, size_t* held,
                            size_t* free_chunks);
  const char* fault_in_chunk(const Chunk* chunk, uintptr_t end, bool prev_free);
  const char* fault_in_bins(ArenaType& arena, size_t* free_chunks);
  const char* fault_in_bin(ArenaType& arena, size_t index, size_t* free_chunks);
  const char* fault_in_sizes(ArenaType& arena, size_t index);
  const char* fault_in_fast_bins(ArenaType& arena);
  const char* fault_in_cache(const ThreadState& thread);

  // Of an allocated chunk.
  ArenaType& arena_of_chunk(const Chunk* chunk) {
    return (View::head(chunk) & kNonMain) == 0 ? main_ : *heap_of(chunk)->arena;
  }
  // Only where the version has fastbins.
  static FastArenaType& with_fast(ArenaType& arena) { return static_cast<FastArenaType&>(arena); }
  // Of any address in an arena: free chunks do not say it.
  ArenaType& arena_at(const void* address) {
    const bool in_heap = page_map_.lookup(base::address_of(address)) == PageState::kHeap;
    return in_heap ? *heap_of(address)->arena : main_;
  }
  bool in_main_range(uintptr_t address) const {
    const uintptr_t begin = __atomic_load_n(&main_begin_, __ATOMIC_RELAXED);
    const uintptr_t end = __atomic_load_n(&main_end_, __ATOMIC_RELAXED);
    return address - begin < end - begin;
  }
  // True where nearly all chunks are, and their headers can be read: not in fallback mappings.
  bool in_break_or_heap(uintptr_t address) const {
    return in_main_range(address) || page_map_.lookup(address) == PageState::kHeap;
  }
  // Bytes from such a chunk to the end of the memory around it; 0 where its kNonMain is wrong.
  size_t room_at(const Chunk* chunk) const {
    const uintptr_t address = base::address_of(chunk);
    if ((View::head(chunk) & kNonMain) == 0) [[likely]] {
      return __atomic_load_n(&main_end_, __ATOMIC_RELAXED) - address;
    }
    const bool in_heap = page_map_.lookup(address) == PageState::kHeap;
    return in_heap ? heap_of(chunk)->end() - address : 0;
  }
  bool in_arenas(uintptr_t address) const {
    if (in_main_range(address)) return true;
    const PageState state = page_map_.lookup(address);
    if (state != PageState::kHeap) return state == PageState::kArena;
    // Beyond what is in use nothing may be read.
    return address < heap_of(base::pointer_to(address))->end();
  }

  // Read on every call.
  uintptr_t main_begin_ =
      0;  // The break area the main arena spans, foreign gaps included; written under its lock.
  uintptr_t main_end_ = 0;
  size_t cache_policy_max_ = 0;   // Largest nb that is cached; 0 before the first call.
  size_t cache_count_ = 0;        // Blocks per cache bin.
  size_t cache_large_max_ = 0;    // Largest nb in the large cache bins; 0: they are not used.
  size_t fast_unlocked_max_ = 0;  // Largest nb that release_unlocked() takes; relaxed.
  size_t heap_bytes_ = 0;  // Reserved for a heap; a power of two. As all members 0 before the first
                           // call, or the library's file would hold the whole object.
  uint64_t initialised_ = 0;
  uint32_t admin_depth_ = 0;  // Administrative functions that hold an arena's lock; atomic.

  uintptr_t main_base_ = 0;  // The first address the main arena ever got; under its lock.
  Settings settings_ =
      kNoSettings;    // mmap_threshold and trim_threshold change at any time: relaxed atomics.
  GlibcRules rules_;  // Of settings_.glibc_version; fixed by the first call.
  // allocator_huge.h; all fixed by the first call, and zero where huge pages are not asked for.
  size_t huge_bytes_ = 0;      // Pages of the pool that large requests try to get.
  size_t thp_bytes_ = 0;       // The break moves in steps of this.
  bool thp_advises_ = false;   // New memory of that size is advised to be huge.
  bool break_is_off_ = false;  // The break is never moved: a mapping may have huge pages.
  // allocator_heaps.h; likewise.
  size_t heap_bytes_min_ = 0;
  size_t heap_page_bytes_ = 0;  // Unless the heap is from the pool.
  size_t first_chunk_at_ = 0;   // In an arena's first heap.
  uintptr_t break_ = 0;
  size_t mapped_count_ = 0;  // Live mapped blocks; these four are relaxed atomics, as statistics.
  size_t mapped_bytes_ = 0;
  size_t mapped_count_max_ = 0;
  size_t mapped_bytes_max_ = 0;
  base::Lock init_lock_;
  base::Lock arenas_lock_;       // Around the making of an arena, and fork.
  base::Lock free_arenas_lock_;  // Innermost: which thread has which arena.
  [[no_unique_address]] Os os_{};
  FastArenaType main_;
  ArenaType* free_arenas_ = nullptr;    // Without threads, the latest first; by free_arenas_lock_.
  ArenaType* next_to_share_ = nullptr;  // Where reuse_arena() goes on; relaxed, any value will do.
  size_t arena_count_ = 0;              // By arenas_lock_.
  size_t arena_limit_ = 0;              // 0: not known yet; by arenas_lock_.
  uintptr_t heap_hint_ = 0;        // Aligned addresses that are probably free; atomic exchange.
  uint8_t releases_by_remap_ = 0;  // What the Os said; relaxed, every thread stores the same.
  // Where the main arena's contiguous parts begin, for the walk of arena_is_valid(); parts beyond
  // the last slot are not walked.
  static constexpr size_t kSegmentsMax = 64;
  Chunk* segments_[kSegmentsMax] = {};
  size_t segment_count_ = 0;
  PageMap<Os> page_map_;
};

// ---- The two fast paths. Everything here is inlined into the exported malloc and free.

template <class Layout, OperatingSystem Os>
[[gnu::always_inline]] inline void* Allocator<Layout, Os>::allocate_cached(ThreadState& thread,
                                                                           size_t size) {
  Cache* cache = thread.cache;
  if (cache != nullptr && size <= kCacheRequestMax) [[likely]] {
    const size_t index = Cache::index(Layout::chunk_bytes(size));
    thread.cache =
        nullptr;  // From here to the next barrier a signal handler leaves the cache alone.
    base::compiler_barrier();
    FreeEntry* entry = cache->entries[index];
    if (entry != nullptr && base::is_aligned(base::address_of(entry), kAlignment)) [[likely]] {
      cache->entries[index] = entry->next();
      --cache->counts[index];
      base::compiler_barrier();
      thread.cache = cache;
      View::set_mark(View::of_block(entry), 0);
      return entry;
    }
    base::compiler_barrier();
    thread.cache = cache;
  }
  return nullptr;
}

template <class Layout, OperatingSystem Os>
[[gnu::always_inline]] inline Checked Allocator<Layout, Os>::check(const void* block, Use use) {
  const uintptr_t address = base::address_of(block);
  if (base::is_aligned(address, kAlignment) && in_break_or_heap(address)) [[likely]] {
    const Chunk* chunk = View::of_block(block);
    const size_t head = View::head(chunk);
    const uint64_t mark = View::mark(chunk);
    const size_t beyond_min = (head & ~(kFlagMask & ~kIsMapped)) - kMinChunk;
    if (beyond_min <= kCacheChunkMax - kMinChunk && mark != kFreedMark) [[likely]] {
      return {true, mark};
    }
  }
  return check_slow(block, use);
}

template <class Layout, OperatingSystem Os>
[[gnu::always_inline]] inline void Allocator<Layout, Os>::release_checked(ThreadState& thread,
                                                                          void* block) {
  Chunk* chunk = View::of_block(block);
  const size_t head = View::head(chunk);
  if ((head & kIsMapped) == 0 && is_cacheable(View::policy_size_of(head)) &&
      cache_push(thread, chunk, head & ~kFlagMask)) [[likely]] {
    return;
  }
  release_slow(thread, chunk);
}

template <class Layout, OperatingSystem Os>
[[gnu::always_inline]] inline auto Allocator<Layout, Os>::release_cached(ThreadState& thread,
                                                                         void* block) -> Cached {
  Chunk* chunk = View::of_block(block);
  const uintptr_t address = base::address_of(chunk);
  Cache* cache = thread.cache;
  if (!base::is_aligned(address, kAlignment) || !in_break_or_heap(address) || cache == nullptr)
      [[unlikely]] {
    return Cached::kUnfit;
  }
  const size_t head = View::head(chunk);
  const size_t bytes = head & ~kFlagMask;
  if (bytes < kMinChunk || (head & kIsMapped) != 0 || View::mark(chunk) == kFreedMark)
      [[unlikely]] {
    return Cached::kUnfit;
  }
  const size_t policy = View::policy_size_of(head);
  if (!is_cacheable(policy)) return Cached::kPast;
  // Asked before the cache is taken: a signal handler in between costs exactness, nothing else.
  if (cache->counts[Cache::index(bytes)] >= cache_count_) {
    const bool is_fast = policy <= __atomic_load_n(&fast_unlocked_max_, __ATOMIC_RELAXED);
    return is_fast && release_unlocked(thread, chunk, head) ? Cached::kDone : Cached::kPast;
  }
  return cache_push(thread, chunk, bytes) ? Cached::kDone : Cached::kPast;
}

// A free into a fastbin, for a chunk in the break or a heap: it takes no lock, so that those who
// wait for it are not many. False, and nothing done: in a signal handler, or where something is
// wrong with the chunk behind; release_fast() knows what then.
template <class Layout, OperatingSystem Os>
[[gnu::always_inline]] inline bool Allocator<Layout, Os>::release_unlocked(ThreadState& thread,
                                                                           Chunk* chunk,
                                                                           size_t head) {
  const size_t bytes = head & ~kFlagMask;
  const size_t room = room_at(chunk);
  if (bytes >= room || thread.in_arena || thread.deferred != nullptr) [[unlikely]]
    return false;
  const size_t next_bytes = View::size(View::after(chunk, bytes));
  ArenaType& arena = arena_of_chunk(chunk);
  if (next_bytes - kFenceBytes >= room - bytes) [[unlikely]]
    return false;
  const Chunk* first = with_fast(arena).first_fast(BinsOf::fast_index(bytes));
  if (first == chunk) [[unlikely]]
    return false;
  if (!is_single_threaded()) {
    push_fast(arena, chunk, bytes);
    return true;
  }
  // With other threads, the first one may be anybody's by now: not to be looked at.
  if (first != nullptr && View::size(first) != bytes) [[unlikely]]
    return false;
  if (__atomic_load_n(&admin_depth_, __ATOMIC_RELAXED) != 0) [[unlikely]]
    return false;
  const ArenaScope<Layout> scope(thread, arena, true);
  push_fast(arena, chunk, bytes);
  return true;
}

// With the arena's lock or without; without other threads, inside an ArenaScope.
template <class Layout, OperatingSystem Os>
[[gnu::always_inline]] inline void Allocator<Layout, Os>::push_fast(ArenaType& arena, Chunk* chunk,
                                                                    size_t bytes) {
  Chunk** bin = &with_fast(arena).fast[BinsOf::fast_index(bytes)];
  auto* entry = static_cast<FreeEntry*>(View::block(chunk));
  const auto link_to = [&](const Chunk* first) {
    entry->set_next(first == nullptr ? nullptr : static_cast<FreeEntry*>(View::block(first)));
  };
  View::set_mark(chunk, kFreedMark);
  Chunk* first = __atomic_load_n(bin, __ATOMIC_RELAXED);
  link_to(first);
  if (is_single_threaded()) {
    __atomic_store_n(bin, chunk, __ATOMIC_RELAXED);
    arena.set_may_have_fast(true);
    return;
  }
  // Release: pairs with the acquire in first_fast(). That `first` may have been taken and put back
  // meanwhile does no harm: it is the first again.
  while (
      !__atomic_compare_exchange_n(bin, &first, chunk, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {
    link_to(first);
  }
  if (!arena.may_have_fast()) arena.set_may_have_fast(true);
}

template <class Layout, OperatingSystem Os>
inline void Allocator<Layout, Os>::release_in_arena(ThreadState& thread, Chunk* chunk) {
  if (View::policy_size(chunk) <= settings_.fast_chunk_max) {
    release_fast(thread, chunk);
  } else {
    release_merging(thread, chunk);
  }
}

template <class Layout, OperatingSystem Os>
inline void Allocator<Layout, Os>::release_past_cache(ThreadState& thread, void* block) {
  Chunk* chunk = View::of_block(block);
  // What check_slow() asks besides, release_in_arena() asks too.
  if (View::size(chunk) < room_at(chunk) && cache_large_max_ == 0) [[likely]] {
    release_in_arena(thread, chunk);
  } else {
    release_uncached(thread, block);
  }
}

template <class Layout, OperatingSystem Os>
[[gnu::always_inline]] inline bool Allocator<Layout, Os>::cache_push(ThreadState& thread,
                                                                     Chunk* chunk,
                                                                     size_t chunk_bytes) {
  Cache* cache = thread.cache;
  if (cache == nullptr) return false;
  const size_t index = Cache::index(chunk_bytes);
  thread.cache = nullptr;  // As in allocate_cached().
  base::compiler_barrier();
  const bool has_room = cache->counts[index] < cache_count_;
  if (has_room) {
    View::set_mark(chunk, kFreedMark);
    auto* entry = static_cast<FreeEntry*>(View::block(chunk));
    entry->set_next(cache->entries[index]);
    cache->entries[index] = entry;
    ++cache->counts[index];
  }
  base::compiler_barrier();
  thread.cache = cache;
  return has_room;
}

}  // namespace heapledger::heap
