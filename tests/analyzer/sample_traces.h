// SPDX-License-Identifier: Apache-2.0
// The traces that report tests run over: each shows one thing, all are small.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tests/analyzer/trace_builder.h"

namespace heapledger::analyzer {

struct SampleTrace {
  const char* name;
  TraceBuilder (*make)();
};

const std::vector<SampleTrace>& sample_traces();
TraceBuilder sample_trace(const std::string& name);

}  // namespace heapledger::analyzer
