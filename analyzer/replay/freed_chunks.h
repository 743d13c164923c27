// SPDX-License-Identifier: Apache-2.0
// Freed chunks that the allocator still treats as in use: those in a thread's cache (glibc's
// tcache) and in fastbins. They are merged with nothing, so they hold the heap like live blocks.
//
// What is known are the calls, not the bins, so the state is followed by glibc's rules
// (glibc-policy.md) and corrected by addresses: a block that is handed out was in no cache but the
// one it is found in. What the rules cannot tell from calls is left out: chunks of small bins that
// a request moves to the cache beside its own.
// Invariants. 1. An address is in one place at most. 2. No thread's class holds more than
// cache_count chunks.
//
// Moments can be kept: what is changed from then on is noted, so that it can be undone in a copy.
// The notes do not grow without limit: after some ten thousand the copy is made.
// Thread safety: none. Cost: some ns per call; 20 ns for chunks of fastbins.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "analyzer/replay/byte_map.h"
#include "analyzer/replay/live_set.h"

namespace heapledger::analyzer {

// What decides where a freed chunk goes; as the process was set.
struct FreedChunkRules {
  size_t cache_count = 7;            // Chunks of one size in a thread's cache.
  uint64_t cache_policy_max = 1040;  // Largest chunk, by glibc's size of it, that is cached,
  uint64_t fast_policy_max = 128;    // and that goes to a fastbin.
};

// Of a live block in an arena: its chunk, and glibc's size of it, which decides.
inline uint64_t chunk_bytes_of(const Block& block) { return block.usable + kHeaderBytes; }
// A chunk may be larger than its request needs, where the rest was too small to be one.
inline uint64_t policy_bytes_of(const Block& block) {
  const uint64_t needed = std::max(kChunkBytesMin, (block.size + 15) / 16 * 16 + kHeaderBytes);
  const uint64_t by_glibc = std::max(kChunkBytesMin, (block.size + 8 + 15) / 16 * 16);
  const uint64_t bytes = chunk_bytes_of(block);
  return by_glibc + (bytes > needed ? bytes - needed : 0);
}

struct FreedChunk {
  uint64_t address = 0;  // Of the block it was.
  uint64_t bytes = 0;    // Of the chunk.
  uint32_t thread = 0;   // Whose cache; of a fastbin: who freed it.
  uint32_t stack = 0;    // That had allocated it.
  bool in_fastbin = false;
};

// What the rules need to know of the heap around a chunk.
struct ChunkPlace {
  uint64_t arena = 0;         // Any number that is the arena's alone.
  bool is_mapped = false;     // A block with a mapping of its own.
  uint64_t merged_bytes = 0;  // Freed: of the free run it becomes part of, at most.
};

class FreedChunks {
 public:
  explicit FreedChunks(const FreedChunkRules& rules) : rules_(rules) {}
  FreedChunks(const FreedChunks& other);
  FreedChunks& operator=(const FreedChunks& other);

  // A block is given back by `thread`. `place` is called where that alone does not decide.
  template <typename Place>
  void free(uint32_t thread, const Block& block, Place place) {
    if (undo_.size() >= kUndoMax) settle();
    const uint64_t policy = policy_bytes_of(block);
    if (push_cache(thread, block, policy)) return;
    if (has_fast() || is_fast(policy)) free_past_cache(thread, block, policy, place());
  }
  // A block begins.
  template <typename Place>
  void allocate(uint32_t thread, const Block& block, Place place) {
    if (undo_.size() >= kUndoMax) settle();
    if (!take_from_cache(thread, block)) allocate_past_cache(thread, block, place());
  }
  void end_thread(uint32_t thread);

  // Whether there are chunks in fastbins.
  bool has_fast() const { return fast_count_ != 0; }
  // Room for chunks of this size in a thread's cache.
  size_t cache_room(uint32_t thread, uint64_t chunk_bytes) const;
  bool is_cacheable(uint64_t policy_bytes) const { return policy_bytes <= rules_.cache_policy_max; }
  bool is_fast(uint64_t policy_bytes) const { return policy_bytes <= rules_.fast_policy_max; }

  void for_each(const std::function<void(const FreedChunk&)>& visit) const;

  // Keeps this moment as number `moment`, in place of the one that was.
  void keep(size_t moment);
  // It is not wanted any more, or is number `to` from now on.
  void forget(size_t moment) { kept_[moment] = {}; }
  void move(size_t moment, size_t to) { kept_[to] = std::exchange(kept_[moment], {}); }
  // What was freed at it; it must have been kept.
  FreedChunks at(size_t moment) const;

 private:
  static constexpr size_t kClasses = 68;  // Chunks of 32 to 1,104 bytes, in steps of 16.
  struct Entry {
    uint64_t address;
    uint32_t stack;
  };
  using Cache = std::array<std::vector<Entry>, kClasses>;
  static constexpr size_t kFastClasses = 12;  // Of them; glibc takes no larger M_MXFAST.
  struct FastEntry {
    uint64_t address;
    uint32_t thread;
    uint32_t stack;
  };
  using FastLists = std::array<std::vector<FastEntry>, kFastClasses>;

