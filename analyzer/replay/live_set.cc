// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay/live_set.h"

#include <algorithm>

namespace heapledger::analyzer {

namespace {

static_assert(LiveSet::kNone == BlockIndex::kNone && LiveSet::kNone == FlatMap::kNone);

}  // namespace

uint32_t LiveSet::make_place() {
  if (made_ / kSegmentBlocks >= segments_.size()) segments_.push_back(std::make_unique<Segment>());
  return made_++;
}

// Takes a block out by its id; kNone if there is none.
uint32_t LiveSet::unlink_elsewhere(uint64_t id) {
  const uint32_t place = take_elsewhere(id);
  if (place == kNone) return kNone;
  const uint64_t start = at(place).address;
  if (can_be_indexed(start)) {
    starts_.take_if(start, [&](uint32_t found) { return found == place; });
  }
  return place;
}

// The live block of this id that is not where it was said to be.
uint32_t LiveSet::take_elsewhere(uint64_t id) {
  if (const uint32_t place = displaced_.take(id); place != FlatMap::kNone) return place;
  if (!by_id_) {
    by_id_.emplace();
    for (uint32_t place = 0; place < made_; ++place) {
      if (at(place).live && at(place).id != 0) by_id_->put(at(place).id, place);
    }
  }
  return by_id_->find(id);
}

// Its block ended, and may have been live at a kept moment: if not, free for another one.
void LiveSet::retire_kept(uint32_t place) {
  Block& block = slot(place);
  unsigned kept = 0;
  for (size_t moment = 0; moment < kKeptMoments; ++moment) {
    if (!kept_[moment].step || block.step > *kept_[moment].step) continue;
    kept |= 1u << moment;
    kept_[moment].ended.push_back(place);
  }
  set_kept(block, kept);
  if (kept == 0) unused_.push_back(place);
}

void LiveSet::keep(size_t moment, uint64_t step) {
  forget(moment);
  kept_[moment].step = step;
  kept_step_max_ = std::max(kept_step_max_, static_cast<int64_t>(step));
}

void LiveSet::forget(size_t moment) {
  Kept& kept = kept_[moment];
  kept.step.reset();
  kept_step_max_ = -1;
  for (const Kept& other : kept_) {
    if (other.step) kept_step_max_ = std::max(kept_step_max_, static_cast<int64_t>(*other.step));
  }
  for (const uint32_t place : kept.ended) {
    Block& block = slot(place);
    set_kept(block, block.kept & ~(1u << moment));
    if (block.kept == 0) unused_.push_back(place);
  }
  kept.ended.clear();
}

void LiveSet::move(size_t moment, size_t to) {
  forget(to);
  std::swap(kept_[moment], kept_[to]);
  for (const uint32_t place : kept_[to].ended) {
    Block& block = slot(place);
    set_kept(block, (block.kept & ~(1u << moment)) | 1u << to);
  }
}

const Block* LiveSet::covering(uint64_t address) const {
  // A header belongs to the block that follows it.
  const auto start = starts_.at_or_before(address + kHeaderBytes);
  if (!start) return nullptr;
  const Block* block = &at(start->block);
  if (address + kHeaderBytes >= block->address && address < block->address + block->usable) {
    return block;
  }
  const auto before = starts_.at_or_before(address);
  if (!before || before->address == start->address) return nullptr;
  block = &at(before->block);
  return address < block->address + block->usable ? block : nullptr;
}

const Block* LiveSet::first_in(uint64_t start, uint64_t end) const {
  if (const Block* block = covering(start)) return block;
  const auto next = starts_.at_or_after(start);
  return next && next->address < end ? &at(next->block) : nullptr;
}

uint64_t LiveSet::gap_around(uint64_t address, uint64_t start, uint64_t end) const {
  if (const auto before = starts_.at_or_before(address - 1); before && before->address >= start) {
    const Block& block = at(before->block);
    start = std::max(start, std::min(address, block.address + block.usable));
  }
  if (const auto next = starts_.at_or_after(address + 1)) end = std::min(end, next->address);
  return end - std::min(start, end);
}

void LiveSet::copy_from(const LiveSet& other) {
  other.for_each([this](const Block& block) { insert(block); });
}

void LiveSet::mark_inherited() {
  for (uint32_t place = 0; place < made_; ++place) {
    slot(place).inherited = true;
    slot(place).step = 0;
  }
}

}  // namespace heapledger::analyzer
