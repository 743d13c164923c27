// SPDX-License-Identifier: Apache-2.0
// Which sites explain what one recording costs beyond another of the same work: time in system
// calls and page faults, by the stack that allocated.
// Thread safety: none, as its Databases. Cost: one pass over both traces' sites.
#pragma once

#include <string>

#include "analyzer/reports/report.h"

namespace heapledger::analyzer {

struct CostSide {
  Trace* trace = nullptr;
  std::string label;
  int64_t cost_ns = 0;  // Of the whole recording: system calls of the allocator and page faults.
  int64_t live_bytes_peak = 0;
};

// `more` less `less`, by stack, the largest difference first. What no stack allocated (the
// allocator's own pages, the program's other memory, what frees gave back) is the rest.
Table site_cost_table(const CostSide& more, const CostSide& less);

}  // namespace heapledger::analyzer
