// SPDX-License-Identifier: Apache-2.0
// Who allocates most, by calls and by bytes; and whose blocks are temporary: freed before the same
// thread allocated again.
#include <algorithm>

#include "analyzer/reports/all.h"

namespace heapledger::analyzer {

namespace {

Table site_table(const ReportInput& input, const char* condition, const char* order) {
  Trace& trace = input.trace();
  Table table("sites", "",
              {{"calls", "calls", Unit::kCount, true},
               {"bytes", "requested", Unit::kBytes, true},
               {"temporary", "temporary", Unit::kCount, true},
               {"temporary_share", "share", Unit::kRatio},
               {"syscalls", "system calls", Unit::kCount, true},
               {"faults", "faults", Unit::kCount, true},
               {"stack", "", Unit::kText}});
  schema::Statement select = trace.db.prepare(
      "SELECT stack, sum(calls) AS n, sum(bytes), sum(temporary) AS t, sum(syscalls), sum(faults)"
      " FROM site WHERE " +
      process_condition(input) + " GROUP BY stack HAVING " + condition);
  while (select.step()) {
    const int64_t calls = select.column_int(1);
    const int64_t temporary = select.column_int(3);
    table.add({calls, select.column_int(2), temporary,
               static_cast<double>(temporary) / static_cast<double>(std::max<int64_t>(calls, 1)),
               select.column_int(4), select.column_int(5), trace.stack(select.column_int(0))});
  }
  table.sort_by(order);
  return table;
}

int64_t total(const ReportInput& input, const char* sql) {
  return input.trace().db.query_int(sql + process_condition(input)).value_or(0);
}

}  // namespace

Document run_hotspots(const ReportInput& input) {
  Table table = site_table(input, "n > 0", "calls");
  // Made by another way: by size instead of by stack.
  table.totals["calls"] = total(input, "SELECT sum(blocks) FROM size_class WHERE ");
  table.totals["bytes"] = total(input, "SELECT sum(bytes) FROM size_class WHERE ");
  table.empty_text = "no allocation";
  Document document;
  document.add_table(std::move(table), "Allocations by the stack that made them");
  add_notes(input, document);
  return document;
}

Document run_temporary(const ReportInput& input) {
  Table table = site_table(input, "t > 0", "temporary");
  table.totals["temporary"] = total(input, "SELECT sum(temporary) FROM site WHERE ");
  table.empty_text = "no block was freed before the next allocation of its thread";
  Document document;
  document.add_table(std::move(table),
                     "Blocks freed before their thread allocated again, by the stack that "
                     "allocated them");
  document.sections.back().lines.push_back("  heapledger lifetimes shows how long blocks live.");
  add_notes(input, document);
  return document;
}

}  // namespace heapledger::analyzer
