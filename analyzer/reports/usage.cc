// SPDX-License-Identifier: Apache-2.0
// Blocks by size, by lifetime, by thread; the timeline.
#include <fmt/format.h>

#include <algorithm>

#include "analyzer/render/units.h"
#include "analyzer/reports/all.h"

namespace heapledger::analyzer {

namespace {

int64_t total(const ReportInput& input, const char* sql) {
  return input.trace().db.query_int(sql + process_condition(input)).value_or(0);
}

// One row per row of the query, whose columns are those of the table.
void add_rows(const ReportInput& input, const std::string& sql, Table& table) {
  schema::Statement select = input.trace().db.prepare(sql);
  while (select.step()) {
    Row row;
    for (int i = 0; i < static_cast<int>(table.columns.size()); ++i) {
      if (table.columns[static_cast<size_t>(i)].unit == Unit::kText) {
        row.push_back(select.column_text(i));
      } else {
        row.push_back(integer_cell(select.column_optional_int(i)));
      }
    }
    table.add(std::move(row));
  }
}

Document one_table(const ReportInput& input, Table table, const std::string& heading) {
  Document document;
  document.add_table(std::move(table), heading);
  add_notes(input, document);
  return document;
}

}  // namespace

Document run_sizes(const ReportInput& input) {
  Table table("sizes", "",
              {{"bytes_min", "from", Unit::kBytes},
               {"bytes_max", "to", Unit::kBytes},
               {"blocks", "blocks", Unit::kCount, true},
               {"bytes", "requested", Unit::kBytes, true},
               {"rounding_bytes", "rounding", Unit::kBytes, true},
               {"live_blocks_end", "live at exit", Unit::kCount, true},
               {"live_bytes_end", "bytes", Unit::kBytes, true}});
  add_rows(input,
           "SELECT bytes_min, bytes_max, sum(blocks), sum(bytes), sum(usable_bytes - bytes),"
           " sum(live_blocks_end), sum(live_bytes_end) FROM size_class WHERE " +
               process_condition(input) + " GROUP BY bytes_min",
           table);
  table.totals["blocks"] = total(input, "SELECT sum(calls) FROM site WHERE ");
  table.totals["bytes"] = total(input, "SELECT sum(bytes) FROM site WHERE ");
  table.totals["live_bytes_end"] =
      total(input, "SELECT sum(live_bytes_end - inherited_bytes_end) FROM site WHERE ");
  table.empty_text = "no allocation";
  return one_table(input, std::move(table), "Allocations by requested size");
}

Document run_lifetimes(const ReportInput& input) {
  Table table("lifetimes", "",
              {{"life", "life", Unit::kText},
               {"ns_min", "from", Unit::kNs},
               {"ns_max", "to", Unit::kNs},
               {"blocks", "blocks", Unit::kCount, true},
               {"bytes", "requested", Unit::kBytes, true}});
  add_rows(input,
           "SELECT CASE WHEN ns_min IS NULL THEN 'live at exit' ELSE 'freed' END, ns_min, ns_max,"
           " sum(blocks), sum(bytes) FROM lifetime WHERE " +
               process_condition(input) + " GROUP BY ns_min ORDER BY ns_min IS NULL, ns_min",
           table);
  table.totals["blocks"] = total(input, "SELECT sum(calls) FROM site WHERE ");
  table.totals["bytes"] = total(input, "SELECT sum(bytes) FROM site WHERE ");
  table.empty_text = "no allocation";
  return one_table(input, std::move(table),
                   "Blocks by how long they lived (a realloc ends one and begins another)");
}

namespace {

// Of arenas, a name for each.
constexpr const char* kArenaName =
    "CASE arena WHEN 0 THEN 'mapped blocks' WHEN 1 THEN 'main' ELSE 'arena ' || arena END";

void add_use_totals(const ReportInput& input, Table& table) {
  table.totals["blocks"] = total(input, "SELECT sum(calls) FROM site WHERE ");
  table.totals["bytes"] = total(input, "SELECT sum(bytes) FROM site WHERE ");
  table.totals["freed"] = total(input, "SELECT sum(freed) FROM thread_use WHERE ");
  table.totals["freed_foreign"] = total(input, "SELECT sum(freed_foreign) FROM thread_use WHERE ");
}

Table arena_table(const ReportInput& input) {
  Table table("arenas", "",
              {{"pid", "pid", Unit::kPlain},
               {"arena", "arena", Unit::kText},
               {"allocating_threads", "threads that allocate", Unit::kCount},
               {"freeing_threads", "that free", Unit::kCount},
               {"blocks", "allocated", Unit::kCount, true},
               {"bytes", "requested", Unit::kBytes, true},
               {"freed", "freed", Unit::kCount, true},
               {"freed_foreign", "of others", Unit::kCount, true}});
  add_rows(input,
           fmt::format("SELECT process.pid, {}, sum(blocks != 0), sum(freed != 0), sum(blocks),"
                       " sum(bytes), sum(freed), sum(freed_foreign) FROM arena_use"
                       " JOIN process ON process.id = arena_use.process WHERE {}"
                       " GROUP BY process.id, arena",
                       kArenaName, process_condition(input, "arena_use.process")),
           table);
  table.sort_by("bytes");
  add_use_totals(input, table);
  table.empty_text = "no arena was used";
  return table;
}

Table arena_thread_table(const ReportInput& input) {
  Table table("arena_threads", "",
              {{"pid", "pid", Unit::kPlain},
               {"arena", "arena", Unit::kText},
               {"tid", "tid", Unit::kPlain},
               {"name", "thread", Unit::kText},
               {"blocks", "allocated", Unit::kCount, true},
               {"bytes", "requested", Unit::kBytes, true},
               {"freed", "freed", Unit::kCount, true},
               {"freed_foreign", "of others", Unit::kCount, true}});
  add_rows(input,
           fmt::format("SELECT process.pid, {}, thread.tid, coalesce(thread.name, ''), blocks,"
                       " bytes, freed, freed_foreign FROM arena_use"
                       " JOIN thread ON thread.id = arena_use.thread"
                       " JOIN process ON process.id = arena_use.process WHERE {}",
                       kArenaName, process_condition(input, "arena_use.process")),
           table);
  table.sort_by("bytes");
  add_use_totals(input, table);
  return table;
}

Table foreign_table(const ReportInput& input) {
  Table table("foreign_frees", "",
              {{"blocks", "blocks", Unit::kCount, true},
               {"bytes", "requested", Unit::kBytes, true},
               {"stack", "", Unit::kText}});
  const std::string from = " FROM foreign_free WHERE " + process_condition(input);
  schema::Statement select = input.trace().db.prepare(
      "SELECT sum(blocks), sum(bytes), stack" + from + " AND stack IS NOT NULL GROUP BY stack");
  while (select.step()) {
    table.add(
        {select.column_int(0), select.column_int(1), input.trace().stack(select.column_int(2))});
  }
  schema::Statement rest = input.trace().db.prepare(
      "SELECT coalesce(sum(stacks), 0), coalesce(sum(blocks), 0), coalesce(sum(bytes), 0)" + from +
      " AND stack IS NULL");
  if (rest.step() && rest.column_int(0) != 0) {
    table.unlisted_count = static_cast<size_t>(rest.column_int(0));
    table.unlisted = {{"blocks", rest.column_int(1)}, {"bytes", rest.column_int(2)}};
  }
  table.sort_by("blocks");
  table.totals["blocks"] =
      total(input, "SELECT coalesce(sum(freed_foreign), 0) FROM arena_use WHERE arena > 1 AND ");
  table.empty_text = "none";
  return table;
}

}  // namespace

Document run_threads(const ReportInput& input) {
  Table table("threads", "",
              {{"pid", "pid", Unit::kPlain},
               {"tid", "tid", Unit::kPlain},
               {"name", "thread", Unit::kText},
               {"blocks", "allocated", Unit::kCount, true},
               {"bytes", "requested", Unit::kBytes, true},
               {"freed", "freed", Unit::kCount, true},
               {"freed_foreign", "of others", Unit::kCount, true},
               {"freed_by_others", "by others", Unit::kCount, true},
               {"faults", "faults", Unit::kCount}});
  add_rows(input,
           "SELECT process.pid, thread.tid, coalesce(thread.name, ''), blocks, bytes, freed,"
           " freed_foreign, freed_by_others, thread.minor_faults + thread.major_faults"
           " FROM thread_use JOIN thread ON thread.id = thread_use.thread"
           " JOIN process ON process.id = thread_use.process WHERE " +
               process_condition(input, "thread_use.process"),
           table);
  table.sort_by("bytes");
  table.totals["blocks"] = total(input, "SELECT sum(calls) FROM site WHERE ");
  table.totals["bytes"] = total(input, "SELECT sum(bytes) FROM site WHERE ");
  table.empty_text = "no thread allocated";
  Document document = one_table(input, std::move(table), "Who allocates and who frees");
  document.sections.back().lines.push_back(
      "  of others: blocks it freed that another thread had allocated; by others: its own, freed "
      "by "
      "another.");
  document.add_table(arena_table(input), "Arena by arena");
  document.add_table(arena_thread_table(input), "In each arena, thread by thread");
  document.add_table(foreign_table(input),
                     "Blocks of arenas other than main that another thread freed, by the stack that"
                     " allocated them");
  return document;
}

Document run_timeline(const ReportInput& input) {
  constexpr size_t kLines = 40;
  const ProcessInfo& process = main_process(input);
  Table table("timeline", "",
              {{"time_ns", "time", Unit::kTimeNs},
               {"live_bytes", "live", Unit::kBytes},
               {"live_blocks", "blocks", Unit::kCount},
               {"held_bytes", "held", Unit::kBytes},
               {"resident_bytes", "resident", Unit::kBytes},
               {"calls", "calls", Unit::kCount},
               {"syscalls", "syscalls", Unit::kCount},
               {"faults", "faults", Unit::kCount},
               {"mark", "mark", Unit::kText}});
  // Marks stand between the moments, with the figures of the one before.
  add_rows(input,
           fmt::format("SELECT time_ns, live_bytes, live_blocks, held_bytes, resident_bytes, calls,"
                       " syscalls, faults, '' FROM timeline WHERE process = {0} UNION ALL"
                       " SELECT time_ns, NULL, NULL, NULL, NULL, NULL, NULL, NULL, text FROM mark"
                       " WHERE process = {0} AND kind = 'mark' ORDER BY 1, 9",
                       process.id),
           table);
  table.limited = false;
  Document document;
  document.json["process"] = process.id;
  document.json["pid"] = process.pid;
  if (!input.options.top) {
    document.json["timeline"] = nlohmann::ordered_json::array();
    for (const Row& row : table.rows) {
      nlohmann::ordered_json object;
      for (size_t i = 0; i < row.size(); ++i) {
        if (const auto* number = std::get_if<int64_t>(&row[i])) {
          object[table.columns[i].key] = *number;
        } else if (const auto* text = std::get_if<std::string>(&row[i])) {
          object[table.columns[i].key] = *text;
        } else {
          object[table.columns[i].key] = nullptr;
        }
      }
      document.json["timeline"].push_back(std::move(object));
    }
  }
  // People see some, and every mark.
  const size_t lines = input.options.top.value_or(kLines);
  std::vector<Row> shown;
  for (size_t i = 0; i < table.rows.size(); ++i) {
    const bool is_mark = std::holds_alternative<std::monostate>(table.rows[i][1]);
    const bool is_step =
        lines > 0 && (i == 0 || i + 1 == table.rows.size() ||
                      i * lines / table.rows.size() != (i - 1) * lines / table.rows.size());
    if (is_mark || is_step) shown.push_back(table.rows[i]);
  }
  table.rows = std::move(shown);
  document.add_table(std::move(table), fmt::format("Over time (process {})", process.pid));
  add_notes(input, document);
  return document;
}

}  // namespace heapledger::analyzer
