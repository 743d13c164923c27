// SPDX-License-Identifier: Apache-2.0
// `heapledger-analyzer sweep`: what other settings would have cost the recorded program.
#pragma once

#include <array>
#include <string>

#include "analyzer/reports/report.h"
#include "analyzer/whatif/setting_grid.h"

namespace heapledger::analyzer {

// `lists`: one per axis as given on the command line, empty where it was not. With none at all, the
// default grid. Writes its progress to stderr where that is a terminal. Throws Error.
Document run_sweep(Trace& trace, const std::array<std::string, kAxes>& lists,
                   const ReportOptions& options);

}  // namespace heapledger::analyzer
