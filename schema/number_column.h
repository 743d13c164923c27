// SPDX-License-Identifier: Apache-2.0
// All numbers of a section at once.
//
// Where a varint ends is known only when it was looked at, so reading them one by one is a chain of
// a dozen cycles each, wanted or not. Here eight bytes are looked at together; what is left for the
// rows is to take the next number or none, which is a chain of one cycle.
// Thread safety: none. Memory: 8 bytes per number, kept for the next section. Cost: 1-2 ns a
// number.
#pragma once

#include <cstdint>
#include <vector>

#include "schema/packed_columns.h"

namespace heapledger::schema {

// What VarintReader is, over numbers that are unpacked. A value of its own, so that loops hold it
// in registers.
class NumberCursor {
 public:
  NumberCursor(const uint64_t* begin, const uint64_t* end) : next_(begin), end_(end) {}

  uint64_t take() {
    if (next_ == end_) VarintReader::fail();
    return *next_++;
  }
  // The next number if `wanted`, else 0 and nothing is taken; without a branch on it.
  uint64_t take_if(bool wanted) {
    if (static_cast<size_t>(end_ - next_) < size_t{wanted}) VarintReader::fail();
    const uint64_t value = *next_ & (0 - uint64_t{wanted});  // There is one more than counts.
    next_ += wanted;
    return value;
  }
  // When all is read: nothing may be left over.
  void finish() const {
    if (next_ != end_) VarintReader::fail();
  }

 private:
  const uint64_t* next_;
  const uint64_t* end_;
};

class NumberColumn {
 public:
  // What is left of a section. The cursor is valid until the next read().
  NumberCursor read(VarintReader in);
  NumberCursor read(SplitReader in);

 private:
  std::vector<uint64_t> values_;
  std::vector<uint64_t> rests_;
};

}  // namespace heapledger::schema
