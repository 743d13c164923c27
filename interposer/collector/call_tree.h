// SPDX-License-Identifier: Apache-2.0
// The call tree of the whole trace, and each ring's place in it.
//
// A node is a frame called from a parent node; a stack is its innermost node. Threads and processes
// share nodes. A ring's events name their stacks as changes (schema/event.h), so StackCursor holds
// the ring's current stack as a path of nodes and looks up only what is new.
//
// Look-ups are the dear part of packing: the table is far larger than the processor's caches. What
// a node hashes to depends on the frames of its path alone, not on the parent's number, so the
// places of a whole run of events are known, and asked for from memory, before the first of them is
// looked at: StackCursor::plan() for each event, then StackCursor::resolve() once.
//
// Invariants. 1. Node and frame ids count from 1 in the order of creation, so that a parent's row
// is written before its child's. 2. A stack that could not be walked to its root has
// kIncompleteFrame as its outermost node. 3. Two paths never share a node: a hash only says where
// to look, (parent, frame) decides.
// Thread safety: none (writer thread). Cost: one hash lookup per fresh frame here, one for its pc.
#pragma once

#include <cstdint>
#include <vector>

#include "interposer/collector/huge_array.h"

namespace heapledger::collector {

inline constexpr uint32_t kIncompleteFrame = 1;

class CallTree {
 public:
  struct Node {
    uint32_t id;
    uint32_t parent;  // 0: outermost.
    uint32_t frame;
  };
  // A node and the hash of its path; {0, 0} is above all outermost frames.
  struct Place {
    uint32_t node = 0;
    uint32_t hash = 0;
  };

  CallTree() : slots_(size_t{1} << kFirstBits) {}

  // The upper half of a product depends on every bit of both.
  static uint32_t hash_of(uint32_t parent_hash, uint32_t frame) {
    return static_cast<uint32_t>(((uint64_t{parent_hash} << 32 | frame) * 0x9E3779B97F4A7C15U) >>
                                 32);
  }
  void prefetch(uint32_t hash) const { __builtin_prefetch(&slots_[hash >> shift_], 1); }

  // `hash`: hash_of() the parent's and the frame.
  uint32_t node(uint32_t parent, uint32_t frame, uint32_t hash) {
    Slot* slot = &slots_[hash >> shift_];
    while (slot->node != 0 && (slot->parent != parent || slot->frame != frame)) slot = next(slot);
    if (slot->node == 0) return insert(*slot, {parent, frame, 0, hash});
    return slot->node;
  }
  Place child(const Place& parent, uint32_t frame) {
    const uint32_t hash = hash_of(parent.hash, frame);
    return {node(parent.node, frame, hash), hash};
  }

  // Nodes made since the last call of clear_fresh(), for the trace.
  const std::vector<Node>& fresh() const { return fresh_; }
  void clear_fresh() { fresh_.clear(); }
  uint32_t size() const { return count_; }

 private:
  struct Slot {
    uint32_t parent;
    uint32_t frame;
    uint32_t node;  // 0: empty.
    uint32_t hash;
  };
  static constexpr int kFirstBits = 12;

  Slot* next(Slot* slot) { return slot == &slots_[slots_.size() - 1] ? &slots_[0] : slot + 1; }
  uint32_t insert(Slot& slot, Slot content);
  void grow();

  HugeArray<Slot> slots_;
  std::vector<Node> fresh_;
  uint32_t count_ = 0;
  int shift_ = 32 - kFirstBits;
};

class StackCursor {
 public:
  // Stands for a node until resolve().
  using NodeRef = uint32_t;
  // What was planned and is not resolved yet, of one cursor at a time.
  class Plan {
   public:
    // The node that a reference of the last resolve() stands for.
    uint32_t node(NodeRef ref) const {
      return (ref & kPlanned) != 0 ? nodes_[ref & ~kPlanned] : ref;
    }

   private:
    friend class StackCursor;
    struct Step {
      uint32_t hash;
      uint32_t frame;
      NodeRef parent;
    };
    // Room for that many more steps.
    void reserve(size_t more) {
      if (used_ + more > steps_.size()) steps_.resize(2 * (used_ + more));
    }
    std::vector<Step> steps_;  // The first `used_` of them: no check at each.
    size_t used_ = 0;
    std::vector<uint32_t> nodes_;
  };

  // Keeps the outermost `keep` frames and puts `fresh` (innermost first, as frame ids) inside them.
  // False: more were to be kept than there are; the stack is then made of the fresh ones alone, as
  // incomplete. Returns through `node` what the stack is.
  template <typename FrameAt>
  bool apply(CallTree& tree, uint32_t keep, uint32_t fresh, bool incomplete, FrameAt frame_at,
             uint32_t& node) {
    const bool known = keep <= depth_;
    if (!known) keep = 0;
    cut(keep, fresh);
    // What hangs on an incomplete stack is incomplete itself.
    const bool root = incomplete || !known || (keep > 0 && incomplete_);
    if (root != incomplete_) rebase(tree, root);
    CallTree::Place place = top();
    for (uint32_t i = fresh; i-- > 0;) {
      const uint32_t frame = frame_at(i);
      place = tree.child(place, frame);
      path_[depth_++] = {place, frame};
    }
    node = place.node;
    return known;
  }

  // apply() in two steps: the node is known after resolve(). False: this one needs apply(), after
  // resolve().
  template <typename FrameAt>
  bool plan(const CallTree& tree, uint32_t keep, uint32_t fresh, bool incomplete, FrameAt frame_at,
            Plan& plan, NodeRef& node) {
    if (keep > depth_) return false;
    if ((incomplete || (keep > 0 && incomplete_)) != incomplete_) return false;
    cut(keep, fresh);
    plan.reserve(fresh);
    CallTree::Place place = top();
    Step* path = path_.data() + keep;
    Plan::Step* step = plan.steps_.data() + plan.used_;
    auto number = kPlanned | static_cast<uint32_t>(plan.used_);
    for (uint32_t i = fresh; i-- > 0; ++number) {
      const uint32_t frame = frame_at(i);
      const uint32_t hash = CallTree::hash_of(place.hash, frame);
      tree.prefetch(hash);
      *step++ = {hash, frame, place.node};
      place = {number, hash};
      *path++ = {place, frame};
    }
    depth_ = keep + fresh;
    plan.used_ += fresh;
    node = place.node;
    return true;
  }
  // Looks up what was planned, all of it by this cursor.
  void resolve(CallTree& tree, Plan& plan);

  void clear() {
    depth_ = 0;
    incomplete_ = false;
    root_ = {};
  }
  uint32_t depth() const { return depth_; }

 private:
  static constexpr NodeRef kPlanned = 1U << 31;  // No trace has as many nodes.

  struct Step {
    CallTree::Place place;
    uint32_t frame;
  };
  const CallTree::Place& top() const { return depth_ == 0 ? root_ : path_[depth_ - 1].place; }
  // Leaves the outermost `keep` frames, with room for `more` inside them.
  void cut(uint32_t keep, uint32_t more) {
    depth_ = keep;
    if (keep + more > path_.size()) path_.resize(2 * (keep + more));
  }
  // The kept frames get another root.
  void rebase(CallTree& tree, bool incomplete);

  std::vector<Step> path_;  // Outermost first; the first `depth_` of them.
  uint32_t depth_ = 0;
  CallTree::Place root_;
  bool incomplete_ = false;
};

}  // namespace heapledger::collector
