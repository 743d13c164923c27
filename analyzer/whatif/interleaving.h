// SPDX-License-Identifier: Apache-2.0
// Another order in which the threads of a process could have made the recorded calls.
//
// Which thread comes first is luck in most programs, and differs from run to run; what allocators
// that threads share make of it may differ a lot. So models run over several orders, all as likely
// as the recorded one as far as a recording tells. Two things are left to luck:
// - every thread goes now a little ahead of the others, now a little behind, by no more than some
//   turns of each of them take (a turn: a thread's operations that nobody came between);
// - where one takes over from another: in the middle of a piece of work, as recorded, or between
//   two pieces, when it holds least. Python's threads do the first where the next one wakes up
//   while a call has let go of the interpreter, else the second, and a recorded program is slower.
//
// Invariants: 1. each thread's operations keep their order; 2. so do those of each block, whichever
// threads make them; 3. nobody comes between operations that nobody came between, other than where
// their thread holds least: what keeps the others out may be a lock; 4. a fork is where it was, and
// all before it stays before it. Not known are the program's own reasons for an order, other than
// blocks that are handed over.
// Thread safety: none. Cost: 40 ns per operation.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "analyzer/whatif/op.h"

namespace heapledger::analyzer {

class Interleaving {
 public:
  // Another seed, another order; the same in every run.
  explicit Interleaving(uint32_t seed);

  // `ops`, in recorded order, in which no block's number begins anew, go to `out` in this one; with
  // the same times in the same places, so that they ascend.
  void reorder(std::span<const Op> ops, std::vector<Op>& out);

 private:
  // Operations of a thread that nobody comes between.
  struct Piece {
    size_t begin, end;
    double key;  // When it is to come.
  };
  struct ThreadState {
    double key = 0;        // Of its last piece.
    double start_key = 0;  // When it began what it does now.
    bool goes_on = false;  // With its next operation.
  };

  void reorder_part(std::span<const Op> ops, std::vector<Op>& out);
  double reach_ns(std::span<const Op> ops);
  void add_turn(std::span<const Op> ops, size_t begin, size_t end);
  void add_piece(std::span<const Op> ops, size_t begin, size_t end);
  size_t quiet_point(std::span<const Op> ops, size_t begin, size_t end);
  double lag_ns(uint32_t thread, int64_t time_ns) const;

  const uint32_t seed_;
  const double quiet_share_;  // Of turns that end where their thread holds least.
  double reach_ns_ = 0;
  uint64_t turns_ = 0;
  std::vector<Piece> pieces_;
  std::vector<int64_t> gaps_ns_;  // Between the starts of turns.
  std::vector<ThreadState> threads_;
  std::vector<double> block_keys_;     // By block: of the last piece that had to do with it.
  std::vector<uint64_t> block_bytes_;  // By block.
};

}  // namespace heapledger::analyzer
