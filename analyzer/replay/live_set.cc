// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay/live_set.h"

#include <algorithm>

namespace heapledger::analyzer {

bool LiveSet::insert(const Block& block) {
  const auto index = unused_.empty() ? static_cast<uint32_t>(pool_.size()) : unused_.back();
  if (const uint32_t old = by_id_.put(block.id, index); old != FlatMap::kNone) {
    by_id_.put(block.id, old);
    return false;
  }
  if (unused_.empty()) {
    pool_.push_back(block);
  } else {
    unused_.pop_back();
    pool_[index] = block;
  }
  requested_bytes_ += block.size;
  usable_bytes_ += block.usable;
  // Keys are granules: addresses are multiples of 16, and a table of multiples would hash badly.
  if (index_addresses_ && block.address >= 16) {
    by_address_.put(block.address / 16, index);
    starts_.insert(block.address);
  }
  return true;
}

bool LiveSet::take(uint64_t id, Block& block) {
  const uint32_t index = by_id_.take(id);
  if (index == FlatMap::kNone) return false;
  block = pool_[index];
  requested_bytes_ -= block.size;
  usable_bytes_ -= block.usable;
  if (index_addresses_ && by_address_.find(block.address / 16) == index) {
    by_address_.take(block.address / 16);
    starts_.erase(block.address);
  }
  pool_[index].id = 0;
  unused_.push_back(index);
  return true;
}

const Block* LiveSet::find(uint64_t id) const {
  const uint32_t index = by_id_.find(id);
  return index == FlatMap::kNone ? nullptr : &pool_[index];
}

const Block* LiveSet::covering(uint64_t address) const {
  // A header belongs to the block that follows it.
  const auto start = starts_.at_or_before(address + kHeaderBytes);
  if (!start) return nullptr;
  const Block* block = &pool_[by_address_.find(*start / 16)];
  if (address + kHeaderBytes >= block->address && address < block->address + block->usable) {
    return block;
  }
  const auto before = starts_.at_or_before(address);
  if (!before || *before == *start) return nullptr;
  block = &pool_[by_address_.find(*before / 16)];
  return address < block->address + block->usable ? block : nullptr;
}

const Block* LiveSet::first_in(uint64_t start, uint64_t end) const {
  if (const Block* block = covering(start)) return block;
  const auto next = starts_.at_or_after(start);
  if (!next || *next >= end) return nullptr;
  return &pool_[by_address_.find(*next / 16)];
}

uint64_t LiveSet::gap_around(uint64_t address, uint64_t start, uint64_t end) const {
  if (const auto before = starts_.at_or_before(address - 1); before && *before >= start) {
    const Block& block = pool_[by_address_.find(*before / 16)];
    start = std::max(start, std::min(address, block.address + block.usable));
  }
  if (const auto next = starts_.at_or_after(address + 1)) end = std::min(end, *next);
  return end - std::min(start, end);
}

void LiveSet::copy_from(const LiveSet& other) {
  other.for_each([this](const Block& block) { insert(block); });
}

void LiveSet::mark_inherited() {
  for (Block& block : pool_) block.inherited = true;
}

}  // namespace heapledger::analyzer
