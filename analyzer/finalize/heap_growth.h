// SPDX-License-Identifier: Apache-2.0
// Growth of heaps, by the stack whose request it was for; and how often as much as was asked for
// was free already in the same arena: in pieces too small, or in caches that the request could not
// use. That is what fragmentation costs while it arises.
//
// Free is what the arena holds less the chunks of its live blocks; of an arena other than the main
// one, less a page for its own tables. Mappings that stand in for the break are left out of what is
// held, so no growth is blamed too much. Thread safety: none. Cost: an addition per call; per
// growth, a look at the arena's heaps.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "analyzer/finalize/arena_use.h"

namespace heapledger::analyzer {

struct StackGrowth {
  uint32_t stack = 0;
  uint64_t growths = 0, bytes = 0;               // How often heaps grew for it, and by how much.
  uint64_t failed_reuses = 0, failed_bytes = 0;  // Of those: as much was free.
  uint64_t free_bytes_max = 0;                   // Most that was free at one of these.
};

class HeapGrowth {
 public:
  void on_inherited(const Block& block, uint32_t arena) { live_in(arena) += chunk_bytes(block); }
  void on_syscall(const SyscallRow& call, ArenaUse& arenas);
  void on_alloc(const Block& block, uint32_t arena, const ArenaUse& arenas) {
    live_in(arena) += chunk_bytes(block);
    if (!pending_.empty()) [[unlikely]]
      end_growth(block.thread, block.stack, chunk_bytes(block), arena, arenas);
  }
  void on_end(const Block& block, uint32_t arena) { live_in(arena) -= chunk_bytes(block); }

  // In ascending order of stack.
  std::vector<StackGrowth> rows() const;

 private:
  // A growth whose request has not returned.
  struct Pending {
    uint32_t arena;
    uint64_t held_bytes, free_bytes;  // Before it.
  };

  static uint64_t chunk_bytes(const Block& block) { return block.usable + kHeaderBytes; }
  uint64_t& live_in(uint32_t arena) {
    if (arena >= live_.size()) [[unlikely]]
      live_.resize(arena + 1);
    return live_[arena];
  }
  // With a block of the thread; `bytes`: its chunk's.
  void end_growth(uint32_t thread, uint32_t stack, uint64_t bytes, uint32_t arena,
                  const ArenaUse& arenas);

  std::vector<uint64_t> live_;                     // Bytes of live blocks' chunks, by arena.
  std::unordered_map<uint32_t, Pending> pending_;  // By thread.
  std::unordered_map<uint32_t, StackGrowth> stacks_;
};

}  // namespace heapledger::analyzer
