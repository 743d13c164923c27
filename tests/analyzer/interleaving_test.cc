// SPDX-License-Identifier: Apache-2.0
// Other orders of the threads' calls: what they keep, and what they change.
#include "analyzer/whatif/interleaving.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

namespace heapledger::analyzer {
namespace {

constexpr int64_t kStepNs = 1000;

// Threads take turns of some operations: they allocate, resize and free, also what others have.
// `size` is the operation's number, by which it is known again; a block's number is never used
// twice.
std::vector<Op> random_ops(uint32_t seed, uint32_t threads, size_t count) {
  std::mt19937 random(seed);
  std::vector<Op> ops;
  std::vector<uint32_t> live;
  uint32_t blocks = 0;
  uint32_t thread = 0;
  for (size_t i = 0; i < count; ++i) {
    if (random() % 3 == 0) thread = static_cast<uint32_t>(random() % threads);
    Op op;
    op.time_ns = static_cast<int64_t>(i) * kStepNs;
    op.thread = thread;
    op.size = i;
    const auto take = [&] {
      const size_t at = random() % live.size();
      const uint32_t block = live[at];
      live.erase(live.begin() + static_cast<ptrdiff_t>(at));
      return block;
    };
    const auto kind = live.size() < 4 ? 0 : random() % 8;
    if (kind < 4) {
      live.push_back(op.block = blocks++);
    } else if (kind < 7) {
      op.kind = OpKind::kRelease;
      op.block = take();
    } else {
      op.kind = OpKind::kResize;
      op.old_block = take();
      live.push_back(op.block = blocks++);
    }
    ops.push_back(op);
  }
  return ops;
}

std::vector<Op> reordered(uint32_t seed, const std::vector<Op>& ops) {
  std::vector<Op> out;
  Interleaving(seed).reorder(ops, out);
  return out;
}

std::vector<uint64_t> numbers(const std::vector<Op>& ops) {
  std::vector<uint64_t> numbers;
  for (const Op& op : ops) numbers.push_back(op.size);
  return numbers;
}

TEST(Interleaving, KeepsTheOrderOfEachThreadAndOfEachBlock) {
  // Goal: what a program did for sure stays. Method: random calls of four threads; in each order
  // every operation once, ascending by thread and by block.
  for (uint32_t seed = 1; seed <= 12; ++seed) {
    const std::vector<Op> ops = random_ops(seed, 4, 3000);
    const std::vector<Op> out = reordered(seed, ops);
    ASSERT_EQ(out.size(), ops.size());
    std::map<uint32_t, uint64_t> of_thread, of_block;
    std::vector<bool> seen(ops.size());
    for (size_t i = 0; i < out.size(); ++i) {
      const Op& op = out[i];
      EXPECT_FALSE(seen[op.size]);
      seen[op.size] = true;
      EXPECT_EQ(op.thread, ops[op.size].thread);
      EXPECT_EQ(op.time_ns, ops[i].time_ns);
      EXPECT_LE(of_thread[op.thread], op.size);
      of_thread[op.thread] = op.size;
      for (const uint32_t block : {op.block, op.old_block}) {
        if (block == Op::kNoBlock) continue;
        EXPECT_LE(of_block[block], op.size) << "block " << block;
        of_block[block] = op.size;
      }
    }
  }
}

TEST(Interleaving, IsAnotherForEachSeedAndTheSameForOne) {
  const std::vector<Op> ops = random_ops(1, 3, 1000);
  EXPECT_EQ(numbers(reordered(1, ops)), numbers(reordered(1, ops)));
  EXPECT_NE(numbers(reordered(1, ops)), numbers(reordered(2, ops)));
  EXPECT_NE(numbers(reordered(1, ops)), numbers(ops));
}

TEST(Interleaving, OneThreadStaysAsItIs) {
  const std::vector<Op> ops = random_ops(1, 1, 500);
  for (uint32_t seed = 1; seed <= 3; ++seed) EXPECT_EQ(numbers(reordered(seed, ops)), numbers(ops));
}

TEST(Interleaving, NothingPassesAFork) {
  std::vector<Op> ops = random_ops(1, 4, 1000);
  for (const size_t at : {300, 301, 700}) {
    ops[at] = Op{.time_ns = ops[at].time_ns, .size = at, .kind = OpKind::kFork};
  }
  const std::vector<Op> out = reordered(2, ops);
  for (size_t i = 0; i < out.size(); ++i) {
    for (const size_t fork : {300, 301, 700}) {
      EXPECT_EQ(i < fork, out[i].size < fork);
      EXPECT_EQ(i == fork, out[i].size == fork);
    }
  }
}

// Two threads by turns: each frees the buffer that it has and allocates the next.
std::vector<Op> buffers_by_turns(size_t turns) {
  std::vector<Op> ops;
  for (uint32_t turn = 0; turn < turns; ++turn) {
    Op op;
    op.time_ns = turn * 10 * kStepNs;
    op.thread = turn % 2;
    op.size = 1000;
    if (turn >= 2) {
      op.kind = OpKind::kRelease;
      op.block = turn - 2;
      ops.push_back(op);
    }
    op.kind = OpKind::kAllocate;
    op.block = turn;
    op.time_ns += kStepNs;
    ops.push_back(op);
  }
  return ops;
}

TEST(Interleaving, ThreadsTakeOverInTheMiddleOrBetweenTwoPiecesOfWork) {
  // Goal: both ways of taking over occur, and no third. Method: turns of a free and an allocation;
  // after the free the thread holds nothing. By seed, none of the turns is split, or some.
  const std::vector<Op> ops = buffers_by_turns(400);
  for (uint32_t seed = 1; seed <= 6; ++seed) {
    const std::vector<Op> out = reordered(seed, ops);
    size_t split = 0;
    for (size_t i = 0; i + 1 < out.size(); ++i) {
      if (out[i].kind == OpKind::kRelease && out[i + 1].thread != out[i].thread) ++split;
    }
    if (seed % 3 == 0) {
      EXPECT_EQ(split, 0U) << seed;
    } else {
      EXPECT_GT(split, 10U) << seed;
      EXPECT_LT(split, 390U) << seed;
    }
  }
}

TEST(Interleaving, AThreadIsNeverFarFromWhereItWas) {
  // Goal: what a program does for reasons that are not known here stays about where it was. Method:
  // turns of one length; nobody is more than some turns of all away.
  const std::vector<Op> ops = buffers_by_turns(2000);
  for (uint32_t seed = 1; seed <= 6; ++seed) {
    const std::vector<Op> out = reordered(seed, ops);
    for (size_t i = 0; i < out.size(); ++i) {
      if (out[i].kind != OpKind::kAllocate) continue;
      EXPECT_NEAR(static_cast<double>(out[i].block) * 2, static_cast<double>(i), 40) << seed;
    }
  }
}

}  // namespace
}  // namespace heapledger::analyzer
