// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/call_tree.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <span>
#include <vector>

#include "interposer/collector/flat_map.h"

namespace heapledger::collector {
namespace {

using Frames = std::vector<uint64_t>;  // Their keys, outermost first.

// The stack of a node, by walking the rows the trace would have.
Frames frames_of(std::span<const CallTree::Node> nodes, uint32_t id) {
  Frames frames;
  for (; id != 0; id = nodes[id - 1].parent) frames.insert(frames.begin(), nodes[id - 1].key);
  return frames;
}

struct Cursor {
  CallTree tree;
  StackCursor cursor;
  bool known = true;

  Frames apply(uint32_t keep, const Frames& innermost_first, bool incomplete = false) {
    uint32_t node = 0;
    known = cursor.apply(
        tree, keep, static_cast<uint32_t>(innermost_first.size()), incomplete,
        [&](size_t i) { return innermost_first[i]; }, node);
    return frames_of(tree.fresh(), node);
  }
};

TEST(StackCursor, KeepsOuterFramesAndAddsFreshOnes) {
  // Goal: the delta rule of schema/event.h. Method: three stacks by deltas, compared whole.
  Cursor c;
  EXPECT_EQ(c.apply(0, {13, 12, 11}), (Frames{11, 12, 13}));
  EXPECT_EQ(c.apply(2, {14}), (Frames{11, 12, 14}));
  EXPECT_EQ(c.apply(1, {}), (Frames{11}));
  EXPECT_EQ(c.apply(1, {16, 15}), (Frames{11, 15, 16}));
}

TEST(StackCursor, SameStackIsTheSameNode) {
  // Goal: stacks are interned. Method: the same stack by two different deltas.
  Cursor c;
  c.apply(0, {3, 2});
  const uint32_t size = c.tree.size();
  c.apply(0, {9, 8});
  c.apply(0, {3, 2});
  EXPECT_EQ(c.tree.size(), size + 2);
}

TEST(StackCursor, IncompleteStacksHangOnTheIncompleteFrame) {
  // Goal: invariant 2. Method: incomplete alone, what is kept from it, and a complete one after it.
  Cursor c;
  EXPECT_EQ(c.apply(0, {5, 4}, true), (Frames{kIncompleteFrame, 4, 5}));
  EXPECT_EQ(c.apply(1, {6}, true), (Frames{kIncompleteFrame, 4, 6}));
  EXPECT_EQ(c.apply(1, {7}, false), (Frames{kIncompleteFrame, 4, 7}));
  EXPECT_EQ(c.apply(0, {7, 4}, false), (Frames{4, 7}));
}

TEST(StackCursor, KeepingMoreThanThereIsMakesTheStackIncomplete) {
  // Goal: a damaged `keep` neither crashes nor invents frames. Method: keep 9 of 2.
  Cursor c;
  c.apply(0, {2, 3});
  EXPECT_EQ(c.apply(9, {4}), (Frames{kIncompleteFrame, 4}));
  EXPECT_FALSE(c.known);
}

TEST(CallTree, AgreesWithASlowModelOnRandomStacks) {
  // Goal: no two stacks share a node, no stack has two. Method: random deltas against a std::map.
  std::minstd_rand random(11);
  Cursor c;
  Frames model;
  std::map<Frames, uint32_t> seen;
  for (int i = 0; i < 20000; ++i) {
    const uint32_t keep = static_cast<uint32_t>(random() % (model.size() + 1));
    Frames fresh(random() % 4);
    for (uint64_t& frame : fresh) frame = 2 + random() % 6;
    model.resize(keep);
    model.insert(model.end(), fresh.rbegin(), fresh.rend());
    if (model.size() > 40) model.resize(0), fresh.clear();
    uint32_t node = 0;
    c.cursor.apply(
        c.tree, model.empty() ? 0 : keep, static_cast<uint32_t>(fresh.size()), false,
        [&](size_t at) { return fresh[at]; }, node);
    if (model.empty()) continue;
    const auto [entry, fresh_entry] = seen.try_emplace(model, node);
    ASSERT_EQ(entry->second, node);
    ASSERT_EQ(frames_of(c.tree.fresh(), node), model);
  }
}

TEST(CallTree, PathsWithOneHashStayApart) {
  // Goal: invariant 3: a hash decides nothing. Method: two paths put under the same hash, and a
  // third that is not there.
  CallTree tree;
  constexpr uint64_t kHash = uint64_t{77} << 40;
  const uint32_t a = tree.node(0, 5, kHash);
  const uint32_t b = tree.node(0, 6, kHash);
  const uint32_t below_a = tree.node(a, 7, kHash);
  EXPECT_NE(a, b);
  EXPECT_EQ(tree.node(0, 5, kHash), a);
  EXPECT_EQ(tree.node(0, 6, kHash), b);
  EXPECT_EQ(tree.node(a, 7, kHash), below_a);
  uint32_t nodes[2] = {};
  const uint64_t keys[] = {5, 7};
  EXPECT_EQ(tree.find(0, keys, kHash, nodes), below_a);
  EXPECT_EQ(nodes[0], a);
  const uint64_t others[] = {6, 7};
  EXPECT_EQ(tree.find(0, others, kHash, nodes), 0U);
  EXPECT_EQ(tree.size(), 3U);
}

TEST(FlatMap, FindsEveryKeyAfterGrowing) {
  // Goal: growth loses nothing. Method: 100,000 keys that differ in few bits.
  FlatMap map;
  for (uint32_t i = 1; i <= 100000; ++i) map.at(uint64_t{i} << 20) = i;
  for (uint32_t i = 1; i <= 100000; ++i) ASSERT_EQ(map.at(uint64_t{i} << 20), i);
  EXPECT_EQ(map.size(), 100000U);
}

}  // namespace
}  // namespace heapledger::collector
