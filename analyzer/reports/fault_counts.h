// SPDX-License-Identifier: Apache-2.0
// Page faults by each of the counters there are; shared by the reports that show them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "analyzer/reports/report.h"

namespace heapledger::analyzer {

struct FaultTotals {
  std::string source;  // perf | perf-user | getrusage | none
  // By the source: perf's count, or getrusage's own over the recording.
  int64_t minor = 0, major = 0;
  int64_t rusage_minor = 0, rusage_major = 0;  // While recording.
  bool rusage_unknown = false;  // Of a recorded process; then the three below are without it.
  int64_t rusage_before = 0;    // Before recording began: the loader's.
  int64_t lost = 0;
  int64_t in_heap = 0, repeat = 0, bytes = 0;  // Of the attributed ones.
  int64_t ns_estimate = 0;                     // Of all.
  int64_t ns_per_fault = 0;
  std::string ns_per_fault_source;
};

FaultTotals fault_totals(const ReportInput& input);
// Lines for a front page: the counters, their difference, the price.
std::vector<std::string> fault_lines(const FaultTotals& totals);

}  // namespace heapledger::analyzer
