// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay/block_index.h"

#include <bit>
#include <new>
#include <utility>

namespace heapledger::analyzer {

namespace {

// Highest set bit below `bit`, or -1.
int bit_below(uint64_t word, size_t bit) {
  const uint64_t below = word & ((uint64_t{1} << bit) - 1);
  return below == 0 ? -1 : 63 - std::countl_zero(below);
}

// Lowest set bit above `bit`, or -1.
int bit_above(uint64_t word, size_t bit) {
  const uint64_t above = word & ~(((uint64_t{1} << bit) - 1) | uint64_t{1} << bit);
  return above == 0 ? -1 : std::countr_zero(above);
}

size_t highest(uint64_t word) { return 63 - static_cast<size_t>(std::countl_zero(word)); }
size_t lowest(uint64_t word) { return static_cast<size_t>(std::countr_zero(word)); }

}  // namespace

BlockIndex::Leaf* BlockIndex::find_leaf(uint64_t key) const {
  const auto found = leaves_.find(key);
  if (found == leaves_.end()) return nullptr;
  cached_[key % kCached] = {key, found->second.get()};
  return found->second.get();
}

BlockIndex::Leaf& BlockIndex::make_leaf(uint64_t key) {
  std::unique_ptr<Leaf>& made = leaves_[key];
  made = std::make_unique<Leaf>();
  void* cells = std::calloc(kLeafCells, sizeof(uint32_t));
  if (cells == nullptr) throw std::bad_alloc();
  made->cells.reset(static_cast<uint32_t*>(cells));
  return *made;
}

uint32_t BlockIndex::make_cell(Leaf& leaf, size_t place) {
  uint32_t number = cells_made_;
  if (free_cells_.empty()) {
    if (number / kSegmentCells >= segments_.size())
      segments_.push_back(std::make_unique<Segment>());
    ++cells_made_;
  } else {
    number = free_cells_.back();
    free_cells_.pop_back();
    // Soon it is another one's turn, and that may have been given back long ago.
    constexpr size_t kAhead = 4;
    if (free_cells_.size() >= kAhead) {
      __builtin_prefetch(&cell(free_cells_[free_cells_.size() - kAhead]), 1);
    }
  }
  leaf.cells.get()[place] = number;
  leaf.used[place / 64] |= uint64_t{1} << (place % 64);
  leaf.words[place / 64 / 64] |= uint64_t{1} << (place / 64 % 64);
  leaf.groups |= uint64_t{1} << (place / 64 / 64);
  return number;
}

// It is empty.
void BlockIndex::drop_cell(Leaf& leaf, size_t place) {
  free_cells_.push_back(std::exchange(leaf.cells.get()[place], 0));
  const size_t word = place / 64;
  if ((leaf.used[word] &= ~(uint64_t{1} << (place % 64))) != 0) return;
  if ((leaf.words[word / 64] &= ~(uint64_t{1} << (word % 64))) != 0) return;
  leaf.groups &= ~(uint64_t{1} << (word / 64));
}

// The last used cell before `place`.
std::optional<size_t> BlockIndex::last_cell(const Leaf& leaf, size_t place) {
  size_t word = place / 64;
  if (const int bit = bit_below(leaf.used[word], place % 64); bit >= 0) {
    return word * 64 + static_cast<size_t>(bit);
  }
  // Up a level wherever nothing is left below, then down again.
  size_t group = word / 64;
  int in_group = bit_below(leaf.words[group], word % 64);
  if (in_group < 0) {
    const int found = bit_below(leaf.groups, group);
    if (found < 0) return std::nullopt;
    group = static_cast<size_t>(found);
    in_group = static_cast<int>(highest(leaf.words[group]));
  }
  word = group * 64 + static_cast<size_t>(in_group);
  return word * 64 + highest(leaf.used[word]);
}

// The first used cell after `place`.
std::optional<size_t> BlockIndex::first_cell(const Leaf& leaf, size_t place) {
  size_t word = place / 64;
  if (const int bit = bit_above(leaf.used[word], place % 64); bit >= 0) {
    return word * 64 + static_cast<size_t>(bit);
  }
  size_t group = word / 64;
  int in_group = bit_above(leaf.words[group], word % 64);
  if (in_group < 0) {
    const int found = bit_above(leaf.groups, group);
    if (found < 0) return std::nullopt;
    group = static_cast<size_t>(found);
    in_group = static_cast<int>(lowest(leaf.words[group]));
  }
  word = group * 64 + static_cast<size_t>(in_group);
  return word * 64 + lowest(leaf.used[word]);
}

std::optional<BlockIndex::Start> BlockIndex::last_start(uint64_t key, const Leaf& leaf,
                                                        size_t granule) const {
  size_t from = granule % kCellStarts + 1;
  for (std::optional<size_t> place = granule / kCellStarts; place;
       place = last_cell(leaf, *place)) {
    if (const uint32_t number = leaf.cells.get()[*place]; number != 0) {
      const Cell& starts = cell(number);
      while (from > 0) {
        if (starts[--from] == 0) continue;
        const uint64_t at = (*place * kCellStarts + from) << kGranuleBits;
        return Start{(key << kLeafBits) + at, starts[from] - 1};
      }
    }
    from = kCellStarts;
  }
  return std::nullopt;
}

std::optional<BlockIndex::Start> BlockIndex::first_start(uint64_t key, const Leaf& leaf,
                                                         size_t granule) const {
  size_t from = granule % kCellStarts;
  for (std::optional<size_t> place = granule / kCellStarts; place;
       place = first_cell(leaf, *place)) {
    if (const uint32_t number = leaf.cells.get()[*place]; number != 0) {
      const Cell& starts = cell(number);
      for (; from < kCellStarts; ++from) {
        if (starts[from] == 0) continue;
        const uint64_t at = (*place * kCellStarts + from) << kGranuleBits;
        return Start{(key << kLeafBits) + at, starts[from] - 1};
      }
    }
    from = 0;
  }
  return std::nullopt;
}

std::optional<BlockIndex::Start> BlockIndex::at_or_before(uint64_t address) const {
  constexpr size_t kGranules = kLeafCells * kCellStarts;
  const uint64_t key = address >> kLeafBits;
  // Mostly there is one in the address's own leaf, and that one is at hand.
  const size_t granule = (address >> kGranuleBits) % kGranules;
  if (const Leaf* own = leaf(key)) {
    if (const auto found = last_start(key, *own, granule)) return found;
  }
  for (auto it = leaves_.lower_bound(key); it != leaves_.begin();) {
    --it;
    if (const auto found = last_start(it->first, *it->second, kGranules - 1)) return found;
  }
  return std::nullopt;
}

std::optional<BlockIndex::Start> BlockIndex::at_or_after(uint64_t address) const {
  constexpr size_t kGranules = kLeafCells * kCellStarts;
  const uint64_t up = (address >> kGranuleBits) + (address % (1u << kGranuleBits) != 0 ? 1 : 0);
  const uint64_t key = up / kGranules;
  if (const Leaf* own = leaf(key)) {
    if (const auto found = first_start(key, *own, up % kGranules)) return found;
  }
  for (auto it = leaves_.upper_bound(key); it != leaves_.end(); ++it) {
    if (const auto found = first_start(it->first, *it->second, 0)) return found;
  }
  return std::nullopt;
}

}  // namespace heapledger::analyzer
