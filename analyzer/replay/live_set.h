// SPDX-License-Identifier: Apache-2.0
// The blocks that are live at a moment of the replay, by id and by address; and those that were
// live at kept moments before.
//
// What ends a block names its id, which is exact (ids are never used twice), and its address, by
// which it is found: the table of addresses is needed for page faults anyway, and it stays in the
// caches. Blocks that the table cannot give are found by id alone.
// Invariants. 1. Sums equal those over the blocks. 2. Where two live blocks claim one address (a
// realloc's old block is taken out at the end of its call, and another thread may have its place
// by then; or a free was lost) the newer one has it.
//
// A kept moment costs nothing until its blocks end: they stay in their places, marked, until the
// moment is kept anew. So there are never more places than blocks live now and at the moments.
// Thread safety: none. Cost: 10-20 ns per block where the caches hold the table; 64 bytes, and 8 to
// 64 of the table.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "analyzer/replay/block_index.h"
#include "analyzer/replay/flat_map.h"

namespace heapledger::analyzer {

// In the layout that the recorder's allocator uses, a header stands before each block.
inline constexpr uint64_t kHeaderBytes = 16;
inline constexpr uint64_t kChunkBytesMin = 32;

// How many moments a replay can keep.
inline constexpr size_t kKeptMoments = 3;

struct Block {
  uint64_t id = 0;
  uint64_t address = 0;
  uint64_t size = 0;    // Requested.
  uint64_t usable = 0;  // What it can hold.
  int64_t time_ns = 0;
  uint32_t stack = 0;  // That allocated it.
  uint32_t thread = 0;
  uint64_t step = 0;       // Of the replay, that began it; 0: inherited.
  bool inherited = false;  // Allocated by an ancestor, before the fork.
  bool live = false;       // Kept by LiveSet, as is:
  uint8_t kept = 0;        // Ended, and was live at these kept moments: a bit for each.
};
static_assert(sizeof(Block) == 64 && kKeptMoments <= 8);

class LiveSet {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;

  LiveSet() = default;
  LiveSet(const LiveSet&) = delete;
  LiveSet& operator=(const LiveSet&) = delete;

  // Takes over the blocks of another set; this one must be empty.
  void copy_from(const LiveSet& other);
  // The block's place: a number that is its alone as long as it lives. kNone if its address has a
  // block of this id already: nothing is changed then.
  uint32_t insert(const Block& block);
  // Takes the block out of the place that is returned; kNone if there is none of this id.
  // `address`: where it should be; anything if that is not known. at() has it until the next
  // insert().
  uint32_t take(uint64_t id, uint64_t address);
  const Block& at(uint32_t place) const { return slot(place); }
  // Has the caches get what finding the block at an address will need, in three steps, each when
  // the one before had some time: begin_lookup(), Lookup::find_cell(), prefetch().
  using Lookup = BlockIndex::Lookup;
  Lookup begin_lookup(uint64_t address) const { return {starts_, address}; }
  void find_cell(Lookup& lookup) const { lookup.find_cell(starts_); }
  // Without a branch on whether there is one: allocations and frees follow no pattern.
  [[gnu::always_inline]] void prefetch(const Lookup& lookup) const {
    if (made_ == 0) return;
    const uint32_t found = lookup.found();
    __builtin_prefetch(&slot(found - (found != 0 ? 1 : 0)), 1);
  }
  // The live block whose chunk (header and usable bytes) holds `address`, or nullptr.
  const Block* covering(uint64_t address) const;
  // The first block that has a byte in [start, end), or nullptr.
  const Block* first_in(uint64_t start, uint64_t end) const;
  // Bytes between the live blocks before and after `address`, inside [start, end).
  uint64_t gap_around(uint64_t address, uint64_t start, uint64_t end) const;
  void mark_inherited();
  // Nothing is inserted, taken or looked up by address any more: gives the memory of that back.
  void forget_addresses() { starts_ = {}; }

  uint64_t requested_bytes() const { return requested_bytes_; }
  uint64_t usable_bytes() const { return usable_bytes_; }
  uint64_t blocks() const { return blocks_; }

  template <typename Visit>
  void for_each(Visit visit) const {
    each_place([&](const Block& block) {
      if (block.live) visit(block);
    });
  }

  // Keeps this moment as number `moment`, in place of the one that was: all blocks up to this step.
  void keep(size_t moment, uint64_t step);
  // It is not wanted any more, or is number `to` from now on.
  void forget(size_t moment);
  void move(size_t moment, size_t to);
  // The blocks that were live at it.
  template <typename Visit>
  void for_each_at(size_t moment, Visit visit) const {
    const uint64_t step = *kept_[moment].step;
    each_place([&](const Block& block) {
      if ((block.live || (block.kept >> moment & 1) != 0) && block.step <= step) visit(block);
    });
  }

