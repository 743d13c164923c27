// SPDX-License-Identifier: Apache-2.0
// A report: a name, one line of help, and a function from traces to a Document. It prints nothing.
//
// To add one: a file in this folder, one row in registry.cc, a golden test. Nothing else changes.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "analyzer/reports/stacks.h"
#include "analyzer/reports/table.h"
#include "analyzer/trace_info.h"
#include "schema/trace_db.h"

namespace heapledger::analyzer {

// A finalized trace, open for reading.
struct Trace {
  std::string path;
  schema::Database db;
  TraceInfo info;
  std::vector<std::string> notes;
  std::unique_ptr<Stacks> stacks;

  StackRef stack(int64_t id) const { return {stacks.get(), id}; }
};

struct ReportOptions {
  std::optional<size_t> top;
  std::string at;                  // peak | exit | seconds; empty: the report's default.
  std::optional<int64_t> process;  // A pid.
  std::string site;
  std::string suppressions;  // leaks: a file of known ones.
  size_t runs = 1;           // compare: so many traces in a row are runs of one setting.
};

struct ReportInput {
  std::span<Trace> traces;  // One, but for compare.
  const ReportOptions& options;

  Trace& trace() const { return traces.front(); }
};

struct Report {
  const char* name;
  const char* help;
  bool many_traces;
  bool has_moment;  // Takes --at.
  size_t top;       // Rows shown as text where --top does not say.
  Document (*run)(const ReportInput& input);
  int traces_exactly = 0;  // Where many_traces: 0 is any number.

  int trace_count_min() const { return traces_exactly != 0 ? traces_exactly : 1; }
  int trace_count_max() const {
    return traces_exactly != 0 ? traces_exactly : many_traces ? 1000 : 1;
  }
};

// In the order of --help.
std::span<const Report> reports();
const Report* find_report(const std::string& name);

// --process as rows of `process`: those of that pid, or all recorded ones. Throws Error where there
// is none.
std::vector<const ProcessInfo*> selected_processes(const ReportInput& input);
// The same as a condition on a column, "process IN (1,4)".
std::string process_condition(const ReportInput& input, const char* column = "process");
// For reports about one heap: the selected process that held most.
const ProcessInfo& main_process(const ReportInput& input);
// What every report must say: damage, losses, an unfinished recording.
void add_notes(const ReportInput& input, Document& document);

}  // namespace heapledger::analyzer
