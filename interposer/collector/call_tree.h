// SPDX-License-Identifier: Apache-2.0
// The call tree of the whole trace, and each ring's place in it.
//
// A node is a frame called from a parent node; a stack is its innermost node. Threads and processes
// share nodes. A ring's events name their stacks as changes (schema/event.h), so StackCursor holds
// the ring's current stack as a path of nodes and looks up only what is new.
//
// Look-ups are the dear part of packing: the table is far larger than the processor's caches. So
// there is one for each stack, not for each frame: what a node hashes to depends on the frames of
// its path alone, and where a stack is known, its node's parents must be the frames that the event
// names, which is seen in the nodes themselves; they lie side by side as they were made. And all
// places of a run of events are known, and asked for from memory, before the first of them is
// looked at: StackCursor::plan(), then StackCursor::resolve().
//
// Invariants. 1. Node ids count from 1 in the order of creation, so that a parent's row is written
// before its child's. 2. A stack that could not be walked to its root has kIncompleteFrame as its
// outermost node. 3. Two paths never share a node: a hash only says where to look, (parent, frame)
// decides.
// Thread safety: none (writer thread). Cost: one hash lookup per stack, one more for each frame of
// a stack that is new, and a comparison per fresh frame.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "interposer/collector/huge_array.h"

namespace heapledger::collector {

inline constexpr uint32_t kIncompleteFrame = 1;  // Both its id and its key.

class CallTree {
 public:
  struct Node {
    uint64_t key;     // Of its frame (FrameKey).
    uint32_t parent;  // 0: outermost.
  };
  // A node and the hash of its path; {0, 0} is above all outermost frames.
  struct Place {
    uint32_t node = 0;
    uint64_t hash = 0;
  };

  CallTree() : slots_(size_t{1} << kFirstBits), nodes_(size_t{1} << kFirstBits) {}

  // The upper half depends on every bit of both.
  static uint64_t hash_of(uint64_t parent_hash, uint64_t key) {
    return (std::rotl(parent_hash, 32) ^ key) * 0x9E3779B97F4A7C15U;
  }
  void prefetch(uint64_t hash) const { __builtin_prefetch(&slots_[hash >> shift_]); }
  // Asks for the nodes that the path may consist of. False: it is hardly a known one.
  bool prefetch_nodes(uint64_t hash) const {
    const Slot& slot = slots_[hash >> shift_];
    __builtin_prefetch(&nodes_[slot.node]);
    return slot.tag == tag_of(hash);
  }

  // The node of a path whose frames inside `base` have `keys`, outermost first; 0: there is none.
  // Writes the nodes on the way there, likewise.
  uint32_t find(uint32_t base, std::span<const uint64_t> keys, uint64_t hash,
                uint32_t* nodes) const {
    const uint32_t tag = tag_of(hash);
    for (const Slot* slot = &slots_[hash >> shift_]; slot->node != 0; slot = next(slot)) {
      if (slot->tag == tag && leads_to(base, keys, slot->node, nodes)) return slot->node;
    }
    return 0;
  }
  // `hash`: hash_of() the parent's and the frame.
  uint32_t node(uint32_t parent, uint64_t key, uint64_t hash) {
    uint32_t ignored;
    const uint32_t found = find(parent, {&key, 1}, hash, &ignored);
    if (found != 0) return found;
    room(1);
    return insert(parent, key, hash);
  }
  Place child(const Place& parent, uint64_t key) {
    const uint64_t hash = hash_of(parent.hash, key);
    return {node(parent.node, key, hash), hash};
  }
  // Makes a node that is not there yet. There must be room().
  uint32_t insert(uint32_t parent, uint64_t key, uint64_t hash) {
    Slot* slot = &slots_[hash >> shift_];
    while (slot->node != 0) slot = next(slot);
    *slot = {tag_of(hash), ++count_};
    nodes_[count_] = {key, parent};
    return count_;
  }
  // Makes room for so many more.
  void room(size_t more) {
    if ((count_ + more + 1) * 2 > slots_.size() || count_ + more + 1 > nodes_.size()) grow(more);
  }

