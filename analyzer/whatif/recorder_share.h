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

  // Of the library, or of libunwind, which it loads.
  bool is_code(uint64_t address) const;
  bool meets_memory(uint64_t start, uint64_t end) const;

 private:
  using Ranges = std::vector<std::pair<uint64_t, uint64_t>>;  // Start, end.
  Ranges code_;
  Ranges memory_;
};

// RSS at the largest recorded one that is neither heap nor the recorder's. Where one anonymous
// mapping has memory of both, the program's are the pages that it touched (`touched`).
uint64_t other_rss_bytes(schema::Database& db, int64_t process, const RecorderShare& recorder,
                         const PageSet& touched);

}  // namespace heapledger::analyzer
