// SPDX-License-Identifier: Apache-2.0
// Sums of numbers that a trace says. A damaged one may say any: what no integer can hold stops at
// the least or the greatest. Thread safety: pure.
#pragma once

#include <cstdint>
#include <limits>

namespace heapledger::analyzer {

inline int64_t sum_of(int64_t a, int64_t b) {
  int64_t result = 0;
  if (!__builtin_add_overflow(a, b, &result)) return result;
  return b < 0 ? std::numeric_limits<int64_t>::min() : std::numeric_limits<int64_t>::max();
}

inline int64_t difference_of(int64_t a, int64_t b) {
  int64_t result = 0;
  if (!__builtin_sub_overflow(a, b, &result)) return result;
  return b > 0 ? std::numeric_limits<int64_t>::min() : std::numeric_limits<int64_t>::max();
}

inline int64_t product_of(int64_t a, int64_t b) {
  int64_t result = 0;
  if (!__builtin_mul_overflow(a, b, &result)) return result;
  return (a < 0) != (b < 0) ? std::numeric_limits<int64_t>::min()
                            : std::numeric_limits<int64_t>::max();
}

inline int64_t magnitude_of(int64_t value) { return value < 0 ? difference_of(0, value) : value; }

}  // namespace heapledger::analyzer