  uint64_t key(uint32_t node) const { return nodes_[node].key; }

  // Nodes made since the last call of clear_fresh(), for the trace; the last one is size().
  std::span<const Node> fresh() const { return {&nodes_[written_ + 1], count_ - written_}; }
  uint32_t fresh_count() const { return count_ - written_; }
  void clear_fresh() { written_ = count_; }
  uint32_t size() const { return count_; }

 private:
  struct Slot {
    uint32_t tag;
    uint32_t node;  // 0: empty.
  };
  static constexpr int kFirstBits = 12;

  static uint32_t tag_of(uint64_t hash) { return static_cast<uint32_t>(hash >> 32); }
  const Slot* next(const Slot* slot) const {
    return slot == &slots_[slots_.size() - 1] ? &slots_[0] : slot + 1;
  }
  Slot* next(Slot* slot) { return slot == &slots_[slots_.size() - 1] ? &slots_[0] : slot + 1; }
  bool leads_to(uint32_t base, std::span<const uint64_t> keys, uint32_t node,
                uint32_t* nodes) const {
    for (size_t i = keys.size(); i-- > 0;) {
      const Node& at = nodes_[node];
      if (at.key != keys[i]) return false;
      nodes[i] = node;
      node = at.parent;
    }
    return node == base;
  }
  void grow(size_t more);

  HugeArray<Slot> slots_;  // Half of them empty at least.
  HugeArray<Node> nodes_;  // By id; a grown one may have more room than there are nodes.
  uint32_t count_ = 0;
  uint32_t written_ = 0;
  int shift_ = 64 - kFirstBits;
};

// One event's stack, as its ring tells of it: the outermost `keep` frames of the stack before, then
// `fresh` return addresses inside them, innermost first.
struct StackDelta {
  struct Frames {  // As in schema::EventHead.
    uint16_t fresh;
    uint16_t keep;
  };
  const std::byte* fresh;
  Frames frames;
  uint16_t row;  // Whose it is, in its run.
  bool incomplete;

  uint64_t pc(size_t index) const {
    uint64_t word;
    std::memcpy(&word, fresh + index * 8, sizeof word);
    return word;
  }
};

class StackCursor {
 public:
  // Stands for a node until resolve().
  using NodeRef = uint32_t;
  // What was planned last and is perhaps not resolved yet.
  class Plan {
   public:
    // The node that a reference of the last resolve() stands for.
    uint32_t node(NodeRef ref) const {
      return (ref & kPlanned) != 0 ? nodes_[ref & ~kPlanned] : ref;
    }

   private:
    friend class StackCursor;
    // Fresh frames of one event: steps from `first` on, inside the node `base`.
    struct Stack {
      uint64_t base_hash;
      uint64_t hash;
      uint32_t first;
      uint32_t count;
      NodeRef base;
    };
    void reserve(size_t stacks, size_t steps) {
      if (stacks_.size() <= stacks) stacks_.resize(stacks + 1);
      if (new_.size() < stacks) new_.resize(stacks);
      if (keys_.size() < steps) {
        keys_.resize(2 * steps);
        nodes_.resize(keys_.size());
      }
    }
    std::vector<Stack> stacks_;  // The first `stack_count_` of them.
    size_t stack_count_ = 0;
    std::vector<uint64_t> keys_;  // The first `used_` of them, and of nodes_.
    std::vector<uint32_t> nodes_;
    size_t used_ = 0;
    std::vector<uint32_t> new_;  // Stacks that are hardly known.
  };

  StackCursor() : path_(1) {}

