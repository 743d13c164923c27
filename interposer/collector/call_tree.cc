// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/call_tree.h"

#include <algorithm>

namespace heapledger::collector {

CallTree::Slot& CallTree::free_slot(uint64_t hash) {
  Slot* slot = &slots_[hash >> shift_];
  while (slot->node != 0) slot = slot == &slots_[slots_.size() - 1] ? &slots_[0] : slot + 1;
  return *slot;
}

uint32_t CallTree::insert(uint32_t parent, uint64_t key, uint64_t hash) {
  if (uint64_t{count_} * 2 + 2 > slots_.size()) grow();
  if (count_ + size_t{1} == nodes_.size()) {
    HugeArray<Node> larger(nodes_.size() * 2);
    std::copy(&nodes_[0], &nodes_[count_] + 1, &larger[0]);
    std::swap(nodes_, larger);
  }
  free_slot(hash) = {tag_of(hash), ++count_};
  nodes_[count_] = {key, parent};
  return count_;
}

void CallTree::grow() {
  // Four times as large while that is little memory: each growing moves everything.
  const int bits = slots_.size() < (size_t{1} << 20) ? 2 : 1;
  HugeArray<Slot> old(slots_.size() << bits);
  std::swap(old, slots_);
  shift_ -= bits;
  for (size_t i = 0; i < old.size(); ++i) {
    if (old[i].node != 0) free_slot(uint64_t{old[i].tag} << 32) = old[i];
  }
}

void StackCursor::resolve(CallTree& tree, Plan& plan) {
  const uint64_t* const hashes = plan.hashes_.data();
  for (const Plan::Stack& stack : plan.stacks_) {
    if (tree.prefetch_nodes(hashes[stack.first + stack.count - 1])) continue;
    for (uint32_t i = 0; i + 1 < stack.count; ++i) tree.prefetch(hashes[stack.first + i]);
  }
  uint32_t* const nodes = plan.nodes_.data();
  for (const Plan::Stack& stack : plan.stacks_) {
    uint32_t node = plan.node(stack.base);
    const std::span<const uint64_t> keys(plan.keys_.data() + stack.first, stack.count);
    if (tree.find(node, keys, hashes[stack.first + stack.count - 1], nodes + stack.first) != 0) {
      continue;
    }
    // Known up to some frame; what hangs on a new node is new.
    bool known = true;
    for (size_t i = 0; i < stack.count; ++i) {
      const uint64_t hash = hashes[stack.first + i];
      uint32_t found = 0;
      if (known) found = tree.find(node, keys.subspan(i, 1), hash, &found);
      known = found != 0;
      node = known ? found : tree.insert(node, keys[i], hash);
      nodes[stack.first + i] = node;
    }
  }
  plan.stacks_.clear();
  plan.used_ = 0;
  // From the inside out: what lies above a place that was resolved is older still.
  for (uint32_t i = depth_; i-- > 0 && (path_[i].node & kPlanned) != 0;) {
    path_[i].node = plan.node(path_[i].node);
  }
}

void StackCursor::rebase(CallTree& tree, bool incomplete) {
  incomplete_ = incomplete;
  root_ = incomplete ? tree.child({}, kIncompleteFrame) : CallTree::Place{};
  CallTree::Place place = root_;
  for (uint32_t i = 0; i < depth_; ++i) {
    path_[i] = place = tree.child(place, tree.key(path_[i].node));
  }
}

}  // namespace heapledger::collector
