// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/call_tree.h"

#include <algorithm>

namespace heapledger::collector {

void CallTree::grow(size_t more) {
  const size_t count = count_ + more + 1;
  if (count > nodes_.size()) {
    HugeArray<Node> larger(std::max(count, nodes_.size() * 2));
    std::copy(&nodes_[0], &nodes_[count_] + 1, &larger[0]);
    std::swap(nodes_, larger);
  }
  int bits = 0;
  while (count * 2 > slots_.size() << bits) ++bits;
  if (bits == 0) return;
  // Four times as large while that is little memory: each growing moves everything.
  if (bits == 1 && slots_.size() < (size_t{1} << 20)) bits = 2;
  HugeArray<Slot> old(slots_.size() << bits);
  std::swap(old, slots_);
  shift_ -= bits;
  for (size_t i = 0; i < old.size(); ++i) {
    if (old[i].node == 0) continue;
    Slot* slot = &slots_[uint64_t{old[i].tag} << 32 >> shift_];
    while (slot->node != 0) slot = next(slot);
    *slot = old[i];
  }
}

// The stack is known up to some frame; what hangs on a new node is new.
void StackCursor::find_or_make(CallTree& tree, Plan& plan, const Plan::Stack& stack) {
  uint32_t node = plan.node(stack.base);
  uint64_t hash = stack.base_hash;
  const std::span<const uint64_t> keys(plan.keys_.data() + stack.first, stack.count);
  uint32_t* const nodes = plan.nodes_.data() + stack.first;
  size_t i = 0;
  for (; i < stack.count; ++i) {
    hash = CallTree::hash_of(hash, keys[i]);
    if (tree.find(node, keys.subspan(i, 1), hash, nodes + i) == 0) break;
    node = nodes[i];
  }
  for (; i < stack.count; ++i) {
    nodes[i] = node = tree.insert(node, keys[i], hash);
    if (i + 1 < stack.count) hash = CallTree::hash_of(hash, keys[i + 1]);
  }
}

void StackCursor::resolve(CallTree& tree, Plan& plan) {
  tree.room(plan.used_);
  const std::span<const Plan::Stack> stacks(plan.stacks_.data(), plan.stack_count_);
  size_t new_ones = 0;
  for (uint32_t i = 0; i < stacks.size(); ++i) {
    plan.new_[new_ones] = i;
    new_ones += tree.prefetch_nodes(stacks[i].hash) ? 0 : 1;
  }
  // What a new one has in common with others: first where that is in the table, then the nodes.
  const auto for_parents = [&](auto ask) {
    for (const uint32_t i : std::span(plan.new_).first(new_ones)) {
      uint64_t hash = stacks[i].base_hash;
      const uint64_t* const keys = plan.keys_.data() + stacks[i].first;
      for (uint32_t step = 0; step + 1 < stacks[i].count; ++step) {
        hash = CallTree::hash_of(hash, keys[step]);
        ask(hash);
      }
    }
  };
  for_parents([&](uint64_t hash) { tree.prefetch(hash); });
  for_parents([&](uint64_t hash) { tree.prefetch_nodes(hash); });
  for (const Plan::Stack& stack : stacks) {
    const std::span<const uint64_t> keys(plan.keys_.data() + stack.first, stack.count);
    uint32_t* const nodes = plan.nodes_.data() + stack.first;
    if (tree.find(plan.node(stack.base), keys, stack.hash, nodes) == 0) {
      find_or_make(tree, plan, stack);
    }
  }
  // From the inside out: what lies above a place that was resolved is older still.
  for (uint32_t i = depth_; i > 0 && (path_[i].node & kPlanned) != 0; --i) {
    path_[i].node = plan.node(path_[i].node);
  }
  plan.stack_count_ = 0;
  plan.used_ = 0;
}

void StackCursor::rebase(CallTree& tree, bool incomplete) {
  incomplete_ = incomplete;
  CallTree::Place place;
  if (incomplete) place = tree.child(place, kIncompleteFrame);
  path_[0] = place;
  for (uint32_t i = 1; i <= depth_; ++i) {
    path_[i] = place = tree.child(place, tree.key(path_[i].node));
  }
}

}  // namespace heapledger::collector
