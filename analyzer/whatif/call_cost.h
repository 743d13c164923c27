// SPDX-License-Identifier: Apache-2.0
// What a memory system call costs, by kind and length: from the recording's own durations where it
// has such calls, else measured here and now.
//
// A straight line per kind, base + slope per page, fitted so that outliers (a call that was
// interrupted) do not count: the slope is the median of those between pairs of calls (Theil and
// Sen), the base the median of what is left. What a call gives back costs by its pages, most of
// which were touched; that is in the slope as far as the recorded calls had it.
// Thread safety: const after it was made. Cost to make: milliseconds.
#pragma once

#include <array>
#include <cstdint>

#include "interposer/simulated/address_space.h"
#include "schema/trace_db.h"

namespace heapledger::analyzer {

class CallCost {
 public:
  // Of the allocator's calls in one process.
  static CallCost of(schema::Database& db, int64_t process);

  double ns(const heap::SimulatedCall& call) const;

  enum Kind : uint8_t { kGrow, kShrink, kMmap, kMunmap, kMremap, kMadvise, kMprotect, kKinds };
  struct Line {
    double base_ns = 0;
    double ns_per_page = 0;
    uint64_t samples = 0;  // Recorded calls; 0: measured here.
  };
  const Line& line(Kind kind) const { return lines_[kind]; }
  static const char* name(Kind kind);

 private:
  std::array<Line, kKinds> lines_;
};

}  // namespace heapledger::analyzer
