// SPDX-License-Identifier: Apache-2.0
// The segments of a process as the kernel counts them (smaps), at the snapshots nearest to peak RSS
// and exit.
#include <fmt/format.h>

#include "analyzer/render/units.h"
#include "analyzer/reports/all.h"
#include "analyzer/reports/moments.h"

namespace heapledger::analyzer {

namespace {

struct Snapshot {
  int64_t id, time_ns, rss_bytes;
  std::string reason;
};

std::optional<Snapshot> find_snapshot(schema::Database& db, int64_t process, const Moment& moment) {
  const std::string order = moment.name == "peak" ? "rss_bytes DESC, time_ns"
                            : moment.name == "exit"
                                ? "time_ns DESC"
                                : "abs(time_ns - " + std::to_string(moment.time_ns) + ")";
  schema::Statement select = db.prepare(
      "SELECT id, time_ns, rss_bytes, reason FROM snapshot WHERE process = ?"
      " AND EXISTS (SELECT 1 FROM region WHERE snapshot = snapshot.id) ORDER BY " +
      order + " LIMIT 1");
  select.bind(1, process);
  if (!select.step()) return std::nullopt;
  return Snapshot{select.column_int(0), select.column_int(1), select.column_int(2),
                  select.column_text(3)};
}

Table segment_table(schema::Database& db, const Snapshot& snapshot, const std::string& prefix) {
  Table table(prefix + "segments", "",
              {{"kind", "segment", Unit::kText},
               {"mappings", "mappings", Unit::kCount, true},
               {"size_bytes", "size", Unit::kBytes, true},
               {"rss_bytes", "RSS", Unit::kBytes, true},
               {"swap_bytes", "swap", Unit::kBytes, true},
               {"private_dirty_bytes", "private dirty", Unit::kBytes, true},
               {"huge_bytes", "huge pages", Unit::kBytes, true}});
  schema::Statement select = db.prepare(
      "SELECT kind, count(*), sum(size_bytes), sum(rss_bytes), sum(swap_bytes),"
      " sum(private_dirty_bytes), sum(huge_bytes) FROM region WHERE snapshot = ? GROUP BY kind");
  select.bind(1, snapshot.id);
  while (select.step()) {
    Row row{select.column_text(0)};
    for (int i = 1; i < 7; ++i) row.push_back(select.column_int(i));
    table.add(std::move(row));
  }
  table.sort_by("rss_bytes");
  table.totals["rss_bytes"] = snapshot.rss_bytes;
  return table;
}

// The segments at every snapshot: all rows for programs, some for people.
void add_over_time(schema::Database& db, int64_t process, Document& document) {
  constexpr size_t kLines = 16;
  Table table("timeline", "",
              {{"time_ns", "time", Unit::kTimeNs},
               {"rss_bytes", "RSS", Unit::kBytes},
               {"heap_bytes", "brk heap", Unit::kBytes},
               {"anonymous_bytes", "anonymous", Unit::kBytes},
               {"file_bytes", "files", Unit::kBytes},
               {"stack_bytes", "stacks", Unit::kBytes},
               {"other_bytes", "other", Unit::kBytes},
               {"swap_bytes", "swap", Unit::kBytes},
               {"size_bytes", "size", Unit::kBytes}});
  schema::Statement select = db.prepare(
      "WITH r AS (SELECT s.id AS id, s.time_ns AS time_ns, s.rss_bytes AS total, r.rss_bytes AS "
      "rss,"
      " r.swap_bytes AS swap, r.size_bytes AS size, CASE WHEN kind = 'heap' THEN 1"
      " WHEN kind IN ('anonymous', 'block') THEN 2"
      " WHEN kind IN ('text', 'data', 'bss', 'file', 'shared') THEN 3"
      " WHEN kind IN ('stack', 'thread stack') THEN 4 ELSE 5 END AS part"
      " FROM snapshot AS s JOIN region AS r ON r.snapshot = s.id WHERE s.process = ?)"
      " SELECT time_ns, total, sum(rss * (part = 1)), sum(rss * (part = 2)), sum(rss * (part = 3)),"
      " sum(rss * (part = 4)), sum(rss * (part = 5)), sum(swap), sum(size) FROM r"
      " GROUP BY id ORDER BY time_ns, id");
  select.bind(1, process);
  while (select.step()) {
    Row row;
    for (int i = 0; i < static_cast<int>(table.columns.size()); ++i) {
      row.push_back(select.column_int(i));
    }
    table.add(std::move(row));
  }
  nlohmann::ordered_json& json = document.json["timeline"] = nlohmann::ordered_json::array();
  for (const Row& row : table.rows) {
    nlohmann::ordered_json object;
    for (size_t i = 0; i < row.size(); ++i) {
      object[table.columns[i].key] = std::get<int64_t>(row[i]);
    }
    json.push_back(std::move(object));
  }
  if (table.rows.size() > kLines) {
    std::vector<Row> shown;
    for (size_t i = 0; i < kLines; ++i) {
      shown.push_back(table.rows[i * (table.rows.size() - 1) / (kLines - 1)]);
    }
    table.rows = std::move(shown);
  }
  table.limited = false;
  document.add_table(std::move(table), "Over time, at snapshots");
}

}  // namespace

Document run_layout(const ReportInput& input) {
  Trace& trace = input.trace();
  const ProcessInfo& process = main_process(input);
  Document document;
  document.json["process"] = process.id;
  document.json["pid"] = process.pid;
  bool first = true;
  for (Moment moment : parse_moments(input.options.at)) {
    if (moment.name == "fragmented") {
      moment.time_ns = trace.db
                           .query_int(fmt::format("SELECT at_ns FROM fragmentation WHERE process ="
                                                  " {} AND at = 'fragmented'",
                                                  process.id))
                           .value_or(0);
    }
    const auto snapshot = find_snapshot(trace.db, process.id, moment);
    if (!snapshot) {
      document.notes.push_back(
          "there is no snapshot of this process: it ended too soon, or the "
          "system did not allow one");
      break;
    }
    const std::string prefix = first ? "" : moment.name + ".";
    nlohmann::ordered_json& json = first ? document.json : document.json[moment.name];
    first = false;
    json["at"] = moment.name;
    json["at_ns"] = snapshot->time_ns;
    json["rss_bytes"] = snapshot->rss_bytes;
    const std::string name = moment.name == "peak"   ? "At the snapshot with most RSS"
                             : moment.name == "exit" ? "At the last snapshot"
                                                     : "At the nearest snapshot";
    document.add_table(segment_table(trace.db, *snapshot, prefix),
                       fmt::format("{}, {} (process {}, taken for: {})", name,
                                   human_time(snapshot->time_ns), process.pid, snapshot->reason));
  }
  add_over_time(trace.db, process.id, document);
  if (process.rss_peak_bytes) {
    document.json["rss_peak_bytes"] = *process.rss_peak_bytes;
    document.sections.push_back(
        {"", {"peak RSS by the kernel (VmHWM): " + human_bytes(*process.rss_peak_bytes)}, {}});
  }
  add_notes(input, document);
  return document;
}

}  // namespace heapledger::analyzer
