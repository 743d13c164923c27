// SPDX-License-Identifier: Apache-2.0
// The blocks that are live at a moment of the replay, by id and by address.
//
// Blocks are found by id, which is exact: ids are never used twice. The address side answers one
// question, which block covers this address, and exists only where faults or residency need it.
// Invariants. 1. Sums equal those over the blocks. 2. Where two live blocks claim one address (a
// realloc's old block is taken out at the end of its call, and another thread may have its place
// by then; or a free was lost) the newer one has it.
// Thread safety: none. Cost: 30-150 ns per block, mostly cache misses.
#pragma once

#include <cstdint>
#include <vector>

#include "analyzer/replay/block_index.h"
#include "analyzer/replay/flat_map.h"

namespace heapledger::analyzer {

// In the layout that the recorder's allocator uses, a header stands before each block.
inline constexpr uint64_t kHeaderBytes = 16;
inline constexpr uint64_t kChunkBytesMin = 32;

struct Block {
  uint64_t id = 0;  // 0: this place is unused.
  uint64_t address = 0;
  uint64_t size = 0;    // Requested.
  uint64_t usable = 0;  // What it can hold.
  int64_t time_ns = 0;
  uint32_t stack = 0;  // That allocated it.
  uint32_t thread = 0;
  bool inherited = false;  // Allocated by an ancestor, before the fork.
};

class LiveSet {
 public:
  explicit LiveSet(bool index_addresses) : index_addresses_(index_addresses) {}

  // Takes over the blocks of another set; this one must be empty.
  void copy_from(const LiveSet& other);
  // False if a block of this id is there already: nothing is changed then.
  bool insert(const Block& block);
  // Takes the block out into `block`; false if there is none of this id.
  bool take(uint64_t id, Block& block);
  const Block* find(uint64_t id) const;
  // The live block whose chunk (header and usable bytes) holds `address`, or nullptr.
  const Block* covering(uint64_t address) const;
  // The first block that has a byte in [start, end), or nullptr.
  const Block* first_in(uint64_t start, uint64_t end) const;
  // Bytes between the live blocks before and after `address`, inside [start, end).
  uint64_t gap_around(uint64_t address, uint64_t start, uint64_t end) const;
  void mark_inherited();

  uint64_t requested_bytes() const { return requested_bytes_; }
  uint64_t usable_bytes() const { return usable_bytes_; }
  uint64_t blocks() const { return by_id_.size(); }

  template <typename Visit>
  void for_each(Visit visit) const {
    for (const Block& block : pool_) {
      if (block.id != 0) visit(block);
    }
  }

 private:
  bool index_addresses_;
  std::vector<Block> pool_;
  std::vector<uint32_t> unused_;
  FlatMap by_id_;
  FlatMap by_address_;
  BlockIndex starts_;
  uint64_t requested_bytes_ = 0;
  uint64_t usable_bytes_ = 0;
};

}  // namespace heapledger::analyzer
