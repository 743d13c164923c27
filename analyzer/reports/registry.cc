// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>

#include "analyzer/reports/all.h"
#include "analyzer/reports/report.h"
#include "analyzer/reports/syscall_source.h"
#include "schema/error.h"

namespace heapledger::analyzer {

namespace {

constexpr Report kReports[] = {
    {"summary", "totals, peaks, losses and findings: start here", false, false, 10, &run_summary},
    {"ledger", "RSS as a balance, line by line, against the kernel's own", false, true, 60,
     &run_ledger},
    {"fragmentation", "what of the held memory is free, and what keeps it from going back", false,
     true, 10, &run_fragmentation},
    {"syscalls", "memory system calls: count and time by call, cause and stack", false, false, 10,
     &run_syscalls},
    {"faults", "page faults by the stack that allocated the page", false, false, 10, &run_faults},
    {"leaks", "blocks live at exit, by the stack that allocated them", false, false, 10,
     &run_leaks},
    {"peak", "what was live at the peak, by the stack that allocated it", false, false, 10,
     &run_peak},
    {"hotspots", "allocations by stack: calls, bytes, how many are temporary", false, false, 10,
     &run_hotspots},
    {"temporary", "blocks freed before their thread allocated again", false, false, 10,
     &run_temporary},
    {"lifetimes", "how long blocks live", false, false, 70, &run_lifetimes},
    {"sizes", "allocations by requested size", false, false, 70, &run_sizes},
    {"threads", "who allocates and who frees", false, false, 20, &run_threads},
    {"timeline", "live, held and resident bytes over time, with the marks", false, false, 40,
     &run_timeline},
    {"layout", "the segments of the process: size, RSS, swap", false, true, 40, &run_layout},
    {"compare", "recordings of the same work under different settings, side by side", true, false,
     40, &run_compare},
    {"diff", "what changed between two recordings, by stack: BEFORE AFTER", true, false, 20,
     &run_diff, 2},
};

}  // namespace

std::span<const Report> reports() { return kReports; }

const Report* find_report(const std::string& name) {
  for (const Report& report : kReports) {
    if (name == report.name) return &report;
  }
  return nullptr;
}

std::vector<const ProcessInfo*> selected_processes(const ReportInput& input) {
  std::vector<const ProcessInfo*> selected;
  const ProcessInfo* not_recorded = nullptr;
  for (const ProcessInfo& process : input.trace().info.processes) {
    if (input.options.process && process.pid != *input.options.process) continue;
    if (process.recorded) {
      selected.push_back(&process);
    } else {
      not_recorded = &process;
    }
  }
  if (!selected.empty()) return selected;
  const std::string what = input.options.process
                               ? fmt::format("cannot report on process {}", *input.options.process)
                               : fmt::format("cannot report on trace '{}'", input.trace().path);
  if (not_recorded != nullptr) {
    throw schema::Error(
        what, fmt::format("'{}' was not recorded: {}",
                          not_recorded->command.empty() ? not_recorded->exe : not_recorded->command,
                          not_recorded->reason.empty()
                              ? "the recording was cut short before its first call was written"
                              : not_recorded->reason));
  }
  throw schema::Error(
      what, input.options.process ? "the trace has no such process" : "it has no process");
}

std::string process_condition(const ReportInput& input, const char* column) {
  std::string ids;
  for (const ProcessInfo* process : selected_processes(input)) {
    ids += (ids.empty() ? "" : ",") + std::to_string(process->id);
  }
  return fmt::format("{} IN ({})", column, ids);
}

const ProcessInfo& main_process(const ReportInput& input) {
  const std::vector<const ProcessInfo*> selected = selected_processes(input);
  const auto held = input.trace().db.query_int(
      "SELECT process FROM fragmentation WHERE at = 'peak' AND " + process_condition(input) +
      " ORDER BY held_bytes DESC, process LIMIT 1");
  return held ? input.trace().info.process(*held) : *selected.front();
}

void add_notes(const ReportInput& input, Document& document) {
  for (Trace& trace : input.traces) {
    const std::string prefix = input.traces.size() > 1 ? trace.path + ": " : "";
    std::vector<std::string> notes = trace.notes;
    int64_t lost = 0;
    int64_t faults_lost = 0;
    for (const ProcessInfo& process : trace.info.processes) {
      lost += process.events_lost;
      faults_lost += process.perf_lost.value_or(0);
    }
    if (lost != 0) notes.push_back(fmt::format("{} calls were lost and are in no number", lost));
    if (faults_lost != 0) {
      notes.push_back(fmt::format("{} page faults were lost and are in no row", faults_lost));
    }
    const std::string syscalls = syscall_loss_text(trace);
    if (!syscalls.empty()) notes.push_back(syscalls);
    schema::Statement select = trace.db.prepare(
        "SELECT text, count(*) FROM mark WHERE kind = 'note' GROUP BY text ORDER BY min(rowid)"
        " LIMIT 10");
    while (select.step()) {
      const int64_t count = select.column_int(1);
      notes.push_back(select.column_text(0) + (count > 1 ? fmt::format(" ({} times)", count) : ""));
    }
    for (const std::string& note : notes) document.notes.push_back(prefix + note);
  }
}

}  // namespace heapledger::analyzer
