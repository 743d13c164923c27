// SPDX-License-Identifier: Apache-2.0
// Memory system calls: by call, origin and cause; by stack; the requests that needed none, and what
// that saved; the allocator's decisions with the stacks that led to them.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <tuple>
#include <vector>

#include "analyzer/finalize/syscall_costs.h"
#include "analyzer/render/units.h"
#include "analyzer/reports/all.h"
#include "analyzer/reports/saturating.h"
#include "analyzer/reports/syscall_source.h"

namespace heapledger::analyzer {

namespace {

void set_totals(const ReportInput& input, const std::string& where, Table& table) {
  schema::Database& db = input.trace().db;
  table.totals["count"] = db.query_int("SELECT count(*) FROM syscall WHERE " + where).value_or(0);
  table.totals["ns"] =
      db.query_int("SELECT sum(duration_ns) FROM syscall WHERE " + where).value_or(0);
}

// Percentiles of several processes cannot be had from theirs: the calls are read again.
std::vector<Row> rows_of_many(schema::Database& db, const std::string& where) {
  std::map<std::tuple<std::string, std::string, std::string>, std::vector<int64_t>> calls;
  schema::Statement select = db.prepare(
      "SELECT name, origin, coalesce(cause, ''), duration_ns FROM syscall WHERE " + where);
  while (select.step()) {
    calls[{select.column_text(0), select.column_text(1), select.column_text(2)}].push_back(
        select.column_int(3));
  }
  std::vector<Row> rows;
  for (auto& [call, durations] : calls) {
    const CallCost cost = cost_of(durations);
    rows.push_back({std::get<0>(call), std::get<1>(call), std::get<2>(call), cost.count, cost.ns,
                    cost.p50_ns, cost.p99_ns, cost.max_ns});
  }
  return rows;
}

std::vector<Row> rows_of_one(schema::Database& db, const std::string& processes) {
  schema::Statement select = db.prepare(
      "SELECT name, origin, cause, count, ns, p50_ns, p99_ns, max_ns FROM syscall_cost"
      " WHERE stack IS NULL AND " +
      processes);
  std::vector<Row> rows;
  while (select.step()) {
    Row row{select.column_text(0), select.column_text(1), select.column_text(2)};
    for (int i = 3; i < 8; ++i) row.push_back(select.column_int(i));
    rows.push_back(std::move(row));
  }
  return rows;
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
  schema::Database& db = input.trace().db;
  const bool many = selected_processes(input).size() > 1;
  for (Row& row : many ? rows_of_many(db, where) : rows_of_one(db, process_condition(input))) {
    table.add(std::move(row));
  }
  table.sort_by("ns");
  set_totals(input, where, table);
  return table;
}

Table by_stack(const ReportInput& input, const std::string& where) {
  Table table("sites", "By stack",
              {{"count", "count", Unit::kCount, true},
               {"ns", "time", Unit::kNs, true},
               {"p50_ns", "p50", Unit::kNs},
               {"p99_ns", "p99", Unit::kNs},
               {"max_ns", "max", Unit::kNs},
               {"call", "call", Unit::kText},
               {"cause", "cause", Unit::kText},
               {"origin", "by", Unit::kText},
               {"stack", "", Unit::kText}});
  schema::Statement select = input.trace().db.prepare(
      "SELECT count, ns, p50_ns, p99_ns, max_ns, name, cause, origin, stack FROM syscall_cost"
      " WHERE stack IS NOT NULL AND " +
      process_condition(input));
  while (select.step()) {
    Row row;
    for (int i = 0; i < 5; ++i) row.push_back(select.column_int(i));
    for (int i = 5; i < 8; ++i) row.push_back(select.column_text(i));
    row.push_back(input.trace().stack(select.column_int(8)));
    table.add(std::move(row));
  }
  table.sort_by("ns");
  set_totals(input, where, table);
  return table;
}

// Addresses, numbers and sizes, each as it is read.
std::string value_text(const std::string& kind, std::optional<int64_t> value) {
  if (!value) return "-";
  if (kind == "arena created") return human_count(*value);
  if (kind.starts_with("heap ") || kind == "foreign break") return fmt::format("0x{:x}", *value);
  if (kind.starts_with("setting")) return std::to_string(*value);
  return human_bytes(*value);
}

// Each kind of decision and the stack whose call led to it.
Table policy_table(const ReportInput& input, const std::string& processes) {
  Table table("policy_events", "Decisions of the allocator, by the stack whose call led to them",
              {{"kind", "decision", Unit::kText},
               {"count", "count", Unit::kCount, true},
               {"first_ns", "first", Unit::kTimeNs},
               {"last_ns", "last", Unit::kTimeNs},
               {"first_old_text", "from", Unit::kText},
               {"last_new_text", "to", Unit::kText},
               {"first_old", "", Unit::kPlain},
               {"last_new", "", Unit::kPlain},
               {"stack", "", Unit::kText}});
  schema::Database& db = input.trace().db;
  // With min() or max() alone in a group, SQLite gives the other columns of that very row.
  schema::Statement select = db.prepare(
      "SELECT a.kind, a.stack, n, first_ns, last_ns, first_old, last_new FROM"
      " (SELECT kind, stack, count(*) AS n, min(time_ns) AS first_ns, old_value AS first_old"
      "  FROM policy_event WHERE " +
      processes +
      " GROUP BY kind, stack) AS a JOIN"
      " (SELECT kind, stack, max(time_ns) AS last_ns, new_value AS last_new"
      "  FROM policy_event WHERE " +
      processes + " GROUP BY kind, stack) AS b ON a.kind = b.kind AND a.stack = b.stack");
  while (select.step()) {
    const std::string kind = select.column_text(0);
    const auto first_old = select.column_optional_int(5);
    const auto last_new = select.column_optional_int(6);
    table.add({kind, select.column_int(2), select.column_int(3), select.column_int(4),
               value_text(kind, first_old), value_text(kind, last_new), integer_cell(first_old),
               integer_cell(last_new), input.trace().stack(select.column_int(1))});
  }
  table.sort_by("count");
  table.totals["count"] =
      db.query_int("SELECT count(*) FROM policy_event WHERE " + processes).value_or(0);
  return table;
}

// Requests that needed no call, and what they would have cost as mappings of their own.
void add_reuse(const ReportInput& input, const std::string& processes, Document& document) {
  schema::Database& db = input.trace().db;
  const int64_t requests =
      db.query_int("SELECT sum(calls) FROM site WHERE " + processes).value_or(0);
  const int64_t with_syscall =
      db.query_int("SELECT sum(calls_with_syscall) FROM site WHERE " + processes).value_or(0);
  const int64_t without = difference_of(requests, with_syscall);
  const auto mean_of = [&](const char* condition) {
    return db.query_int(
        fmt::format("SELECT sum(ns) / sum(count) FROM syscall_cost WHERE {} AND"
                    " stack IS NULL AND origin = 'allocator' AND {}",
                    processes, condition));
  };
  document.json["requests"] = requests;
  document.json["requests_without_syscall"] = without;
  const double share =
      requests == 0 ? 0 : static_cast<double>(without) / static_cast<double>(requests);
  std::vector<std::string> lines = {
      fmt::format("{} of {} allocations ({}) were served without a system call.",
                  human_count(without), human_count(requests), human_ratio(share))};
  // Measured on blocks that were mapped; where there is none, on the heap's own calls.
  const auto any = mean_of("name IN ('brk', 'mprotect', 'mmap')");
  const auto map_ns = mean_of("cause = 'map block'");
  const auto unmap_ns = mean_of("cause = 'unmap block'");
  if (any && without > 0) {
    const int64_t pair_ns = sum_of(map_ns.value_or(*any), unmap_ns.value_or(*any));
    const int64_t calls = product_of(2, without);
    const int64_t calls_ns = product_of(without, pair_ns);
    const int64_t ns_per_fault = schema::meta_int(db, "ns_per_fault").value_or(0);
    const int64_t faults_ns = product_of(without, ns_per_fault);
    document.json["saved"] = {{"calls", calls},
                              {"ns_estimate", calls_ns},
                              {"faults_min", without},
                              {"faults_ns_estimate", faults_ns}};
    lines.push_back(fmt::format(
        "As mappings of their own they would have cost {} calls, about {} at {} for map and unmap "
        "(the mean here), and at least {} page faults, about {} (estimates).",
        human_count(calls), human_ns(calls_ns), human_ns(pair_ns), human_count(without),
        human_ns(faults_ns)));
  }
  document.sections.push_back({"", std::move(lines), std::nullopt});
}

}  // namespace

Document run_syscalls(const ReportInput& input) {
  const std::string processes = process_condition(input);
  const std::string where = processes + " AND origin != 'recorder'";
  Document document;
  document.add_table(by_cause(input, where));
  document.add_table(by_stack(input, where));
  add_reuse(input, processes, document);
  document.add_table(policy_table(input, processes));
  document.sections.push_back({"", {syscall_source_text(input)}, std::nullopt});
  add_syscall_source(input, document);
  add_notes(input, document);
  return document;
}

}  // namespace heapledger::analyzer
