// SPDX-License-Identifier: Apache-2.0
// Page faults by the stack that allocated the page, with the function that touched it.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <vector>

#include "analyzer/render/units.h"
#include "analyzer/reports/all.h"
#include "analyzer/reports/fault_counts.h"

namespace heapledger::analyzer {

namespace {

struct Key {
  int64_t stack;
  std::string region;
  auto operator<=>(const Key&) const = default;
};
struct Counts {
  int64_t faults = 0, repeat_faults = 0, bytes = 0, ns_estimate = 0;
  std::map<std::string, int64_t> touched_by;
};

std::string touching_function(Trace& trace, const schema::Statement& row, int column) {
  const auto frame = row.column_optional_int(column);
  if (!frame) return trace.info.faults_have_addresses() ? "[kernel or unknown code]" : "";
  const FrameText& text = trace.stacks->frame(*frame).back();
  // The function whose code it is: a memset inlined twice is one toucher.
  return text.function.empty() ? frame_label(text, false) : text.function;
}

// "memset" or "memset, 2 others": the one that touched most, and how many others there are.
std::string most(const std::map<std::string, int64_t>& touched_by) {
  const auto greatest =
      std::max_element(touched_by.begin(), touched_by.end(),
                       [](const auto& a, const auto& b) { return a.second < b.second; });
  if (touched_by.size() == 1) return greatest->first;
  const size_t others = touched_by.size() - 1;
  return fmt::format("{}, {} other{}", greatest->first, others, others == 1 ? "" : "s");
}

Cell block_stack(const Trace& trace, const Key& key) {
  if (key.stack != 0) return trace.stack(key.stack);
  const char* text = key.region == "other" ? "[outside the heap]" : "[in no block with a stack]";
  return StackText{{text, "", 0, "", 0}};
}

}  // namespace

Document run_faults(const ReportInput& input) {
  Trace& trace = input.trace();
  const FaultTotals totals = fault_totals(input);
  Table table("sites", "By the stack that allocated the page",
              {{"faults", "faults", Unit::kCount, true},
               {"repeat_faults", "repeat", Unit::kCount, true},
               {"bytes", "pages", Unit::kBytes, true},
               {"ns_estimate", "time (est.)", Unit::kNs, true},
               {"region", "region", Unit::kText},
               {"touched_by", "touched by", Unit::kText},
               {"stack", "", Unit::kText}});
  std::map<Key, Counts> rows;
  schema::Statement select = trace.db.prepare(
      "SELECT stack, region, faults, repeat_faults, bytes, ns_estimate, touched_by"
      " FROM fault_site WHERE " +
      process_condition(input));
  while (select.step()) {
    Counts& counts = rows[{select.column_int(0), select.column_text(1)}];
    counts.faults += select.column_int(2);
    counts.repeat_faults += select.column_int(3);
    counts.bytes += select.column_int(4);
    counts.ns_estimate += select.column_int(5);
    counts.touched_by[touching_function(trace, select, 6)] += select.column_int(2);
  }
  for (const auto& [key, counts] : rows) {
    table.add({counts.faults, counts.repeat_faults, counts.bytes, counts.ns_estimate, key.region,
               most(counts.touched_by), block_stack(trace, key)});
  }
  table.sort_by("faults");
  table.totals["faults"] = totals.minor + totals.major;
  Document document;
  document.json["source"] = totals.source;
  document.json["total"] = {{"faults", totals.minor + totals.major},
                            {"repeat_faults", totals.repeat},
                            {"bytes", totals.bytes},
                            {"ns_estimate", totals.ns_estimate},
                            {"ns_per_fault", totals.ns_per_fault}};
  document.sections.push_back({"Page faults", fault_lines(totals), std::nullopt});
  document.add_table(std::move(table));
  if (totals.source == "none") {
    document.notes.push_back("page faults were not recorded");
  } else if (!trace.info.faults_have_addresses()) {
    document.notes.push_back(
        "without perf the rows are pages found newly resident between two snapshots, given to the "
        "block that was live there then; the total is getrusage's");
  }
  add_notes(input, document);
  return document;
}

}  // namespace heapledger::analyzer
