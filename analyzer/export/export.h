// SPDX-License-Identifier: Apache-2.0
// A trace for other tools: flame graphs (folded stacks) and pprof.
//
// Both show the same values by call stack. folded has one of them (--value), pprof all.
// Thread safety: as its Trace.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "analyzer/reports/report.h"

namespace heapledger::analyzer {

struct ExportValue {
  const char* name;  // Of --value.
  const char* type;  // In pprof,
  const char* unit;  // with its unit.
};
inline constexpr std::array<ExportValue, 8> kExportValues = {{
    {"allocations", "alloc_objects", "count"},
    {"bytes", "alloc_space", "bytes"},
    {"peak-blocks", "peak_objects", "count"},
    {"peak", "peak_space", "bytes"},
    {"leak-blocks", "leak_objects", "count"},
    {"leaks", "leak_space", "bytes"},
    {"faults", "page_faults", "count"},
    {"syscalls", "syscall_time", "nanoseconds"},
}};
size_t export_value_index(const std::string& name);

struct ExportSample {
  StackText stack;  // What has none is in a frame that says so.
  std::array<int64_t, kExportValues.size()> values{};
};

// One sample per stack with any value, of the selected processes. Each value adds up to the total
// of the report that has it. `peak` is each process's own.
std::vector<ExportSample> export_samples(const ReportInput& input);

std::string export_folded(const ReportInput& input, size_t value);
std::string export_pprof(const ReportInput& input);

// Writes the file as a whole or not at all; "-" is standard output. A pipe, a device or the file
// behind a link gets the text itself.
void write_export(const std::string& path, const std::string& text);

}  // namespace heapledger::analyzer
