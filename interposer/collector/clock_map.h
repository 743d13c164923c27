// SPDX-License-Identifier: Apache-2.0
// From the program's time stamps (ticks) to nanoseconds of CLOCK_MONOTONIC_RAW, piecewise linear.
//
// Pairs (tick, nanoseconds) arrive as the recording goes on. Each pair begins a new piece *where
// the previous piece ends*, with a slope that meets the truth a little later, instead of jumping to
// it: so the map never runs backwards, and what it once said stays true, whichever thread's events
// are decoded first. Two events keep the order of their ticks for ever.
//
// Invariants. 1. Non-decreasing. 2. A piece never changes once it is followed by another. 3. Before
// the first pair the first piece goes on backwards.
// Thread safety: none. Cost: to_ns 2 ns for ticks in the newest pieces.
#pragma once

#include <cstdint>
#include <vector>

#include "schema/shared_region.h"

namespace heapledger::collector {

struct ClockPair {
  uint64_t tick = 0;
  int64_t raw_ns = 0;
  uint64_t uncertain_ns = 0;  // The two were read within this.
};

int64_t raw_now_ns();                      // CLOCK_MONOTONIC_RAW
ClockPair read_clock_pair(schema::Clock);  // The closest of a few tries.
schema::Clock best_clock();                // kTsc where the TSC is constant, nonstop and in use.

class ClockMap {
 public:
  // Of the two pairs of a recording's start, some milliseconds apart: the first slope.
  ClockMap(schema::Clock clock, const ClockPair& first, const ClockPair& second);

  // Turns many ticks that lie near each other; until the next add().
  class Cursor {
   public:
    explicit Cursor(const ClockMap& map) : map_(&map) {}
    int64_t to_ns(uint64_t tick) {
      if (tick - tick_ >= ticks_) find(tick);
      if (tick - tick_ >= ticks_) return map_->to_ns(tick);
      // What is not negative is cut as floor() would do it.
      return ns_ +
             static_cast<int64_t>(static_cast<double>(static_cast<int64_t>(tick - tick_)) * slope_);
    }

   private:
    void find(uint64_t tick);

    const ClockMap* map_;
    uint64_t tick_ = 0;
    uint64_t ticks_ = 0;  // How far the piece goes; 0: none was looked for.
    int64_t ns_ = 0;
    double slope_ = 0;
  };

  void add(const ClockPair& pair);  // Pairs that do not advance are ignored.
  int64_t to_ns(uint64_t tick) const;
  int64_t duration_ns(uint64_t ticks) const;

  uint64_t error_ns() const { return error_ns_; }  // The largest correction so far.
  uint64_t tick_hz() const;

 private:
  struct Piece {
    uint64_t tick;
    int64_t ns;
    double slope;  // ns per tick
  };

  schema::Clock clock_;
  ClockPair first_;  // Base line of the long-term slope.
  std::vector<Piece> pieces_;
  double slope_;  // Long-term.
  uint64_t error_ns_ = 0;
};

}  // namespace heapledger::collector
