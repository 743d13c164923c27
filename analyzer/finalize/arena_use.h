// SPDX-License-Identifier: Apache-2.0
// Who allocates and who frees, arena by arena; counted while a process is replayed.
//
// Which arena a block is in follows from its address: an arena's heap has 64 MiB of addresses,
// aligned, to itself while it exists; the main arena has the break and mappings that stand in for
// it; a mapping for one block is no arena's. Thread safety: none. Cost: a few ns per call, a lookup
// of a range for blocks with a mapping.
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "analyzer/replay/flat_map.h"
#include "analyzer/replay/map_notes.h"
#include "analyzer/replay/replay.h"

namespace heapledger::analyzer {

inline constexpr uint32_t kNoArena = 0;  // Blocks with a mapping of their own.
inline constexpr uint32_t kMainArena = 1;

struct ArenaThreadUse {
  uint64_t blocks = 0, bytes = 0;       // Allocated there by the thread.
  uint64_t freed = 0, freed_bytes = 0;  // Of the arena's blocks, freed by it.
  uint64_t freed_foreign = 0;           // Of those: blocks of other threads.

  bool is_empty() const { return blocks == 0 && freed == 0; }
};

// Blocks of arenas other than the main one that other threads freed, by the stack that allocated.
struct ForeignFrees {
  uint32_t stack = 0;
  uint64_t blocks = 0, bytes = 0;
};

class ArenaUse {
 public:
  explicit ArenaUse(std::vector<ArenaChange> history) : history_(std::move(history)) {}

  void begin(const MemoryMap& memory) { memory_ = &memory; }
  // Both return the block's arena.
  uint32_t on_alloc(const schema::CallRow& row, const Block& block);
  uint32_t on_end(const schema::CallRow& row, const Block& block);
  uint32_t arena_of(uint64_t address, int64_t now_ns) {
    if (now_ns >= next_change_ns_) follow_until(now_ns);
    return address >> kWindowBits == window_ ? arena_ : find_arena(address);
  }
  // Of the heaps that the arena cuts into chunks; of the main one, those that the break made.
  uint64_t held_bytes(uint32_t arena) const;

  // By arena, then by row of `thread`.
  const std::vector<std::vector<ArenaThreadUse>>& arenas() const { return arenas_; }
  // Most blocks first.
  std::vector<ForeignFrees> foreign_frees() const;

 private:
  static constexpr int kWindowBits = 26;

  uint32_t find_arena(uint64_t address);
  void note_foreign(const Block& block);
  void follow_until(int64_t now_ns);
  void follow(const ArenaChange& change);
  ArenaThreadUse& use(uint32_t arena, uint32_t thread) {
    const uint64_t key = uint64_t{arena} << 32 | thread;
    return key == last_key_ && last_use_ != nullptr ? *last_use_ : find_use(arena, thread);
  }
  ArenaThreadUse& find_use(uint32_t arena, uint32_t thread);

  std::vector<ArenaChange> history_;
  size_t next_ = 0;                          // Of history_,
  int64_t next_change_ns_ = INT64_MIN;       // and its time: not known yet, at first.
  FlatMap heaps_;                            // 1 + window of 64 MiB -> arena.
  std::vector<std::set<uint64_t>> windows_;  // By arena.
  const MemoryMap* memory_ = nullptr;
  uint64_t window_ = UINT64_MAX;  // The last one asked for that is one arena's alone,
  uint32_t arena_ = kNoArena;     // and whose it is.
  std::vector<std::vector<ArenaThreadUse>> arenas_;
  uint64_t last_key_ = 0;               // Arena and thread that use() was asked for last,
  ArenaThreadUse* last_use_ = nullptr;  // and what it gave; null: nothing yet.
  FlatMap foreign_places_;              // 1 + stack -> index into foreign_.
  std::vector<ForeignFrees> foreign_;
};

// Asked for with every call, so they are to be inlined.
inline uint32_t ArenaUse::on_alloc(const schema::CallRow& row, const Block& block) {
  const uint32_t arena = arena_of(block.address, row.time_ns);
  ArenaThreadUse& by = use(arena, row.thread);
  ++by.blocks;
  by.bytes += block.size;
  return arena;
}

inline uint32_t ArenaUse::on_end(const schema::CallRow& row, const Block& block) {
  const uint32_t arena = arena_of(block.address, row.time_ns);
  ArenaThreadUse& by = use(arena, row.thread);
  ++by.freed;
  by.freed_bytes += block.size;
  if (block.inherited || block.thread == row.thread) return arena;
  ++by.freed_foreign;
  if (arena > kMainArena) note_foreign(block);
  return arena;
}

}  // namespace heapledger::analyzer
