// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay/id_table.h"

namespace heapledger::analyzer {

IdTable::IdTable(const IdTable& other)
    : leaves_(other.leaves_), free_(other.free_), old_(other.old_), size_(other.size_) {
  for (const auto& leaf : other.pool_) pool_.push_back(std::make_unique<Leaf>(*leaf));
}

IdTable::Leaf* IdTable::leaf(uint64_t key) const {
  if (last_ != nullptr && last_->key == key) return last_;
  const uint32_t place = leaves_.find(key);
  if (place == FlatMap::kNone) return nullptr;
  return last_ = pool_[place].get();
}

IdTable::Leaf& IdTable::make_leaf(uint64_t key) {
  uint32_t place = static_cast<uint32_t>(pool_.size());
  if (free_.empty()) {
    pool_.push_back(std::make_unique<Leaf>());
  } else {
    place = free_.back();
    free_.pop_back();
  }
  leaves_.put(key, place);
  Leaf& made = *pool_[place];
  made.key = key;
  made.is_passed = false;
  if (Leaf* before = leaf(key - 1)) {
    before->is_passed = true;
    if (before->used < kFew) spill(*before);
  }
  return *(last_ = &made);
}

// Empties the leaf: the few ids that are left go to the hash table.
void IdTable::spill(Leaf& leaf) {
  for (size_t i = 0; leaf.used != 0; ++i) {
    if (leaf.numbers[i] == 0) continue;
    old_.put(((leaf.key - 2) << kLeafBits) + i, leaf.numbers[i] - 1);
    leaf.numbers[i] = 0;
    --leaf.used;
  }
  free_.push_back(leaves_.take(leaf.key));
  leaf.key = 0;
}

uint32_t IdTable::find(uint64_t id) const {
  if (const Leaf* found = leaf(key_of(id))) {
    if (const uint32_t number = found->numbers[id % kLeafIds]; number != 0) return number - 1;
  }
  return old_.find(id);
}

void IdTable::put(uint64_t id, uint32_t number) {
  Leaf* found = leaf(key_of(id));
  if (found == nullptr) found = &make_leaf(key_of(id));
  uint32_t& place = found->numbers[id % kLeafIds];
  if (place == 0) {
    ++found->used;
    ++size_;
  }
  place = number + 1;
}

uint32_t IdTable::take(uint64_t id) {
  Leaf* found = leaf(key_of(id));
  if (found == nullptr || found->numbers[id % kLeafIds] == 0) {
    const uint32_t number = old_.take(id);
    if (number != FlatMap::kNone) --size_;
    return number;
  }
  const uint32_t number = found->numbers[id % kLeafIds] - 1;
  found->numbers[id % kLeafIds] = 0;
  --size_;
  if (--found->used < kFew && found->is_passed) spill(*found);
  return number;
}

}  // namespace heapledger::analyzer
