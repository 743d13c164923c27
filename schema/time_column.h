// SPDX-License-Identifier: Apache-2.0
// A packed column of ascending times: the differences between rows, in steps of the clock.
//
// Some processors' time stamps move in steps of many ticks (10 ns on recent AMD ones), so that the
// differences are nearly whole multiples of a length that is no whole number of nanoseconds. Said
// in steps they take three bits less each, which is a quarter of the column. The encoder finds the
// step in the batch itself; where there is none it is one nanosecond, and a number is the
// difference.
//
// Two sections (SplitWriter); the second begins with the step in nanoseconds * 2^16. Per row, where
// the step is 1 ns: the difference to the row before (the first: to 0). Else 0 and the difference
// as it is, or 1 + 2 * steps + rest, where the difference is floor(steps * step) + rest and rest is
// 0 or 1, what rounding leaves. Thread safety: none.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "schema/number_column.h"

namespace heapledger::schema {

class TimeColumnWriter {
 public:
  // Room for so many rows.
  void start(size_t rows) {
    if (differences_.size() < rows) differences_.resize(rows);
    count_ = 0;
    last_ = 0;
  }
  void put_all(std::span<const int64_t> times) {
    uint64_t last = last_;
    uint64_t* place = differences_.data() + count_;
    for (const int64_t time_ns : times) {
      const auto time = static_cast<uint64_t>(time_ns);
      *place++ = time - last;
      last = time;
    }
    count_ += times.size();
    last_ = last;
  }
  void put(int64_t time_ns) { put_all({&time_ns, 1}); }
  // Writes the sections, which are started here, with room for as many rows as this was.
  void finish(SplitWriter out);

 private:
  std::vector<uint64_t> differences_;  // The first `count_` of them.
  std::vector<uint64_t> sample_, rests_;
  size_t count_ = 0;
  uint64_t last_ = 0;
};

// Throws Error for times that go backwards. `numbers` is for their memory.
void read_times(SplitReader in, NumberColumn& numbers, std::span<int64_t> times);

// The step of differences between stamps, in nanoseconds * 2^16: one nanosecond where none is
// found. Sorts them.
uint64_t find_clock_step(std::span<uint64_t> differences);

}  // namespace heapledger::schema
