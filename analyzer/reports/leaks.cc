// SPDX-License-Identifier: Apache-2.0
// Blocks live at exit by allocating stack. Blocks that a forked child inherited are its parent's.
#include <fmt/format.h>

#include "analyzer/render/units.h"
#include "analyzer/reports/all.h"
#include "analyzer/reports/suppressions.h"

namespace heapledger::analyzer {

namespace {

struct Suppressed {
  int64_t bytes = 0, blocks = 0, stacks = 0;
};

}  // namespace

Document run_leaks(const ReportInput& input) {
  Trace& trace = input.trace();
  const std::string where = process_condition(input);
  Table table("sites", "Live at exit, by the stack that allocated it",
              {{"bytes", "bytes", Unit::kBytes, true},
               {"blocks", "blocks", Unit::kCount, true},
               {"first_ns", "first allocated", Unit::kTimeNs},
               {"last_ns", "last allocated", Unit::kTimeNs},
               {"stack", "", Unit::kText}});
  schema::Statement select = trace.db.prepare(
      "SELECT stack, sum(live_bytes_end - inherited_bytes_end),"
      " sum(live_blocks_end - inherited_blocks_end) AS blocks, min(first_ns), max(last_ns)"
      " FROM site WHERE " +
      where + " GROUP BY stack HAVING blocks > 0");
  int64_t bytes = 0;
  int64_t blocks = 0;
  const Suppressions known = Suppressions::load(input.options.suppressions);
  Suppressed suppressed;
  while (select.step()) {
    if (!known.empty() && known.matches(trace.stacks->stack(select.column_int(0)))) {
      suppressed.bytes += select.column_int(1);
      suppressed.blocks += select.column_int(2);
      ++suppressed.stacks;
      continue;
    }
    table.add({select.column_int(1), select.column_int(2), select.column_int(3),
               select.column_int(4), trace.stack(select.column_int(0))});
    bytes += select.column_int(1);
    blocks += select.column_int(2);
  }
  table.sort_by("bytes");
  if (suppressed.stacks != 0) {
    const FrameText label{fmt::format("[suppressed: {}]", counted(suppressed.stacks, "stack")), "",
                          0, "", 0};
    table.add({suppressed.bytes, suppressed.blocks, Cell(), Cell(), StackText{label}});
  }
  const int64_t inherited =
      trace.db.query_int("SELECT sum(inherited_blocks_end) FROM site WHERE " + where).value_or(0);
  // The heap's own image at exit, made by another way than the accounts by stack.
  table.totals["bytes"] =
      trace.db
          .query_int("SELECT sum(requested_bytes) FROM fragmentation WHERE at = 'exit' AND " +
                     where)
          .value_or(0) -
      trace.db.query_int("SELECT sum(inherited_bytes_end) FROM site WHERE " + where).value_or(0);
  table.empty_text = "nothing is live at exit";
  Document document;
  document.json["live_bytes_end"] = bytes;
  document.json["live_blocks_end"] = blocks;
  document.json["suppressed_bytes"] = suppressed.bytes;
  document.json["suppressed_blocks"] = suppressed.blocks;
  document.add_table(std::move(table));
  if (inherited != 0) {
    document.notes.push_back(fmt::format(
        "{} inherited at a fork and still live in the child {} the parent's and not counted",
        counted(inherited, "block"), inherited == 1 ? "is" : "are"));
  }
  add_notes(input, document);
  return document;
}

}  // namespace heapledger::analyzer
