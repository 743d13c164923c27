// SPDX-License-Identifier: Apache-2.0
#include "analyzer/reports/fault_counts.h"

#include <fmt/format.h>

#include <optional>

#include "analyzer/render/units.h"
#include "analyzer/reports/saturating.h"

namespace heapledger::analyzer {

FaultTotals fault_totals(const ReportInput& input) {
  Trace& trace = input.trace();
  const std::string where = process_condition(input);
  FaultTotals totals;
  totals.source = trace.info.fault_source;
  for (const ProcessInfo* process : selected_processes(input)) {
    const auto add = [](int64_t& sum, const std::optional<int64_t>& value) {
      sum = sum_of(sum, value.value_or(0));
    };
    add(totals.minor, process->perf_minor);
    add(totals.major, process->perf_major);
    add(totals.lost, process->perf_lost);
    add(totals.rusage_before, process->rusage_start_minor);
    add(totals.rusage_before, process->rusage_start_major);
    if (!process->rusage_minor) {
      totals.rusage_unknown |= process->recorded;
      continue;
    }
    add(totals.rusage_minor,
        difference_of(*process->rusage_minor, process->rusage_start_minor.value_or(0)));
    add(totals.rusage_major,
        difference_of(process->rusage_major.value_or(0), process->rusage_start_major.value_or(0)));
  }
  if (trace.info.faults_have_addresses()) {
    // The rows decide; the counters beside them may be missing in a recording cut short.
    const int64_t rows =
        trace.db.query_int("SELECT sum(faults) FROM fault_batch WHERE " + where).value_or(0);
    totals.minor = difference_of(rows, totals.major);
  } else {
    totals.minor = totals.rusage_minor;
    totals.major = totals.rusage_major;
  }
  const auto sum = [&](const char* column, const char* and_where) {
    return trace.db
        .query_int(
            fmt::format("SELECT sum({}) FROM fault_site WHERE {}{}", column, where, and_where))
        .value_or(0);
  };
  totals.in_heap = sum("faults", " AND region != 'other'");
  totals.repeat = sum("repeat_faults", "");
  totals.bytes = sum("bytes", "");
  totals.ns_per_fault = schema::meta_int(trace.db, "ns_per_fault").value_or(0);
  totals.ns_per_fault_source =
      schema::meta_text(trace.db, "ns_per_fault_source").value_or("measured while recording");
  totals.ns_estimate = product_of(sum_of(totals.minor, totals.major), totals.ns_per_fault);
  return totals;
}

std::vector<std::string> fault_lines(const FaultTotals& totals) {
  std::vector<std::string> lines;
  if (totals.source == "none") return {"  not recorded"};
  const int64_t rusage = sum_of(totals.rusage_minor, totals.rusage_major);
  const int64_t counted_faults = sum_of(totals.minor, totals.major);
  const bool perf = totals.source.starts_with("perf");
  if (perf) {
    lines.push_back(fmt::format("  by {:<16}{:>14}  ({} major)", totals.source,
                                human_count(counted_faults), human_count(totals.major)));
  }
  if (totals.rusage_unknown) {
    lines.push_back(
        fmt::format("  by getrusage       {:>14}  (a process was killed, or cut)", "-"));
  } else {
    lines.push_back(fmt::format("  by getrusage       {:>14}  ({} major; {} more before recording)",
                                human_count(rusage), human_count(totals.rusage_major),
                                human_count(totals.rusage_before)));
  }
  if (perf && !totals.rusage_unknown) {
    lines.push_back(fmt::format("  difference         {:>14}",
                                human_count(difference_of(counted_faults, rusage))));
  }
  lines.push_back(fmt::format("  in the heap        {:>14}  ({} paid twice)",
                              human_count(totals.in_heap), human_count(totals.repeat)));
  lines.push_back(fmt::format("  time (estimate)    {:>14}  ({} each, {})",
                              human_ns(totals.ns_estimate), human_ns(totals.ns_per_fault),
                              totals.ns_per_fault_source));
  return lines;
}

}  // namespace heapledger::analyzer
