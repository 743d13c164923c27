// SPDX-License-Identifier: Apache-2.0
// Two recordings, stack by stack: what the second one allocates, holds at its peak and leaves at
// exit beyond the first.
//
// Stacks are the same where stack_key() says so.
#include <fmt/format.h>

#include <map>

#include "analyzer/render/units.h"
#include "analyzer/reports/all.h"
#include "analyzer/reports/saturating.h"
#include "schema/error.h"

namespace heapledger::analyzer {

namespace {

struct Values {
  int64_t calls = 0, bytes = 0, peak = 0, end = 0;
};

struct Entry {
  Values before, after;
  StackText stack;  // Of the second trace, where it is there.
};

Values less(const Values& after, const Values& before) {
  return {difference_of(after.calls, before.calls), difference_of(after.bytes, before.bytes),
          difference_of(after.peak, before.peak), difference_of(after.end, before.end)};
}

Values collect(Trace& trace, bool is_after, std::map<std::string, Entry>& entries) {
  Values total;
  schema::Statement select = trace.db.prepare(
      "SELECT stack, sum(calls), sum(bytes), sum(live_bytes_peak),"
      " sum(live_bytes_end - inherited_bytes_end) FROM site GROUP BY stack");
  while (select.step()) {
    StackText stack = trace.stacks->stack(select.column_int(0));
    Entry& entry = entries[stack_key(stack)];
    if (is_after || entry.stack.empty()) entry.stack = std::move(stack);
    const Values more{select.column_int(1), select.column_int(2), select.column_int(3),
                      select.column_int(4)};
    for (Values* values : {is_after ? &entry.after : &entry.before, &total}) {
      values->calls = sum_of(values->calls, more.calls);
      values->bytes = sum_of(values->bytes, more.bytes);
      values->peak = sum_of(values->peak, more.peak);
      values->end = sum_of(values->end, more.end);
    }
  }
  return total;
}

}  // namespace

Document run_diff(const ReportInput& input) {
  if (input.traces.size() != 2) {
    throw schema::Error("cannot compare", "two traces are needed: BEFORE AFTER");
  }
  std::map<std::string, Entry> entries;
  const Values before = collect(input.traces[0], false, entries);
  const Values after = collect(input.traces[1], true, entries);
  Table table("sites", "",
              {{"live_bytes_peak", "at peak", Unit::kBytes, true},
               {"live_bytes_end", "at exit", Unit::kBytes, true},
               {"bytes", "requested", Unit::kBytes, true},
               {"calls", "calls", Unit::kCount, true},
               {"calls_before", "before", Unit::kCount, true},
               {"calls_after", "after", Unit::kCount, true},
               {"state", "", Unit::kText},
               {"weight", "", Unit::kCount},
               {"stack", "", Unit::kText}});
  for (auto& [key, entry] : entries) {
    const Values change = less(entry.after, entry.before);
    if (change.calls == 0 && change.bytes == 0 && change.peak == 0 && change.end == 0) continue;
    const char* state = entry.before.calls == 0  ? "new"
                        : entry.after.calls == 0 ? "gone"
                                                 : "changed";
    const int64_t weight = std::max(magnitude_of(change.peak), magnitude_of(change.end));
    table.add({change.peak, change.end, change.bytes, change.calls, entry.before.calls,
               entry.after.calls, std::string(state), weight, std::move(entry.stack)});
  }
  table.sort_by("weight");
  const Values change = less(after, before);
  table.totals = {{"live_bytes_peak", change.peak},
                  {"live_bytes_end", change.end},
                  {"bytes", change.bytes},
                  {"calls", change.calls}};
  table.empty_text = "no stack differs";
  Document document;
  document.json["before"] = input.traces[0].path;
  document.json["after"] = input.traces[1].path;
  document.add_table(std::move(table), fmt::format("{} less {}, by stack (functions, not lines)",
                                                   input.traces[1].path, input.traces[0].path));
  add_notes(input, document);
  return document;
}

}  // namespace heapledger::analyzer
