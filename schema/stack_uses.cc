// SPDX-License-Identifier: Apache-2.0
#include "schema/stack_uses.h"

#include <algorithm>
#include <array>
#include <utility>

#include "schema/packed_columns.h"

namespace heapledger::schema {
namespace {

// Uses that are counted as equal: no batch has more than kOneByte stacks used so often.
constexpr uint32_t kCountMax = 8192;

}  // namespace

void StackUses::start(size_t rows_max) {
  for (size_t i = 0; i < distinct_; ++i) direct_[slots_[i]] = 0;
  distinct_ = 0;
  count_ = 0;
  largest_ = 0;
  if (uses_.size() < rows_max + kAhead + 1) uses_.resize(rows_max + kAhead + 1);
  other_values_.clear();
  values_.clear();
}

// Gives those beyond the array their numbers; returns the largest.
uint32_t StackUses::alias(std::span<uint32_t> uses) {
  if (other_values_.empty()) others_.start();
  uint32_t largest = 0;
  for (uint32_t& slot : uses) {
    if (slot >= kDirectMax) {
      bool inserted;
      const auto next = static_cast<uint32_t>(other_values_.size());
      const uint32_t number = others_.at(slot, next, inserted);
      if (inserted) other_values_.push_back(slot);
      slot = kDirectMax + number;
    }
    largest = std::max(largest, slot);
  }
  return largest;
}

// By value: digit after digit, from the last one on.
void StackUses::sort_slots() {
  constexpr int kDigitBits = 11;
  constexpr size_t kFew = 256;
  const auto begin = slots_.begin();
  const auto end = begin + static_cast<std::ptrdiff_t>(distinct_);
  if (distinct_ < kFew) {
    std::sort(begin, end);
  } else {
    if (sorted_.size() < slots_.size()) sorted_.resize(slots_.size());
    for (int shift = 0; shift < 32 && largest_ >> shift != 0; shift += kDigitBits) {
      std::array<uint32_t, size_t{1} << kDigitBits> place{};
      constexpr uint32_t kMask = (1U << kDigitBits) - 1;
      for (size_t i = 0; i < distinct_; ++i) ++place[slots_[i] >> shift & kMask];
      uint32_t next = 0;
      for (uint32_t& at : place) next += std::exchange(at, next);
      for (size_t i = 0; i < distinct_; ++i)
        sorted_[place[slots_[i] >> shift & kMask]++] = slots_[i];
      slots_.swap(sorted_);
    }
  }
  if (other_values_.empty()) return;
  const auto last = slots_.begin() + static_cast<std::ptrdiff_t>(distinct_);
  const auto others = std::lower_bound(slots_.begin(), last, kDirectMax);
  std::sort(others, last, [&](uint32_t a, uint32_t b) { return value(a) < value(b); });
}

// How often a stack is used of which only some are among the most used: `left` of them.
uint32_t StackUses::find_threshold(size_t& left) {
  by_count_.assign(kCountMax + 1, 0);
  for (size_t i = 0; i < distinct_; ++i) ++by_count_[std::min(direct_[slots_[i]], kCountMax)];
  left = kOneByte;
  for (uint32_t count = kCountMax; count > 0; --count) {
    if (by_count_[count] > left) return count;
    left -= by_count_[count];
  }
  return 0;
}

void StackUses::number() {
  if (largest_ >= direct_.size()) {
    direct_.resize(std::max<size_t>(largest_ + size_t{1}, 2 * direct_.size()));
  }
  if (slots_.size() < uses_.size()) slots_.resize(uses_.size());
  uint32_t* const uses_of = direct_.data();
  uint32_t* const slots = slots_.data();
  size_t distinct = 0;
  for (size_t i = 0; i < count_; ++i) {
    __builtin_prefetch(&uses_of[uses_[i + kAhead]]);
    const uint32_t slot = uses_[i];
    slots[distinct] = slot;
    const uint64_t before = uses_of[slot];
    distinct += 1 - is_above(before, 0);
    uses_of[slot] = static_cast<uint32_t>(before + 1);
  }
  distinct_ = distinct;
  sort_slots();

  size_t left;
  const uint32_t threshold = find_threshold(left);
  most_.clear();
  values_.resize(distinct_);
  size_t index = std::min(kOneByte, distinct_);
  for (size_t i = 0; i < distinct_; ++i) {
    const uint32_t slot = slots_[i];
    const uint32_t count = std::min(direct_[slot], kCountMax);
    if (count > threshold || (count == threshold && left > 0)) {
      if (count == threshold) --left;
      // As one number: how seldom, then which.
      most_.push_back(uint64_t{UINT32_MAX - direct_[slot]} << 32 | i);
      continue;
    }
    values_[index] = value(slot);
    direct_[slot] = static_cast<uint32_t>(index++);
  }
  std::sort(most_.begin(), most_.end());
  for (uint32_t i = 0; i < most_.size(); ++i) {
    const uint32_t slot = slots_[most_[i] & UINT32_MAX];
    values_[i] = value(slot);
    direct_[slot] = i;
  }
}

}  // namespace heapledger::schema
