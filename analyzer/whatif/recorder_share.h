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

// RSS at the largest recorded one that is neither heap nor the recorder's. Of anonymous memory the
// program's pages are those that it was seen to touch: `touched`. Of files they are those that are
// resident but for what only the recorder's own touches brought in: it reads every module's unwind
// tables.
uint64_t other_rss_bytes(schema::Database& db, int64_t process, const RecorderShare& recorder,
                         const PageSet& touched, const PageSet& touched_by_recorder);

}  // namespace heapledger::analyzer