  // Keeps the outermost `keep` frames and puts `fresh` (innermost first, as frame keys) inside
  // them. False: more were to be kept than there are; the stack is then made of the fresh ones
  // alone, as incomplete. Returns through `node` what the stack is.
  template <typename KeyAt>
  bool apply(CallTree& tree, uint32_t keep, uint32_t fresh, bool incomplete, KeyAt key_at,
             uint32_t& node) {
    const bool known = keep <= depth_;
    if (!known) keep = 0;
    depth_ = keep;
    make_room(keep + fresh);
    // What hangs on an incomplete stack is incomplete itself.
    const bool root = incomplete || !known || (keep > 0 && incomplete_);
    if (root != incomplete_) rebase(tree, root);
    CallTree::Place place = path_[depth_];
    for (uint32_t i = fresh; i-- > 0;) {
      place = tree.child(place, key_at(i));
      path_[++depth_] = place;
    }
    node = place.node;
    return known;
  }

  // apply() for many, in two steps: nodes are known after resolve(). Goes as far as it can: returns
  // how many were planned; the next one needs apply(), after resolve(). `key_of` makes keys of
  // return addresses and rows; there must be room for a node reference per delta.
  template <typename KeyOf>
  size_t plan(const CallTree& tree, std::span<const StackDelta> deltas, KeyOf key_of, Plan& plan,
              NodeRef* refs) {
    size_t steps = 0;
    for (const StackDelta& delta : deltas) steps += delta.frames.fresh;
    plan.reserve(deltas.size(), steps);
    Plan::Stack* stack = plan.stacks_.data();
    uint64_t* next_key = plan.keys_.data();
    NodeRef next_ref = kPlanned;
    uint32_t depth = depth_;
    CallTree::Place* path = path_.data();
    size_t room = path_.size();
    size_t planned = 0;
    for (; planned < deltas.size(); ++planned) {
      const StackDelta& delta = deltas[planned];
      const uint32_t keep = delta.frames.keep;
      const uint32_t fresh = delta.frames.fresh;
      if (keep > depth) break;
      if (delta.incomplete || incomplete_) {
        if ((delta.incomplete || keep > 0) != incomplete_) break;
      }
      depth = keep + fresh;
      if (depth >= room) {
        make_room(depth);
        path = path_.data();
        room = path_.size();
      }
      CallTree::Place* at = path + keep;
      uint64_t hash = at->hash;
      stack->base_hash = hash;
      stack->first = next_ref & ~kPlanned;
      stack->count = fresh;
      stack->base = at->node;
      const size_t row = delta.row;
      const std::byte* const first = delta.fresh;
      for (const std::byte* word = first + fresh * size_t{8}; word != first;) {
        word -= 8;
        uint64_t pc;
        std::memcpy(&pc, word, sizeof pc);
        const uint64_t key = key_of(pc, row);
        hash = CallTree::hash_of(hash, key);
        *next_key++ = key;
        ++at;
        at->hash = hash;
        at->node = next_ref++;
      }
      tree.prefetch(hash);
      stack->hash = hash;
      stack += fresh != 0 ? 1 : 0;
      refs[planned] = at->node;
    }
    depth_ = depth;
    plan.used_ = next_ref & ~kPlanned;
    plan.stack_count_ = static_cast<size_t>(stack - plan.stacks_.data());
    return planned;
  }
  // Looks up what was planned, all of it by this cursor.
  void resolve(CallTree& tree, Plan& plan);

  void clear() {
    depth_ = 0;
    incomplete_ = false;
    path_[0] = {};
  }
  uint32_t depth() const { return depth_; }

 private:
  static constexpr NodeRef kPlanned = 1U << 31;  // No trace has as many nodes.

  // For a path of so many frames.
  void make_room(size_t frames) {
    if (frames >= path_.size()) path_.resize(2 * (frames + 1));
  }
  // The kept frames get another root.
  void rebase(CallTree& tree, bool incomplete);
  static void find_or_make(CallTree& tree, Plan& plan, const Plan::Stack& stack);

  // Outermost first, behind what is above all outermost frames; then the first `depth_` of them.
  std::vector<CallTree::Place> path_;
  uint32_t depth_ = 0;
  bool incomplete_ = false;
};

}  // namespace heapledger::collector
