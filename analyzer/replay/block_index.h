// SPDX-License-Identifier: Apache-2.0
// Blocks by where they start: how an event finds the block it ends, and a page fault the block it
// touches.
//
// Blocks start at multiples of 16, and what a program frees it mostly allocated not long before,
// near by: a table over the addresses stays in the caches where a hash would scatter. 256 bytes of
// addresses are a *cell*, a cache line with the number of the block that starts in each 16 of them.
// A *leaf* covers 64 MiB with a table of its cells, and bits that say which cells have a block: one
// level of bits, one of words of them, one of words of those, so that looking back or ahead over
// memory without blocks skips 64 times as much at each level. A leaf's table is calloc'ed: parts
// never used cost no memory.
// Memory: 64 bytes per cell in use, so 8 to 64 bytes per block; 1.6 % of the address range that has
// blocks. Thread safety: none. Cost: two cache lines, mostly warm.
#pragma once

#include <array>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace heapledger::analyzer {

class BlockIndex {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;
  struct Start {
    uint64_t address = 0;
    uint32_t block = kNone;
  };

  // Addresses are rounded down to 16. One block has an address: the last that was put there.
  // Returns the one that had it, or kNone.
  uint32_t put(uint64_t address, uint32_t block) {
    const uint64_t key = address >> kLeafBits;
    Leaf* found = leaf(key);
    if (found == nullptr) found = &make_leaf(key);
    const size_t place = (address >> kCellBits) % kLeafCells;
    uint32_t number = found->cells.get()[place];
    if (number == 0) number = make_cell(*found, place);
    return std::exchange(cell(number)[(address >> kGranuleBits) % kCellStarts], block + 1) - 1;
  }
  void erase(uint64_t address) {
    if (const Spot at = spot(address); at.number != 0) erase(at, address);
  }
  uint32_t find(uint64_t address) const { return block_at(spot(address), address); }
  // find(), and erase() if `is_it` says so of the block; kNone if not.
  template <typename Is>
  uint32_t take_if(uint64_t address, Is is_it) {
    const Spot at = spot(address);
    const uint32_t found = block_at(at, address);
    if (found == kNone || !is_it(found)) return kNone;
    erase(at, address);
    return found;
  }
  // Looks an address up in three steps, to be made one after the other while something else is
  // done: each has the caches get what the next one reads. What changes in between may make the
  // result wrong.
  class Lookup {
   public:
    Lookup() = default;
    Lookup(const BlockIndex& index, uint64_t address)
        : place_(static_cast<uint32_t>(address >> kGranuleBits) % kCellStarts) {
      const Leaf* found = index.leaf(address >> kLeafBits);
      if (found == nullptr) return;
      at_ = &found->cells.get()[(address >> kCellBits) % kLeafCells];
      __builtin_prefetch(at_, 1);
    }
    void find_cell(const BlockIndex& index) {
      if (index.segments_.empty()) return;
      at_ = &index.cell(*at_)[place_];  // Where there is none: that of number 0, which is empty.
      __builtin_prefetch(at_, 1);
    }
    // The block's number + 1; 0: none.
    uint32_t found() const { return *at_; }

   private:
    static constexpr uint32_t kNothing = 0;
    const uint32_t* at_ = &kNothing;
    uint32_t place_ = 0;
  };
  // The greatest start <= address, the smallest >= address.
  std::optional<Start> at_or_before(uint64_t address) const;
  std::optional<Start> at_or_after(uint64_t address) const;

 private:
  static constexpr int kGranuleBits = 4;
  static constexpr int kCellBits = 8;   // log2 of the bytes that a cell covers,
  static constexpr int kLeafBits = 26;  // and a leaf.
  static constexpr size_t kLeafCells = size_t{1} << (kLeafBits - kCellBits);
  static constexpr size_t kCellStarts = size_t{1} << (kCellBits - kGranuleBits);
  using Cell = std::array<uint32_t, kCellStarts>;  // Block + 1; 0: none starts here.
  static constexpr size_t kSegmentCells = 1024;
  struct alignas(64) Segment {
    std::array<Cell, kSegmentCells> cells{};
  };
  struct Free {
    void operator()(uint32_t* words) const { std::free(words); }
  };
  struct Leaf {
    std::unique_ptr<uint32_t, Free> cells;               // Number of the cell; 0: none.
    std::array<uint64_t, kLeafCells / 64> used{};        // A bit per cell.
    std::array<uint64_t, kLeafCells / 64 / 64> words{};  // A bit per word of used.
    uint64_t groups = 0;                                 // A bit per word of words.
  };
  static_assert(kLeafCells / 64 / 64 == 64);

  // Where an address belongs: its leaf and the number of its cell, 0 where there is none.
  struct Spot {
    Leaf* leaf = nullptr;
    uint32_t number = 0;
  };
  Spot spot(uint64_t address) const {
    Leaf* found = leaf(address >> kLeafBits);
    if (found == nullptr) return {};
    return {found, found->cells.get()[(address >> kCellBits) % kLeafCells]};
  }
  uint32_t block_at(const Spot& spot, uint64_t address) const {
    if (spot.number == 0) return kNone;
    return cell(spot.number)[(address >> kGranuleBits) % kCellStarts] - 1;
  }
  void erase(const Spot& spot, uint64_t address) {
    Cell& starts = cell(spot.number);
    uint32_t& start = starts[(address >> kGranuleBits) % kCellStarts];
    // Before it is written: wide reads of what was just written wait for the write.
    uint32_t used = 0;
    for (const uint32_t other : starts) used += other != 0 ? 1 : 0;
    used -= start != 0 ? 1 : 0;
    start = 0;
    if (used == 0) drop_cell(*spot.leaf, (address >> kCellBits) % kLeafCells);
  }
  Cell& cell(uint32_t number) const {
    return segments_[number / kSegmentCells]->cells[number % kSegmentCells];
  }
  Leaf* leaf(uint64_t key) const {
    const Cached& cached = cached_[key % kCached];
    return cached.key == key ? cached.leaf : find_leaf(key);
  }
  Leaf* find_leaf(uint64_t key) const;
  Leaf& make_leaf(uint64_t key);
  uint32_t make_cell(Leaf& leaf, size_t place);
  void drop_cell(Leaf& leaf, size_t place);
  static std::optional<size_t> last_cell(const Leaf& leaf, size_t place);
  static std::optional<size_t> first_cell(const Leaf& leaf, size_t place);
  std::optional<Start> last_start(uint64_t key, const Leaf& leaf, size_t granule) const;
  std::optional<Start> first_start(uint64_t key, const Leaf& leaf, size_t granule) const;

  std::map<uint64_t, std::unique_ptr<Leaf>> leaves_;
  struct Cached {
    uint64_t key = UINT64_MAX;
    Leaf* leaf = nullptr;
  };
  // Arenas lie in leaves of their own: threads that take turns should not search for them.
  static constexpr size_t kCached = 64;
  mutable std::array<Cached, kCached> cached_{};
  std::vector<std::unique_ptr<Segment>> segments_;
  std::vector<uint32_t> free_cells_;
  uint32_t cells_made_ = 1;  // Number 0 stands for none.
};

}  // namespace heapledger::analyzer
