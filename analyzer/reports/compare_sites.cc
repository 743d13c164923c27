// SPDX-License-Identifier: Apache-2.0
#include "analyzer/reports/compare_sites.h"

#include <fmt/format.h>

#include <map>
#include <utility>

#include "analyzer/reports/fault_counts.h"
#include "analyzer/reports/saturating.h"

namespace heapledger::analyzer {

namespace {

struct SiteCost {
  int64_t cost_ns = 0;
  int64_t faults = 0;
  int64_t mapped = 0;     // Blocks that got a mapping of their own.
  int64_t other = 0;      // System calls but those that map and unmap such blocks.
  int64_t live_peak = 0;  // Bytes.
};

struct Entry {
  SiteCost more, less;
  StackText stack;
};
using Entries = std::map<std::string, Entry>;

// By stack. Mapping and unmapping of blocks is in the sites' own figure, whoever freed them.
std::map<int64_t, std::pair<int64_t, int64_t>> other_calls(Trace& trace, const std::string& where) {
  std::map<int64_t, std::pair<int64_t, int64_t>> calls;
  schema::Statement select = trace.db.prepare(
      "SELECT stack, count(*), sum(duration_ns) FROM syscall WHERE origin = 'allocator' AND name"
      " NOT IN ('mmap', 'munmap') AND stack != 0 AND " +
      where + " GROUP BY stack");
  while (select.step()) {
    calls[select.column_int(0)] = {select.column_int(1), select.column_int(2)};
  }
  return calls;
}

void collect(Trace& trace, SiteCost Entry::*side, Entries& entries) {
  const ReportOptions options;
  const ReportInput input{{&trace, 1}, options};
  const std::string where = process_condition(input);
  const int64_t ns_per_fault = fault_totals(input).ns_per_fault;
  const auto calls = other_calls(trace, where);
  schema::Statement select = trace.db.prepare(
      "SELECT stack, sum(faults), sum(mapped_blocks), sum(mapped_ns), sum(live_bytes_peak)"
      " FROM site WHERE " +
      where + " GROUP BY stack");
  while (select.step()) {
    const int64_t id = select.column_int(0);
    if (id == 0) continue;
    StackText stack = trace.stacks->stack(id);
    Entry& entry = entries[stack_key(stack)];
    SiteCost& cost = entry.*side;
    const int64_t faults = select.column_int(1);
    cost.faults = sum_of(cost.faults, faults);
    cost.mapped = sum_of(cost.mapped, select.column_int(2));
    cost.live_peak = sum_of(cost.live_peak, select.column_int(4));
    cost.cost_ns = sum_of(cost.cost_ns, product_of(faults, ns_per_fault));
    cost.cost_ns = sum_of(cost.cost_ns, select.column_int(3));
    if (const auto found = calls.find(id); found != calls.end()) {
      cost.other = sum_of(cost.other, found->second.first);
      cost.cost_ns = sum_of(cost.cost_ns, found->second.second);
    }
    if (entry.stack.empty()) entry.stack = std::move(stack);
  }
}

// Durations differ in every run: a site whose counts are the same explains nothing.
bool differs(const Entry& entry) {
  return entry.more.faults != entry.less.faults || entry.more.mapped != entry.less.mapped ||
         entry.more.other != entry.less.other || entry.more.live_peak != entry.less.live_peak;
}

}  // namespace

Table site_cost_table(const CostSide& more, const CostSide& less) {
  Entries entries;
  collect(*more.trace, &Entry::more, entries);
  collect(*less.trace, &Entry::less, entries);
  Table table(
      "sites",
      fmt::format("What costs more under {} than under {}, by stack", more.label, less.label),
      {{"difference_ns", "costs more", Unit::kNs, true},
       {"faults_more", "faults", Unit::kCount},
       {"faults_less", "against", Unit::kCount},
       {"mapped_blocks_more", "mapped", Unit::kCount},
       {"mapped_blocks_less", "against", Unit::kCount},
       {"live_bytes_peak_difference", "at peak", Unit::kBytes, true},
       {"weight", "", Unit::kCount},
       {"stack", "", Unit::kText}});
  for (auto& [key, entry] : entries) {
    if (!differs(entry)) continue;
    const int64_t difference = difference_of(entry.more.cost_ns, entry.less.cost_ns);
    table.add({difference, entry.more.faults, entry.less.faults, entry.more.mapped,
               entry.less.mapped, difference_of(entry.more.live_peak, entry.less.live_peak),
               magnitude_of(difference), std::move(entry.stack)});
  }
  table.sort_by("weight");
  table.totals = {
      {"difference_ns", difference_of(more.cost_ns, less.cost_ns)},
      {"live_bytes_peak_difference", difference_of(more.live_bytes_peak, less.live_bytes_peak)}};
  table.empty_text = "no stack differs";
  return table;
}

}  // namespace heapledger::analyzer