  // A change, as it is undone.
  enum class Change : uint8_t { kCached, kUncached, kFast, kListed, kUnlisted };
  struct Undo {
    Change change;
    uint8_t size_class = 0;
    uint16_t place = 0;    // kUncached: in the thread's list.
    uint32_t thread = 0;   // Whose cache; of a list's entry: the entry's.
    uint32_t stack = 0;    // kFast: the mark that was there before.
    uint64_t address = 0;  // kFast: the key.
    uint64_t arena = 0;    // Of a list.
  };
  static constexpr size_t kUndoMax = 1 << 16;
  struct Kept {
    bool undoes = false;  // The moment is at `from` of undo_.
    size_t from = 0;
    std::unique_ptr<FreedChunks> copy;  // Else here, if it was kept.
  };

  static uint8_t mark_of(size_t size_class) { return static_cast<uint8_t>(size_class + 1); }
  static size_t class_of(uint64_t chunk_bytes) { return (chunk_bytes - 32) / 16; }
  Cache* find_cache(uint32_t thread) const {
    return thread < caches_.size() ? caches_[thread].get() : nullptr;
  }
  std::vector<Entry>& cache_list(uint32_t thread, size_t size_class) {
    Cache* own = find_cache(thread);
    if (own == nullptr) [[unlikely]]
      own = &make_cache(thread);
    return (*own)[size_class];
  }
  Cache& make_cache(uint32_t thread);
  FastLists& lists_of(uint64_t arena) {
    return arena == listed_arena_ && lists_ != nullptr ? *lists_ : find_lists(arena);
  }
  FastLists& find_lists(uint64_t arena);
  bool push_cache(uint32_t thread, const Block& block, uint64_t policy);
  bool take_from_cache(uint32_t thread, const Block& block);
  void free_past_cache(uint32_t thread, const Block& block, uint64_t policy,
                       const ChunkPlace& place);
  void allocate_past_cache(uint32_t thread, const Block& block, const ChunkPlace& place);
  void push_fast(uint64_t arena, const FastEntry& entry, uint64_t chunk_bytes);
  void take_fast(uint32_t thread, const Block& block, uint64_t arena);
  void consolidate(uint64_t arena);
  void unlist(uint64_t arena, size_t size_class, std::vector<FastEntry>& list);
  void push(std::vector<Entry>& entries, uint32_t thread, size_t size_class, const Entry& entry);
  void put_fast(uint64_t address, size_t size_class);
  void set_fast_mark(uint64_t address, uint8_t mark);
  // False, and nothing done, if it is not in fastbins as one of this class.
  bool take_fast_key(uint64_t address, size_t size_class);
  void note(const Undo& undo) {
    if (undoes_) undo_.push_back(undo);
  }
  void settle();
  void undo_to(std::span<const Undo> changes);
  void undo(const Undo& change);
  uint64_t& last_arena(uint32_t thread) {
    if (thread >= arenas_.size()) [[unlikely]]
      arenas_.resize(std::max<size_t>(size_t{thread} + 1, arenas_.size() * 2));
    return arenas_[thread];
  }
  bool is_in_fast(const FastEntry& entry, size_t size_class) const {
    return fast_.get(entry.address) == mark_of(size_class);
  }

  FreedChunkRules rules_;
  std::vector<std::unique_ptr<Cache>> caches_;  // By thread.
  std::vector<uint64_t> arenas_;                // Of each thread, where it got memory last.
  ByteMap fast_;                                // Address -> class + 1: what is in fastbins now.
  size_t fast_count_ = 0;
  std::map<uint64_t, FastLists> fast_lists_;  // By arena. Some are gone; see is_in_fast().
  uint64_t listed_arena_ = 0;                 // Whose lists were asked for last,
  FastLists* lists_ = nullptr;                // and those; null: nobody's yet.
  bool undoes_ = false;                       // Somebody may want changes undone.
  std::vector<Undo> undo_;
  std::array<Kept, kKeptMoments> kept_;
};

// Asked for with every call, so they are to be inlined.
inline void FreedChunks::push(std::vector<Entry>& entries, uint32_t thread, size_t size_class,
                              const Entry& entry) {
  entries.push_back(entry);
  note({.change = Change::kCached,
        .size_class = static_cast<uint8_t>(size_class),
        .thread = thread});
}

inline bool FreedChunks::push_cache(uint32_t thread, const Block& block, uint64_t policy) {
  const size_t size_class = class_of(chunk_bytes_of(block));
  if (size_class >= kClasses || !is_cacheable(policy)) return false;
  std::vector<Entry>& entries = cache_list(thread, size_class);
  if (entries.size() >= rules_.cache_count) return false;
  push(entries, thread, size_class, {block.address, block.stack});
  return true;
}

inline bool FreedChunks::take_from_cache(uint32_t thread, const Block& block) {
  const size_t size_class = class_of(chunk_bytes_of(block));
  Cache* own = size_class < kClasses ? find_cache(thread) : nullptr;
  if (own == nullptr) return false;
  std::vector<Entry>& entries = (*own)[size_class];
  // Mostly the last one: calloc and realloc pass over the cache.
  for (size_t i = entries.size(); i-- > 0;) {
    if (entries[i].address != block.address) continue;
    note({Change::kUncached, static_cast<uint8_t>(size_class), static_cast<uint16_t>(i), thread,
          entries[i].stack, entries[i].address});
    entries.erase(entries.begin() + static_cast<ptrdiff_t>(i));
    return true;
  }
  return false;
}

}  // namespace heapledger::analyzer
