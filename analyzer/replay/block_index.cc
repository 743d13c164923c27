// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay/block_index.h"

#include <bit>
#include <new>

namespace heapledger::analyzer {

namespace {

// Highest set bit at or below `bit`, or -1.
int last_bit(uint64_t word, uint64_t bit) {
  const uint64_t below = word & (bit == 63 ? ~uint64_t{0} : (uint64_t{1} << (bit + 1)) - 1);
  return below == 0 ? -1 : 63 - std::countl_zero(below);
}

// Lowest set bit at or above `bit`, or -1.
int first_bit(uint64_t word, uint64_t bit) {
  const uint64_t above = word & ~((uint64_t{1} << bit) - 1);
  return above == 0 ? -1 : std::countr_zero(above);
}

uint64_t join(uint64_t word, int bit) { return word * 64 + static_cast<uint64_t>(bit); }

}  // namespace

BlockIndex::Leaf* BlockIndex::leaf(uint64_t key) const {
  if (key == cached_key_) return cached_;
  const auto found = leaves_.find(key);
  if (found == leaves_.end()) return nullptr;
  cached_key_ = key;
  cached_ = found->second.get();
  return cached_;
}

void BlockIndex::insert(uint64_t address) {
  const uint64_t key = address >> kLeafBits;
  Leaf* found = leaf(key);
  if (found == nullptr) {
    std::unique_ptr<Leaf>& made = leaves_[key];
    made = std::make_unique<Leaf>();
    void* words = std::calloc(kGranules / 64, sizeof(uint64_t));
    if (words == nullptr) throw std::bad_alloc();
    made->starts.reset(static_cast<uint64_t*>(words));
    found = made.get();
  }
  const uint64_t granule = address / 16 % kGranules;
  const uint64_t word = granule / 64;
  found->starts.get()[word] |= uint64_t{1} << (granule % 64);
  found->words[word / 64] |= uint64_t{1} << (word % 64);
  found->groups[word / 64 / 64] |= uint64_t{1} << (word / 64 % 64);
}

void BlockIndex::erase(uint64_t address) {
  Leaf* found = leaf(address >> kLeafBits);
  if (found == nullptr) return;
  const uint64_t granule = address / 16 % kGranules;
  const uint64_t word = granule / 64;
  if ((found->starts.get()[word] &= ~(uint64_t{1} << (granule % 64))) != 0) return;
  if ((found->words[word / 64] &= ~(uint64_t{1} << (word % 64))) != 0) return;
  found->groups[word / 64 / 64] &= ~(uint64_t{1} << (word / 64 % 64));
}

std::optional<uint64_t> BlockIndex::last_in(const Leaf& leaf, uint64_t granule) {
  uint64_t word = granule / 64;
  int bit = last_bit(leaf.starts.get()[word], granule % 64);
  if (bit >= 0) return join(word, bit);
  // Up a level wherever nothing is left below, then down again.
  uint64_t middle = word / 64;
  int place = word % 64 == 0 ? -1 : last_bit(leaf.words[middle], word % 64 - 1);
  if (place < 0) {
    uint64_t group = middle / 64;
    uint64_t from = middle % 64;
    int found = -1;
    if (from != 0) found = last_bit(leaf.groups[group], from - 1);
    while (found < 0 && group > 0) found = last_bit(leaf.groups[--group], 63);
    if (found < 0) return std::nullopt;
    middle = join(group, found);
    place = last_bit(leaf.words[middle], 63);
  }
  word = join(middle, place);
  return join(word, last_bit(leaf.starts.get()[word], 63));
}

std::optional<uint64_t> BlockIndex::first_in(const Leaf& leaf, uint64_t granule) {
  uint64_t word = granule / 64;
  int bit = first_bit(leaf.starts.get()[word], granule % 64);
  if (bit >= 0) return join(word, bit);
  uint64_t middle = word / 64;
  int place = word % 64 == 63 ? -1 : first_bit(leaf.words[middle], word % 64 + 1);
  if (place < 0) {
    uint64_t group = middle / 64;
    int found = middle % 64 == 63 ? -1 : first_bit(leaf.groups[group], middle % 64 + 1);
    while (found < 0 && group + 1 < leaf.groups.size()) found = first_bit(leaf.groups[++group], 0);
    if (found < 0) return std::nullopt;
    middle = join(group, found);
    place = first_bit(leaf.words[middle], 0);
  }
  word = join(middle, place);
  return join(word, first_bit(leaf.starts.get()[word], 0));
}

std::optional<uint64_t> BlockIndex::at_or_before(uint64_t address) const {
  const uint64_t key = address >> kLeafBits;
  auto it = leaves_.upper_bound(key);
  while (it != leaves_.begin()) {
    --it;
    const uint64_t granule = it->first == key ? address / 16 % kGranules : kGranules - 1;
    if (const auto found = last_in(*it->second, granule)) {
      return (it->first << kLeafBits) + *found * 16;
    }
  }
  return std::nullopt;
}

std::optional<uint64_t> BlockIndex::at_or_after(uint64_t address) const {
  const uint64_t key = (address + 15) >> kLeafBits;
  for (auto it = leaves_.lower_bound(key); it != leaves_.end(); ++it) {
    const uint64_t granule = it->first == key ? (address + 15) / 16 % kGranules : 0;
    if (const auto found = first_in(*it->second, granule)) {
      return (it->first << kLeafBits) + *found * 16;
    }
  }
  return std::nullopt;
}

}  // namespace heapledger::analyzer
