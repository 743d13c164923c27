// SPDX-License-Identifier: Apache-2.0
// The stacks of a batch's rows, for its encoder: which there are, and in what order a batch lists
// them. Those that are used most come first, so that they have indices of one byte; the others
// follow in ascending order, so that they are small differences.
//
// Stack ids are dense over the whole trace, and those that are used near each other in time are
// near each other, so an array over all of them is mostly in the cache where a hash table would not
// be. A compiler uses ten thousand stacks in a batch: they are sorted by their digits.
//
// Invariants. 1. Between batches the array is zero. 2. Ids beyond the array go by a number of their
// own above it (alias()).
// Thread safety: none. Cost: two looks into the array per row, and a few nanoseconds per stack.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "schema/dictionary.h"

namespace heapledger::schema {

class StackUses {
 public:
  static constexpr size_t kOneByte = 128;  // So many indices have one byte.

  void start(size_t rows_max);
  // Adds the stacks of some rows, in order; 0 is none and is left out.
  template <typename StackOf>
  void add(std::span<const uint16_t> rows, StackOf stack_of) {
    uint32_t* const place = uses_.data() + count_;
    size_t added = 0;
    uint32_t largest = 0;
    for (const size_t row : rows) {
      const uint32_t stack = stack_of(row);
      place[added] = stack;
      added += stack != 0 ? 1 : 0;
      largest = stack > largest ? stack : largest;
    }
    if (largest >= kDirectMax) largest = alias({place, added});
    largest_ = largest > largest_ ? largest : largest_;
    count_ += added;
  }
  size_t rows() const { return count_; }

  // Puts the stacks in order; nothing may be added any more.
  void number();
  std::span<const uint32_t> values() const { return values_; }  // In the order of the batch.
  uint32_t index(size_t row) const { return direct_[uses_[row]]; }

 private:
  static constexpr uint32_t kDirectMax = 1U << 24;
  static constexpr size_t kAhead = 16;  // Rows whose places are on their way from memory.

  uint32_t alias(std::span<uint32_t> uses);
  uint32_t value(uint32_t slot) const {
    return slot < kDirectMax ? slot : other_values_[slot - kDirectMax];
  }
  void sort_slots();
  uint32_t find_threshold(size_t& left);

  std::vector<uint32_t> uses_;  // Slots; the first `count_` of them.
  size_t count_ = 0;
  uint32_t largest_ = 0;          // Of them.
  std::vector<uint32_t> direct_;  // By slot: how often it is used, then its index.
  std::vector<uint32_t> slots_;   // Those that are used: the first `distinct_`.
  size_t distinct_ = 0;
  std::vector<uint32_t> sorted_;
  std::vector<uint32_t> values_;
  std::vector<uint64_t> most_;
  std::vector<uint32_t> by_count_;
  NumberMap others_;
  std::vector<uint32_t> other_values_;
};

}  // namespace heapledger::schema
