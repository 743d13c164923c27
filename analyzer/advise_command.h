// SPDX-License-Identifier: Apache-2.0
// `heapledger-analyzer advise`: the settings worth having, as lines to deploy.
#pragma once

#include "analyzer/reports/report.h"

namespace heapledger::analyzer {

// Writes its progress to stderr where that is a terminal. Throws Error.
Document run_advise(Trace& trace, const ReportOptions& options);

}  // namespace heapledger::analyzer
