// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/call_tree.h"

namespace heapledger::collector {

uint32_t CallTree::insert(Slot& slot, Slot content) {
  content.node = ++count_;
  slot = content;
  fresh_.push_back({content.node, content.parent, content.frame});
  const uint32_t node = content.node;
  if (uint64_t{count_} * 2 > slots_.size()) grow();
  return node;
}

void CallTree::grow() {
  // Four times as large while that is little memory: each growing moves everything.
  const int bits = slots_.size() < (size_t{1} << 20) ? 2 : 1;
  HugeArray<Slot> old(slots_.size() << bits);
  std::swap(old, slots_);
  shift_ -= bits;
  for (size_t i = 0; i < old.size(); ++i) {
    if (old[i].node == 0) continue;
    Slot* slot = &slots_[old[i].hash >> shift_];
    while (slot->node != 0) slot = next(slot);
    *slot = old[i];
  }
}

void StackCursor::resolve(CallTree& tree, Plan& plan) {
  if (plan.nodes_.size() < plan.used_) plan.nodes_.resize(plan.steps_.size());
  uint32_t* const nodes = plan.nodes_.data();
  const auto node_of = [nodes](NodeRef ref) {
    return (ref & kPlanned) != 0 ? nodes[ref & ~kPlanned] : ref;
  };
  const Plan::Step* const steps = plan.steps_.data();
  const size_t count = plan.used_;
  for (size_t i = 0; i < count; ++i) {
    nodes[i] = tree.node(node_of(steps[i].parent), steps[i].frame, steps[i].hash);
  }
  plan.used_ = 0;
  for (uint32_t i = 0; i < depth_; ++i) path_[i].place.node = node_of(path_[i].place.node);
}

void StackCursor::rebase(CallTree& tree, bool incomplete) {
  incomplete_ = incomplete;
  root_ = incomplete ? tree.child({}, kIncompleteFrame) : CallTree::Place{};
  CallTree::Place place = root_;
  for (uint32_t i = 0; i < depth_; ++i) {
    path_[i].place = place = tree.child(place, path_[i].frame);
  }
}

}  // namespace heapledger::collector
