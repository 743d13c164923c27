// SPDX-License-Identifier: Apache-2.0
// RSS as a balance: every resident byte on a line, by the replay for the allocator's memory and by
// smaps for the rest, against smaps' total. One process: the one that held most, or --process.
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "analyzer/finalize/ledger_pass.h"
#include "analyzer/render/render.h"
#include "analyzer/render/units.h"
#include "analyzer/reports/all.h"
#include "analyzer/reports/moments.h"
#include "analyzer/reports/saturating.h"

namespace heapledger::analyzer {

namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kBalanceLines = 12;

struct Line {
  RssLine rss;
  std::string source;  // replay | smaps
};
struct RegionRow {
  std::string name;
  int64_t held_bytes = 0, resident_bytes = 0;
  std::optional<int64_t> kernel_bytes;
};

// One moment, as it is shown.
struct Page {
  std::string at;
  int64_t at_ns = 0;
  std::optional<int64_t> snapshot;
  std::string reason;  // Of the snapshot.
  int64_t snapshot_ns = 0;
  int64_t rss_bytes = 0, moved_bytes = 0, residual_bytes = 0;
  bool is_snapshot = true;  // False: the heap is that of another moment than the rest.
  std::vector<Line> lines;
  std::vector<RegionRow> regions;
  int64_t unfaulted_bytes = 0, touched_absent_bytes = 0;
  int64_t swap_bytes = 0, huge_bytes = 0, shared_bytes = 0;
  std::optional<int64_t> held_bytes, glibc_held_bytes;
};

bool load_stored(schema::Database& db, int64_t process, const std::string& at, Page& page) {
  schema::Statement lines = db.prepare(
      "SELECT region, name, bytes, source, snapshot FROM ledger WHERE process = ? AND at = ?"
      " ORDER BY rowid");
  lines.bind_all(process, at);
  while (lines.step()) {
    page.lines.push_back(
        {{lines.column_text(0), lines.column_text(1), lines.column_uint(2)}, lines.column_text(3)});
    page.snapshot = lines.column_int(4);
  }
  if (!page.snapshot) return false;
  schema::Statement regions = db.prepare(
      "SELECT region, held_bytes, resident_bytes, kernel_bytes FROM ledger_region"
      " WHERE process = ? AND at = ? ORDER BY rowid");
  regions.bind_all(process, at);
  while (regions.step()) {
    page.regions.push_back({regions.column_text(0), regions.column_int(1), regions.column_int(2),
                            regions.column_optional_int(3)});
  }
  schema::Statement moment = db.prepare(
      "SELECT at_ns, held_bytes, glibc_held_bytes FROM ledger_moment WHERE process = ? AND at = ?");
  moment.bind_all(process, at);
  if (!moment.step()) return false;
  page.at_ns = moment.column_int(0);
  page.held_bytes = moment.column_optional_int(1);
  page.glibc_held_bytes = moment.column_optional_int(2);
  return true;
}

void load_balance(schema::Database& db, Page& page) {
  schema::Statement select = db.prepare(
      "SELECT b.rss_bytes, b.other_bytes, b.heap_bytes, b.residual_bytes, unfaulted_bytes,"
      " touched_absent_bytes, b.swap_bytes, huge_bytes, shared_bytes, time_ns, reason"
      " FROM balance AS b JOIN snapshot ON snapshot.id = b.snapshot WHERE b.snapshot = ?");
  select.bind(1, *page.snapshot);
  if (!select.step()) return;
  page.rss_bytes = select.column_int(0);
  page.residual_bytes = select.column_int(3);
  page.moved_bytes = difference_of(page.rss_bytes, page.residual_bytes);
  for (const int other : {1, 2}) {
    page.moved_bytes = difference_of(page.moved_bytes, select.column_int(other));
  }
  page.unfaulted_bytes = select.column_int(4);
  page.touched_absent_bytes = select.column_int(5);
  page.swap_bytes = select.column_int(6);
  page.huge_bytes = select.column_int(7);
  page.shared_bytes = select.column_int(8);
  page.snapshot_ns = select.column_int(9);
  page.reason = select.column_text(10);
}

// The heap as replayed at any time; what lies outside of it as the last snapshot before had it. The
// RSS of such a moment is what that snapshot's becomes by the heap's change since.
bool load_replayed(Trace& trace, const ProcessInfo& process, int64_t time_ns, Page& page) {
  MapNotes notes(trace.db, trace.info);
  std::optional<Balance> last;
  ReplayOptions options;
  options.damage = [](const schema::Damage&) {};  // The final pass has noted it.
  options.on_snapshot = [&](const Replay& now, const SnapshotMoment& moment) {
    last = balance_at(trace.db, now, moment, notes);
  };
  Replay replay(trace.db, trace.info, process.id, options);
  replay.run_to_time(time_ns);
  if (!last) return false;
  HeapLedger heap(replay, notes.arenas_at(process.id, time_ns));
  const ModelMoment model = model_at(trace.db, trace.info, process.id, time_ns);
  heap.classify(model.free);
  page.at_ns = time_ns;
  page.snapshot = last->snapshot;
  load_balance(trace.db, page);
  page.is_snapshot = false;
  page.moved_bytes = 0;
  page.residual_bytes = last->residual_bytes();
  page.unfaulted_bytes = static_cast<int64_t>(heap.unfaulted_bytes());
  page.touched_absent_bytes = static_cast<int64_t>(heap.touched_absent_bytes());
  page.held_bytes = static_cast<int64_t>(heap.held_bytes());
  page.glibc_held_bytes = static_cast<int64_t>(model.glibc_held_bytes);
  page.rss_bytes = page.residual_bytes;
  for (RssLine& line : lines_of(heap)) page.lines.push_back({std::move(line), "replay"});
  for (const RssLine& line : last->kernel.other) page.lines.push_back({line, "smaps"});
  for (const Line& line : page.lines)
    page.rss_bytes = sum_of(page.rss_bytes, static_cast<int64_t>(line.rss.bytes));
  for (const HeapPart& part : heap.parts()) {
    page.regions.push_back({part.name, static_cast<int64_t>(part.size_bytes),
                            static_cast<int64_t>(part.resident_bytes()), std::nullopt});
  }
  return true;
}

Table line_table(const Page& page, const std::string& prefix) {
  Table table(prefix + "lines", "",
              {{"region", "region", Unit::kText},
               {"name", "bytes that are", Unit::kText},
               {"bytes", "RSS", Unit::kBytes, true},
               {"source", "known by", Unit::kText}});
  for (const Line& line : page.lines) {
    table.add({line.rss.region, line.rss.name, integer_cell(line.rss.bytes), line.source});
  }
  if (page.moved_bytes != 0) {
    table.add({"heap", "moved while the snapshot was taken", page.moved_bytes, "replay"});
  }
  table.totals["bytes"] = page.rss_bytes;
  return table;
}

Table region_table(const Page& page, const std::string& prefix) {
  Table table(prefix + "regions", "The allocator's memory, by the replay and by the kernel",
              {{"region", "region", Unit::kText},
               {"held_bytes", "held", Unit::kBytes, true},
               {"bytes", "resident", Unit::kBytes, true},
               {"kernel_bytes", "by pagemap", Unit::kBytes, true},
               {"residual_bytes", "difference", Unit::kBytes, true}});
  for (const RegionRow& row : page.regions) {
    Cell difference;
    if (row.kernel_bytes) difference = difference_of(*row.kernel_bytes, row.resident_bytes);
    table.add({row.name, row.held_bytes, row.resident_bytes, integer_cell(row.kernel_bytes),
               std::move(difference)});
  }
  table.sort_by("bytes");
  table.empty_text = "none: the allocator holds nothing";
  return table;
}

// Not lines of the balance: what else is known of the bytes in it.
std::vector<std::string> facts_of(const Page& page) {
  std::vector<std::string> lines;
  const auto add = [&](const char* name, int64_t bytes, const std::string& more) {
    lines.push_back(fmt::format("  {:<26}{:>12}  {}", name, human_bytes(bytes), more));
  };
  const auto add_some = [&](const char* name, int64_t bytes, const char* more) {
    if (bytes != 0) add(name, bytes, more);
  };
  add("residual", page.residual_bytes,
      page.is_snapshot ? "smaps less the replay's range: 0 is a balance" : "of that snapshot");
  add_some("resident without a fault", page.unfaulted_bytes,
           "in the lines: mlock, MAP_POPULATE, huge pages");
  add_some("touched, no memory", page.touched_absent_bytes,
           "in no line: the zero page, reclaimed, swapped");
  add_some("shared", page.shared_bytes, "in the lines: other processes map these pages too");
  add_some("in huge pages", page.huge_bytes, "in the lines");
  add_some("swapped", page.swap_bytes, "in no line");
  if (page.held_bytes) add("held from the system", *page.held_bytes, "by the allocator, recorded");
  if (page.glibc_held_bytes) {
    add("held under glibc", *page.glibc_held_bytes, "by a model of its layout over the same calls");
  }
  return lines;
}

Json page_json(const Page& page) {
  Json json;
  json["at"] = page.at;
  json["at_ns"] = page.at_ns;
  json["rss_bytes"] = page.rss_bytes;
  json["rss_source"] = page.is_snapshot ? "smaps" : "replay";
  Json lines = Json::array();
  for (const Line& line : page.lines) {
    lines.push_back({{"name", line.rss.name},
                     {"region", line.rss.region},
                     {"bytes", line.rss.bytes},
                     {"source", line.source}});
  }
  if (page.moved_bytes != 0) {
    lines.push_back({{"name", "moved while the snapshot was taken"},
                     {"region", "heap"},
                     {"bytes", page.moved_bytes},
                     {"source", "replay"}});
  }
  json["lines"] = std::move(lines);
  json["residual_bytes"] = page.residual_bytes;
  Json regions = Json::array();
  for (const RegionRow& row : page.regions) {
    Json region = {{"region", row.name},
                   {"held_bytes", row.held_bytes},
                   {"bytes", row.resident_bytes},
                   {"kernel_bytes", nullptr},
                   {"residual_bytes", nullptr}};
    if (row.kernel_bytes) {
      region["kernel_bytes"] = *row.kernel_bytes;
      region["residual_bytes"] = difference_of(*row.kernel_bytes, row.resident_bytes);
    }
    regions.push_back(std::move(region));
  }
  json["regions"] = std::move(regions);
  json["unfaulted_bytes"] = page.unfaulted_bytes;
  json["touched_absent_bytes"] = page.touched_absent_bytes;
  json["shared_bytes"] = page.shared_bytes;
  json["huge_bytes"] = page.huge_bytes;
  json["swap_bytes"] = page.swap_bytes;
  json["held_bytes"] = page.held_bytes ? Json(*page.held_bytes) : Json();
  json["glibc_held_bytes"] = page.glibc_held_bytes ? Json(*page.glibc_held_bytes) : Json();
  return json;
}

std::string heading_of(const Page& page, const ProcessInfo& process) {
  const std::string snapshot =
      fmt::format("snapshot at {}, taken for: {}", human_time(page.snapshot_ns), page.reason);
  if (!page.is_snapshot) {
    return fmt::format("At {} (process {}): the heap then, the rest as of the {}",
                       human_time(page.at_ns), process.pid, snapshot);
  }
  return fmt::format("{} (process {}, {})",
                     page.at == "peak" ? "At the snapshot with most RSS" : "At the last snapshot",
                     process.pid, snapshot);
}

// The peak between snapshots, beside the kernel's own.
void add_peak(Trace& trace, const ProcessInfo& process, Document& document) {
  schema::Statement select = trace.db.prepare(
      "SELECT at_ns, rss_bytes FROM ledger_moment WHERE process = ? AND at = 'model peak'");
  select.bind(1, process.id);
  if (!select.step()) return;
  const int64_t bytes = select.column_int(1);
  document.json["model_peak"] = {{"at_ns", select.column_int(0)}, {"rss_bytes", bytes}};
  document.json["rss_peak_bytes"] = process.rss_peak_bytes ? Json(*process.rss_peak_bytes) : Json();
  std::string text = fmt::format("modelled peak of RSS: {} at {}", human_bytes(bytes),
                                 human_time(select.column_int(0)));
  if (process.rss_peak_bytes) {
    text += fmt::format("; by the kernel (VmHWM): {}", human_bytes(*process.rss_peak_bytes));
  }
  document.sections.push_back({"", {text}, std::nullopt});
}

void add_balances(Trace& trace, const ProcessInfo& process, Document& document) {
  Table table("balances", "The books at each snapshot (a share of the lines as text)",
              {{"time_ns", "time", Unit::kTimeNs},
               {"reason", "for", Unit::kText},
               {"rss_bytes", "RSS by smaps", Unit::kBytes},
               {"heap_bytes_min", "heap from", Unit::kBytes},
               {"heap_bytes_max", "to", Unit::kBytes},
               {"other_bytes", "rest", Unit::kBytes},
               {"residual_bytes", "residual", Unit::kBytes},
               {"share", "of RSS", Unit::kRatio}});
  schema::Statement select = trace.db.prepare(
      "SELECT time_ns, reason, b.rss_bytes, heap_bytes_min, heap_bytes_max, other_bytes,"
      " residual_bytes FROM balance AS b JOIN snapshot ON snapshot.id = b.snapshot"
      " WHERE b.process = ? ORDER BY end_ns, snapshot.id");
  select.bind(1, process.id);
  while (select.step()) {
    const auto rss = static_cast<double>(std::max<int64_t>(1, select.column_int(2)));
    const int64_t residual = select.column_int(6);
    table.add({select.column_int(0), select.column_text(1), select.column_int(2),
               select.column_int(3), select.column_int(4), select.column_int(5), residual,
               std::abs(static_cast<double>(residual)) / rss});
  }
  document.json["balances"] = table_json(table);
  // Some for people: the worst ones, in order of time.
  std::vector<Row> worst = table.rows;
  std::stable_sort(worst.begin(), worst.end(), [](const Row& a, const Row& b) {
    return std::get<double>(a[7]) > std::get<double>(b[7]);
  });
  if (worst.size() > kBalanceLines) {
    table.title =
        fmt::format("The books at the {} worst of {} snapshots", kBalanceLines, table.rows.size());
    worst.resize(kBalanceLines);
  } else {
    table.title = "The books at each snapshot";
  }
  std::stable_sort(worst.begin(), worst.end(), [](const Row& a, const Row& b) {
    return std::get<int64_t>(a[0]) < std::get<int64_t>(b[0]);
  });
  table.rows = std::move(worst);
  table.limited = false;
  document.add_table(std::move(table));
}

}  // namespace

Document run_ledger(const ReportInput& input) {
  Trace& trace = input.trace();
  const ProcessInfo& process = main_process(input);
  Document document;
  bool first = true;
  for (const Moment& moment : parse_moments(input.options.at)) {
    Page page;
    page.at = moment.name;
    const bool known = moment.name == "time" ? load_replayed(trace, process, moment.time_ns, page)
                                             : load_stored(trace.db, process.id, moment.name, page);
    if (!known) {
      document.notes.push_back(
          "there is no snapshot of this process by then: it ended too soon, or the system did not "
          "allow one");
      continue;
    }
    if (moment.name != "time") load_balance(trace.db, page);
    const std::string prefix = first ? "" : moment.name + ".";
    if (first) {
      document.json = page_json(page);
    } else {
      document.json[moment.name] = page_json(page);
    }
    first = false;
    document.add_table(line_table(page, prefix), heading_of(page, process));
    document.sections.push_back({"", facts_of(page), std::nullopt});
    document.add_table(region_table(page, prefix));
  }
  document.json["process"] = process.id;
  document.json["pid"] = process.pid;
  add_peak(trace, process, document);
  add_balances(trace, process, document);
  add_notes(input, document);
  return document;
}

}  // namespace heapledger::analyzer
