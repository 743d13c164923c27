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
  plan.nodes_.resize(plan.steps_.size());
  for (size_t i = 0; i < plan.steps_.size(); ++i) {
    const Plan::Step& step = plan.steps_[i];
    plan.nodes_[i] = tree.node(plan.node(step.parent), step.frame, step.hash);
  }
  plan.steps_.clear();
  for (Step& step : path_) step.place.node = plan.node(step.place.node);
}

void StackCursor::rebase(CallTree& tree, bool incomplete) {
  incomplete_ = incomplete;
  root_ = incomplete ? tree.child({}, kIncompleteFrame) : CallTree::Place{};
  CallTree::Place place = root_;
  for (Step& step : path_) step.place = place = tree.child(place, step.frame);
}

}  // namespace heapledger::collector
