// SPDX-License-Identifier: Apache-2.0
// The reports' functions, one file each; registry.cc has the table.
#pragma once

#include "analyzer/reports/report.h"

namespace heapledger::analyzer {

Document run_compare(const ReportInput& input);
Document run_diff(const ReportInput& input);
Document run_faults(const ReportInput& input);
Document run_fragmentation(const ReportInput& input);
Document run_hotspots(const ReportInput& input);
Document run_ledger(const ReportInput& input);
Document run_layout(const ReportInput& input);
Document run_leaks(const ReportInput& input);
Document run_lifetimes(const ReportInput& input);
Document run_peak(const ReportInput& input);
Document run_sizes(const ReportInput& input);
Document run_summary(const ReportInput& input);
Document run_syscalls(const ReportInput& input);
Document run_temporary(const ReportInput& input);
Document run_threads(const ReportInput& input);
Document run_timeline(const ReportInput& input);

}  // namespace heapledger::analyzer
