// SPDX-License-Identifier: Apache-2.0
// What of a recorded process is the recorder's own: its code and its mappings. The program would
// not have them without us. Thread safety: const after it was made. Cost of a question: a search in
// a few ranges.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "schema/trace_db.h"

namespace heapledger::analyzer {

class PageSet;

class RecorderShare {
 public:
  static RecorderShare of(schema::Database& db, int64_t process);

  // In the library, or in libunwind, which it loads, or what that one needs and the program does
  // not: code that runs, or data that is touched.
  bool has(uint64_t address) const;

 private:
  std::vector<std::pair<uint64_t, uint64_t>> modules_;  // Start, end.
};

// A page fault of the program on what is not heap.
struct OtherTouch {
  int64_t time_ns;
  uint64_t address;
  bool by_start_up =
      false;  // In the recorder's: it calls functions of libc before the program does.
};

// RSS that is neither heap nor the recorder's, over time: when the heap is largest, a program has
// often not touched all of its libraries yet.
struct OtherRss {
  struct Step {
    int64_t time_ns;
    uint64_t bytes;  // From then on.
  };
  uint64_t bytes = 0;       // At the largest recorded RSS.
  std::vector<Step> steps;  // In order; never empty. What comes before the first one is as in it.
};

// At the largest recorded RSS it is counted. Of anonymous memory the program's pages are those that
// it was seen to touch: `touches`, in order of time. Of files they are those that are resident but
// for what only the recorder's own touches brought in: it reads every module's unwind tables.
// Before and after, in the same mappings, there is less or more by what those touches brought in;
// in others there is more afterwards, as far as the kernel's peak of the recording goes beyond that
// look. What the recorder's start-up touched for the program is taken to come at the end.
OtherRss other_rss(schema::Database& db, int64_t process, const RecorderShare& recorder,
                   const std::vector<OtherTouch>& touches, const PageSet& touched_by_recorder);

}  // namespace heapledger::analyzer
