// SPDX-License-Identifier: Apache-2.0
// The call tree of the whole trace, and each ring's place in it.
//
// A node is a frame called from a parent node; a stack is its innermost node. Threads and processes
// share nodes. A ring's events name their stacks as changes (schema/event.h), so StackCursor holds
// the ring's current stack as a path of nodes and looks up only what is new.
//
// Invariants. 1. Node and frame ids count from 1 in the order of creation, so that a parent's row
// is written before its child's. 2. A stack that could not be walked to its root has
// kIncompleteFrame as its outermost node.
// Thread safety: none (writer thread). Cost: one hash lookup per fresh frame here, one for its pc.
#pragma once

#include <cstdint>
#include <vector>

#include "interposer/collector/flat_map.h"

namespace heapledger::collector {

inline constexpr uint32_t kIncompleteFrame = 1;

class CallTree {
 public:
  struct Node {
    uint32_t id;
    uint32_t parent;  // 0: outermost.
    uint32_t frame;
  };

  uint32_t node(uint32_t parent, uint32_t frame) {
    uint32_t& id = ids_.at(uint64_t{parent} << 32 | frame);
    if (id == 0) {
      id = ++count_;
      fresh_.push_back({id, parent, frame});
    }
    return id;
  }

  // Nodes made since the last call of clear_fresh(), for the trace.
  const std::vector<Node>& fresh() const { return fresh_; }
  void clear_fresh() { fresh_.clear(); }
  uint32_t size() const { return count_; }

 private:
  FlatMap ids_;
  std::vector<Node> fresh_;
  uint32_t count_ = 0;
};

class StackCursor {
 public:
  // Keeps the outermost `keep` frames and puts `fresh` (innermost first, as frame ids) inside them.
  // False: more were to be kept than there are; the stack is then made of the fresh ones alone, as
  // incomplete. Returns through `node` what the stack is.
  template <typename FrameAt>
  bool apply(CallTree& tree, uint32_t keep, uint32_t fresh, bool incomplete, FrameAt frame_at,
             uint32_t& node) {
    const bool known = keep <= path_.size();
    if (!known) keep = 0;
    path_.resize(keep);
    // What hangs on an incomplete stack is incomplete itself.
    const bool root = incomplete || !known || (keep > 0 && incomplete_);
    if (root != incomplete_) rebase(tree, root);
    uint32_t parent = path_.empty() ? root_node(tree) : path_.back().node;
    for (uint32_t i = fresh; i-- > 0;) {
      const uint32_t frame = frame_at(i);
      parent = tree.node(parent, frame);
      path_.push_back({parent, frame});
    }
    node = parent;
    return known;
  }
  void clear() {
    path_.clear();
    incomplete_ = false;
  }
  uint32_t depth() const { return static_cast<uint32_t>(path_.size()); }

 private:
  struct Step {
    uint32_t node;
    uint32_t frame;
  };
  uint32_t root_node(CallTree& tree) const {
    return incomplete_ ? tree.node(0, kIncompleteFrame) : 0;
  }
  // The kept frames get another root.
  void rebase(CallTree& tree, bool incomplete) {
    incomplete_ = incomplete;
    uint32_t parent = root_node(tree);
    for (Step& step : path_) step.node = parent = tree.node(parent, step.frame);
  }

  std::vector<Step> path_;  // Outermost first.
  bool incomplete_ = false;
};

}  // namespace heapledger::collector