 private:
  static constexpr size_t kSegmentBlocks = 4096;
  struct alignas(64) Slot {  // A cache line, where most would lie on two.
    Block block;
  };
  using Segment = std::array<Slot, kSegmentBlocks>;
  struct Kept {
    std::optional<uint64_t> step;  // Nothing: no moment is kept.
    std::vector<uint32_t> ended;   // Of its blocks.
  };

  Block& slot(uint32_t place) const {
    return (*segments_[place / kSegmentBlocks])[place % kSegmentBlocks].block;
  }
  template <typename Visit>
  void each_place(Visit visit) const {
    for (uint32_t place = 0; place < made_; ++place) visit(at(place));
  }
  // Others are no addresses of blocks, and granule 0 is where a missing one lies.
  static bool can_be_indexed(uint64_t address) { return address >= 16; }
  uint32_t take_place() {
    if (unused_.empty()) [[unlikely]]
      return make_place();
    const uint32_t place = unused_.back();
    unused_.pop_back();
    // Soon it is another one's turn, and that may have ended long ago.
    constexpr size_t kAhead = 6;
    if (unused_.size() >= kAhead) __builtin_prefetch(&slot(unused_[unused_.size() - kAhead]), 1);
    return place;
  }
  uint32_t make_place();
  uint32_t unlink_elsewhere(uint64_t id);
  uint32_t take_elsewhere(uint64_t id);
  void retire_kept(uint32_t place);
  void set_kept(Block& block, unsigned moments) const {
    block.kept = static_cast<uint8_t>(moments & ((1u << kKeptMoments) - 1));
  }

  std::vector<std::unique_ptr<Segment>> segments_;
  uint32_t made_ = 0;             // Places that were ever used.
  std::vector<uint32_t> unused_;  // Of them.
  BlockIndex starts_;
  FlatMap displaced_;             // Id -> place, of live blocks whose address another one has.
  std::optional<FlatMap> by_id_;  // Of all live blocks; made when an address was wrong once.
  std::array<Kept, kKeptMoments> kept_;
  int64_t kept_step_max_ = -1;  // The latest of their steps; -1: none.
  uint64_t blocks_ = 0;
  uint64_t requested_bytes_ = 0;
  uint64_t usable_bytes_ = 0;
};

// Asked for with every call, so they are to be inlined.
inline uint32_t LiveSet::insert(const Block& block) {
  if (by_id_ && by_id_->find(block.id) != FlatMap::kNone) [[unlikely]]
    return kNone;
  const uint32_t place = take_place();
  if (can_be_indexed(block.address)) {
    const uint32_t before = starts_.put(block.address, place);
    if (before != kNone && at(before).id == block.id) [[unlikely]] {
      starts_.put(block.address, before);
      unused_.push_back(place);
      return kNone;
    }
    if (before != kNone && at(before).id != 0) displaced_.put(at(before).id, before);
  } else if (block.id != 0) {
    displaced_.put(block.id, place);
  }
  // Field by field: a wider copy of what was just written would wait for the writes.
  Block& kept = slot(place);
  kept.id = block.id;
  kept.address = block.address;
  kept.size = block.size;
  kept.usable = block.usable;
  kept.time_ns = block.time_ns;
  kept.stack = block.stack;
  kept.thread = block.thread;
  kept.step = block.step;
  kept.inherited = block.inherited;
  kept.live = true;
  kept.kept = 0;
  ++blocks_;
  requested_bytes_ += block.size;
  usable_bytes_ += block.usable;
  if (by_id_ && block.id != 0) [[unlikely]]
    by_id_->put(block.id, place);
  return place;
}

inline uint32_t LiveSet::take(uint64_t id, uint64_t address) {
  if (id == 0) return kNone;
  uint32_t place = kNone;
  if (can_be_indexed(address)) {
    place = starts_.take_if(address, [&](uint32_t found) { return at(found).id == id; });
  }
  if (place == kNone) [[unlikely]] {
    place = unlink_elsewhere(id);
    if (place == kNone) return kNone;
  }
  Block& block = slot(place);
  --blocks_;
  requested_bytes_ -= block.size;
  usable_bytes_ -= block.usable;
  if (by_id_) [[unlikely]]
    by_id_->take(id);
  block.live = false;
  if (static_cast<int64_t>(block.step) <= kept_step_max_) {
    retire_kept(place);
  } else {
    block.kept = 0;
    unused_.push_back(place);
  }
  return place;
}

}  // namespace heapledger::analyzer
