// SPDX-License-Identifier: Apache-2.0
// Page faults by the stack that allocated the page, with the function that touched it and, of pages
// paid for again, the call that had released them.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

#include "analyzer/render/units.h"
#include "analyzer/reports/all.h"
#include "analyzer/reports/fault_counts.h"
#include "analyzer/reports/saturating.h"

namespace heapledger::analyzer {

namespace {

constexpr std::pair<const char*, const char*> kReleases[] = {
    {"after_munmap", "munmap"},
    {"after_trim", "trim"},
    {"after_malloc_trim", "malloc_trim"},
    {"after_madvise", "madvise"},
};

struct Key {
  int64_t stack;
  std::string region;
  bool kernel;
  auto operator<=>(const Key&) const = default;
};
struct Counts {
  int64_t faults = 0, repeat_faults = 0, bytes = 0, ns_estimate = 0;
  int64_t cow_faults = 0, zero_upgrades = 0;
  std::array<int64_t, std::size(kReleases)> after{};
  std::map<std::string, int64_t> touched_by;

  void add_row(const schema::Statement& row) {
    int column = 3;
    for (int64_t* sum :
         {&faults, &repeat_faults, &bytes, &ns_estimate, &cow_faults, &zero_upgrades}) {
      *sum = sum_of(*sum, row.column_int(column++));
    }
    for (int64_t& sum : after) sum = sum_of(sum, row.column_int(column++));
  }
};
constexpr int kTouchedByColumn = 9 + static_cast<int>(std::size(kReleases));

// "trim 20, munmap 3": the releases that repeat faults followed.
std::string releases_text(const Counts& counts) {
  std::string text;
  int64_t rest = counts.repeat_faults;
  const auto add = [&](int64_t count, const char* name) {
    if (count == 0) return;
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", name, human_count(count));
  };
  for (size_t i = 0; i < counts.after.size(); ++i) {
    add(counts.after[i], kReleases[i].second);
    rest = difference_of(rest, counts.after[i]);
  }
  add(rest, "other");
  return text;
}

std::string where_text(const Key& key) { return key.kernel ? key.region + ", kernel" : key.region; }

std::string touching_function(Trace& trace, const schema::Statement& row, int column) {
  const auto frame = row.column_optional_int(column);
  if (!frame) {
    if (!trace.info.faults_have_addresses()) return "";
    return row.column_int(2) != 0 ? "[kernel]" : "[unknown code]";
  }
  const FrameText& text = trace.stacks->frame(*frame).back();
  // Our library's functions stand for malloc's own, which write headers, and for the recording.
  if (is_recorder(text)) {
    return text.function.find("heapledger::heap::") != std::string::npos ? "[allocator]"
                                                                         : "[recorder]";
  }
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

using Rows = std::map<Key, Counts>;

Rows load_rows(const ReportInput& input) {
  Trace& trace = input.trace();
  Rows rows;
  schema::Statement select = trace.db.prepare(
      "SELECT stack, region, kernel, faults, repeat_faults, bytes, ns_estimate, cow_faults,"
      " zero_upgrades, after_munmap, after_trim, after_malloc_trim, after_madvise, touched_by"
      " FROM fault_site WHERE " +
      process_condition(input));
  while (select.step()) {
    Counts& counts = rows[{select.column_int(0), select.column_text(1), select.column_int(2) != 0}];
    counts.add_row(select);
    int64_t& touched = counts.touched_by[touching_function(trace, select, kTouchedByColumn)];
    touched = sum_of(touched, select.column_int(3));
  }
  return rows;
}

Table site_table(Trace& trace, const Rows& rows) {
  std::vector<Column> columns = {{"faults", "faults", Unit::kCount, true},
                                 {"repeat_faults", "repeat", Unit::kCount, true},
                                 {"bytes", "pages", Unit::kBytes, true},
                                 {"ns_estimate", "time (est.)", Unit::kNs, true},
                                 {"where", "region", Unit::kText},
                                 {"touched_by", "touched by", Unit::kText},
                                 {"repeat_after", "again after", Unit::kText},
                                 {"region", "", Unit::kText},
                                 {"mode", "", Unit::kText},
                                 {"cow_faults", "", Unit::kCount, true},
                                 {"zero_upgrades", "", Unit::kCount, true}};
  for (const auto& [key, name] : kReleases) columns.push_back({key, "", Unit::kCount, true});
  columns.push_back({"stack", "", Unit::kText});
  Table table("sites", "By the stack that allocated the page", std::move(columns));
  for (const auto& [key, counts] : rows) {
    Row row{counts.faults,         counts.repeat_faults, counts.bytes,
            counts.ns_estimate,    where_text(key),      most(counts.touched_by),
            releases_text(counts), key.region,           key.kernel ? "kernel" : "user",
            counts.cow_faults,     counts.zero_upgrades};
    for (const int64_t count : counts.after) row.push_back(count);
    row.push_back(block_stack(trace, key));
    table.add(std::move(row));
  }
  table.sort_by("faults");
  return table;
}

// What the faults were for, by region.
Table touch_table(const Rows& rows, int64_t ns_per_fault) {
  Table table("touches", "By region and kind of touch",
              {{"region", "region", Unit::kText},
               {"mode", "mode", Unit::kText},
               {"touch", "touch", Unit::kText},
               {"faults", "faults", Unit::kCount, true},
               {"ns_estimate", "time (est.)", Unit::kNs, true}});
  std::map<std::pair<std::string, bool>, Counts> regions;
  for (const auto& [key, counts] : rows) {
    Counts& sum = regions[{key.region, key.kernel}];
    sum.faults = sum_of(sum.faults, counts.faults);
    sum.repeat_faults = sum_of(sum.repeat_faults, counts.repeat_faults);
    sum.cow_faults = sum_of(sum.cow_faults, counts.cow_faults);
    sum.zero_upgrades = sum_of(sum.zero_upgrades, counts.zero_upgrades);
    for (size_t i = 0; i < sum.after.size(); ++i) {
      sum.after[i] = sum_of(sum.after[i], counts.after[i]);
    }
  }
  for (const auto& [key, sum] : regions) {
    const auto add = [&, &region = key.first, kernel = key.second](const std::string& touch,
                                                                   int64_t faults) {
      if (faults == 0) return;
      table.add(
          {region, kernel ? "kernel" : "user", touch, faults, product_of(faults, ns_per_fault)});
    };
    int64_t rest = sum.repeat_faults;
    add("first",
        difference_of(difference_of(difference_of(sum.faults, sum.repeat_faults), sum.cow_faults),
                      sum.zero_upgrades));
    add("write after a read of the zero page", sum.zero_upgrades);
    add("copy after a fork", sum.cow_faults);
    for (size_t i = 0; i < sum.after.size(); ++i) {
      add(fmt::format("again, after {}", kReleases[i].second), sum.after[i]);
      rest = difference_of(rest, sum.after[i]);
    }
    add("again", rest);
  }
  table.sort_by("faults");
  return table;
}

}  // namespace

Document run_faults(const ReportInput& input) {
  Trace& trace = input.trace();
  const FaultTotals totals = fault_totals(input);
  const Rows rows = load_rows(input);
  Table sites = site_table(trace, rows);
  Table touches = touch_table(rows, totals.ns_per_fault);
  sites.totals["faults"] = touches.totals["faults"] = totals.minor + totals.major;
  Document document;
  document.json["source"] = totals.source;
  document.json["total"] = {{"faults", totals.minor + totals.major},
                            {"repeat_faults", totals.repeat},
                            {"bytes", totals.bytes},
                            {"ns_estimate", totals.ns_estimate},
                            {"ns_per_fault", totals.ns_per_fault}};
  document.sections.push_back({"Page faults", fault_lines(totals), std::nullopt});
  document.add_table(std::move(touches));
  document.add_table(std::move(sites));
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
