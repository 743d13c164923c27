// SPDX-License-Identifier: Apache-2.0
// Memory system calls: by call, origin and cause; by stack; and the requests that needed none.
#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "analyzer/render/units.h"
#include "analyzer/reports/all.h"
#include "analyzer/reports/syscall_source.h"

namespace heapledger::analyzer {

namespace {

struct Group {
  std::string call, origin, cause;
  std::vector<int64_t> durations;  // Sorted.

  bool is(const Group& other) const {
    return call == other.call && origin == other.origin && cause == other.cause;
  }
};

// The smallest value that at least `percent` of the values do not exceed.
int64_t percentile(const std::vector<int64_t>& sorted, size_t percent) {
  return sorted[(sorted.size() * percent + 99) / 100 - 1];
}

void add_group(const Group& group, Table& table) {
  if (group.durations.empty()) return;
  int64_t sum = 0;
  for (const int64_t duration : group.durations) sum += duration;
  table.add({group.call, group.origin, group.cause, integer_cell(group.durations.size()), sum,
             percentile(group.durations, 50), percentile(group.durations, 99),
             group.durations.back()});
}

void set_totals(const ReportInput& input, const std::string& where, Table& table) {
  schema::Database& db = input.trace().db;
  table.totals["count"] = db.query_int("SELECT count(*) FROM syscall WHERE " + where).value_or(0);
  table.totals["ns"] =
      db.query_int("SELECT sum(duration_ns) FROM syscall WHERE " + where).value_or(0);
}

Table by_cause(const ReportInput& input, const std::string& where) {
  Table table("rows", "By call and cause",
              {{"call", "call", Unit::kText},
               {"origin", "by", Unit::kText},
               {"cause", "cause", Unit::kText},
               {"count", "count", Unit::kCount, true},
               {"ns", "time", Unit::kNs, true},
               {"p50_ns", "p50", Unit::kNs},
               {"p99_ns", "p99", Unit::kNs},
               {"max_ns", "max", Unit::kNs}});
  schema::Statement select = input.trace().db.prepare(
      "SELECT name, origin, coalesce(cause, ''), duration_ns FROM syscall WHERE " + where +
      " ORDER BY name, origin, coalesce(cause, ''), duration_ns");
  Group group;
  while (select.step()) {
    Group next{select.column_text(0), select.column_text(1), select.column_text(2), {}};
    if (!group.is(next)) {
      add_group(group, table);
      group = std::move(next);
    }
    group.durations.push_back(select.column_int(3));
  }
  add_group(group, table);
  table.sort_by("ns");
  set_totals(input, where, table);
  return table;
}

Table by_stack(const ReportInput& input, const std::string& where) {
  Table table("sites", "By stack",
              {{"count", "count", Unit::kCount, true},
               {"ns", "time", Unit::kNs, true},
               {"max_ns", "max", Unit::kNs},
               {"calls", "calls", Unit::kText},
               {"stack", "", Unit::kText}});
  schema::Statement select = input.trace().db.prepare(
      "SELECT stack, sum(n), sum(ns), max(longest), group_concat(name || ' ' || n, ', ') FROM"
      " (SELECT stack, name, count(*) AS n, sum(duration_ns) AS ns, max(duration_ns) AS longest"
      "  FROM syscall WHERE " +
      where +
      " GROUP BY stack, name ORDER BY stack, name)"
      " GROUP BY stack");
  while (select.step()) {
    table.add({select.column_int(1), select.column_int(2), select.column_int(3),
               select.column_text(4), input.trace().stack(select.column_int(0))});
  }
  table.sort_by("ns");
  set_totals(input, where, table);
  return table;
}

}  // namespace

Document run_syscalls(const ReportInput& input) {
  const std::string processes = process_condition(input);
  const std::string where = processes + " AND origin != 'recorder'";
  schema::Database& db = input.trace().db;
  const int64_t requests =
      db.query_int("SELECT sum(calls) FROM site WHERE " + processes).value_or(0);
  const int64_t with_syscall =
      db.query_int("SELECT sum(calls_with_syscall) FROM site WHERE " + processes).value_or(0);
  Document document;
  document.json["requests"] = requests;
  document.json["requests_without_syscall"] = requests - with_syscall;
  document.add_table(by_cause(input, where));
  document.add_table(by_stack(input, where));
  const double share =
      requests == 0 ? 0
                    : static_cast<double>(requests - with_syscall) / static_cast<double>(requests);
  document.sections.push_back(
      {"",
       {fmt::format("{} of {} allocations ({}) were served without a system call.",
                    human_count(requests - with_syscall), human_count(requests),
                    human_ratio(share))},
       std::nullopt});
  document.sections.push_back({"", {syscall_source_text(input)}, std::nullopt});
  add_syscall_source(input, document);
  add_notes(input, document);
  return document;
}

}  // namespace heapledger::analyzer
