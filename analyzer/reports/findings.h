// SPDX-License-Identifier: Apache-2.0
// What is worth doing something about: sentences with bytes or nanoseconds, worst first.
//
// A finding names the code and the price, and the command that shows more. A program with nothing
// wrong has none; the least amounts are constants in findings.cc.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "analyzer/reports/report.h"

namespace heapledger::analyzer {

struct Finding {
  std::string kind;  // pinned | churn | refault | growth | waste | spread | limits
  int64_t bytes = 0;
  int64_t ns = 0;
  std::string sentence;
  std::string command;
  double weight = 0;  // Bytes against the process's peak, or time against its run.
};

std::vector<Finding> find_findings(const ReportInput& input);

}  // namespace heapledger::analyzer
