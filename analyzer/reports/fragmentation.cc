// SPDX-License-Identifier: Apache-2.0
// What of the held memory is free, in what pieces, and which live blocks keep it from going back.
// One process's heap: the one that held most, or --process.
#include <fmt/format.h>

#include <algorithm>

#include "analyzer/render/units.h"
#include "analyzer/replay/heap_image.h"
#include "analyzer/reports/all.h"
#include "analyzer/reports/moments.h"
#include "schema/error.h"

namespace heapledger::analyzer {

namespace {

constexpr size_t kTimelineLines = 16;

std::optional<uint64_t> optional_bytes(schema::Statement& select, int column) {
  if (select.is_null(column)) return std::nullopt;
  return select.column_uint(column);
}

void read_pinners(schema::Database& db, int64_t process, const std::string& at, HeapImage& image) {
  schema::Statement pinners = db.prepare(
      "SELECT heap, stack, state, coalesce(thread, 0), bytes_released_if_freed, held_bytes,"
      " held_resident_bytes, own_bytes, blocks, cached_blocks, age_ns FROM pinner"
      " WHERE process = ? AND at = ? ORDER BY rowid");
  pinners.bind_all(process, at);
  while (pinners.step()) {
    Pinner row;
    row.heap = pinners.column_uint(0);
    row.stack = static_cast<uint32_t>(pinners.column_int(1));
    row.state = chunk_state_of(pinners.column_text(2));
    row.thread = static_cast<uint32_t>(pinners.column_int(3));
    row.bytes_released_if_freed = pinners.column_uint(4);
    row.held_bytes = pinners.column_uint(5);
    row.held_resident_bytes = optional_bytes(pinners, 6);
    row.own_bytes = pinners.column_uint(7);
    row.blocks = pinners.column_uint(8);
    row.cached_blocks = pinners.column_uint(9);
    row.age_ns = pinners.column_int(10);
    image.pinners.push_back(row);
  }
}

// The figures of one moment, from the tables of the final pass or from a replay.
HeapImage stored_image(schema::Database& db, int64_t process, const std::string& at) {
  HeapImage image;
  schema::Statement select = db.prepare(
      "SELECT at_ns, held_bytes, live_bytes, requested_bytes, free_bytes, free_resident_bytes,"
      " largest_free_bytes, cached_bytes, fast_bytes, top_bytes FROM fragmentation WHERE process = "
      "? AND at = ?");
  select.bind_all(process, at);
  if (!select.step()) return image;
  image.at_ns = select.column_int(0);
  image.held_bytes = select.column_uint(1);
  image.live_bytes = select.column_uint(2);
  image.requested_bytes = select.column_uint(3);
  image.free_bytes = select.column_uint(4);
  if (!select.is_null(5)) image.free_resident_bytes = select.column_uint(5);
  image.largest_free_bytes = select.column_uint(6);
  image.cached_bytes = select.column_uint(7);
  image.fast_bytes = select.column_uint(8);
  image.top_bytes = select.column_uint(9);
  schema::Statement histogram = db.prepare(
      "SELECT bytes_min, bytes_max, chunks, bytes FROM free_histogram WHERE process = ? AND at = ?"
      " ORDER BY bytes_min");
  histogram.bind_all(process, at);
  while (histogram.step()) {
    image.free_histogram.push_back({histogram.column_uint(0), histogram.column_uint(1),
                                    histogram.column_uint(2), histogram.column_uint(3)});
  }
  read_pinners(db, process, at, image);
  return image;
}

HeapImage image_of(Trace& trace, const ProcessInfo& process, const Moment& moment) {
  if (moment.name != "time") return stored_image(trace.db, process.id, moment.name);
  ReplayOptions options;
  options.damage = [](const schema::Damage&) {};  // The final pass has noted it.
  Replay replay(trace.db, trace.info, process.id, options);
  replay.run_to_time(moment.time_ns);
  return make_heap_image(replay, moment.time_ns,
                         trim_settings_at(trace.db, process, moment.time_ns),
                         trace.info.faults_have_addresses());
}

void put_json(const HeapImage& image, const std::string& at, nlohmann::ordered_json& json) {
  json["at"] = at;
  json["at_ns"] = image.at_ns;
  json["held_bytes"] = image.held_bytes;
  json["live_bytes"] = image.live_bytes;
  json["requested_bytes"] = image.requested_bytes;
  json["free_bytes"] = image.free_bytes;
  json["free_resident_bytes"] =
      image.free_resident_bytes ? nlohmann::ordered_json(*image.free_resident_bytes) : nullptr;
  json["external"] = image.external();
  json["internal"] = image.internal();
  json["largest_free_bytes"] = image.largest_free_bytes;
  json["cached_bytes"] = image.cached_bytes;
  json["fast_bytes"] = image.fast_bytes;
  json["top_bytes"] = image.top_bytes;
}

std::vector<std::string> lines_of(const HeapImage& image) {
  const auto line = [](const char* name, uint64_t bytes, const std::string& more) {
    return fmt::format("  {:<26}{:>12}{}", name, human_bytes(static_cast<int64_t>(bytes)),
                       more.empty() ? "" : "  " + more);
  };
  std::vector<std::string> lines;
  lines.push_back(line("held from the system", image.held_bytes, ""));
  lines.push_back(line("live (usable)", image.live_bytes, ""));
  lines.push_back(line("live (requested)", image.requested_bytes,
                       "internal fragmentation " + human_ratio(image.internal())));
  lines.push_back(line("held and not live",
                       image.held_bytes - std::min(image.held_bytes, image.live_bytes),
                       "external fragmentation " + human_ratio(image.external())));
  lines.push_back(
      line("free", image.free_bytes,
           "largest piece " + human_bytes(static_cast<int64_t>(image.largest_free_bytes))));
  lines.push_back(line("  in threads' caches", image.cached_bytes, ""));
  if (image.fast_bytes != 0) lines.push_back(line("  in fastbins", image.fast_bytes, ""));
  lines.push_back(line("  at the end of the heap", image.top_bytes, "the top"));
  if (image.free_resident_bytes) {
    lines.push_back(
        line("free on resident pages", *image.free_resident_bytes, "in RSS for nothing"));
  } else {
    lines.push_back("  free on resident pages       not known (page faults were not recorded)");
  }
  return lines;
}

Table histogram_table(const HeapImage& image, const std::string& prefix) {
  Table table(prefix + "free_histogram", "Free chunks by size",
              {{"bytes_min", "from", Unit::kBytes},
               {"bytes_max", "to", Unit::kBytes},
               {"chunks", "chunks", Unit::kCount, true},
               {"bytes", "bytes", Unit::kBytes, true}});
  for (const HistogramRow& row : image.free_histogram) {
    table.add({integer_cell(row.bytes_min), integer_cell(row.bytes_max), integer_cell(row.chunks),
               integer_cell(row.bytes)});
  }
  table.sort_by("bytes");
  table.totals["bytes"] = static_cast<int64_t>(image.free_bytes);
  table.empty_text = "no free chunk";
  return table;
}

std::string thread_text(Trace& trace, uint32_t thread) {
  schema::Statement select =
      trace.db.prepare("SELECT coalesce(name, ''), tid FROM thread WHERE id = ?");
  select.bind(1, thread);
  if (thread == 0 || !select.step()) return "";
  const std::string name = select.column_text(0);
  return name.empty() ? std::to_string(select.column_int(1))
                      : fmt::format("{} {}", name, select.column_int(1));
}

const char* state_text(ChunkState state) {
  switch (state) {
    case ChunkState::kLive:
      return "live";
    case ChunkState::kCached:
      return "freed, in cache";
    case ChunkState::kFast:
      break;
  }
  return "freed, fastbin";
}

Table pinner_table(Trace& trace, const HeapImage& image, const std::string& prefix) {
  Table table(
      prefix + "pinners",
      "Blocks that hold the end of the heap, topmost first: what goes back without those of "
      "each stack, those of the rows above being gone, and what their free() gives back "
      "at once (nothing where they stay in a thread's cache)",
      {{"heap", "", Unit::kAddress},
       {"state", "state", Unit::kText},
       {"site", "", Unit::kText},
       {"held_bytes", "they hold", Unit::kBytes, true},
       {"held_resident_bytes", "resident", Unit::kBytes, true},
       {"bytes_released_if_freed", "free() returns", Unit::kBytes, true},
       {"own_bytes", "their own", Unit::kBytes, true},
       {"blocks", "blocks", Unit::kCount, true},
       {"cached_blocks", "", Unit::kCount, true},
       {"age_ns", "oldest", Unit::kNs},
       {"thread", "thread", Unit::kText},
       {"stack", "", Unit::kText}});
  for (const Pinner& row : image.pinners) {
    table.add({integer_cell(row.heap), std::string(state_text(row.state)),
               stack_label(trace.stacks->stack(row.stack)), integer_cell(row.held_bytes),
               integer_cell(row.held_resident_bytes), integer_cell(row.bytes_released_if_freed),
               integer_cell(row.own_bytes), integer_cell(row.blocks),
               integer_cell(row.cached_blocks), row.age_ns, thread_text(trace, row.thread),
               trace.stack(row.stack)});
  }
  table.empty_text = "nothing in use holds the end of a heap";
  return table;
}

Table page_holder_table(Trace& trace, const ProcessInfo& process, const std::string& at,
                        const HeapImage& image, const std::string& prefix) {
  Table table(
      prefix + "page_holders",
      "Free bytes on resident pages with live blocks, by the stacks of those blocks (shared "
      "pages by their live bytes)",
      {{"free_bytes", "free beside them", Unit::kBytes, true},
       {"live_bytes", "their own there", Unit::kBytes, true},
       {"pages", "pages", Unit::kCount},
       {"stack", "", Unit::kText}});
  table.empty_text = image.free_resident_bytes ? "no page has both" : "not known";
  const auto add = [&](int64_t free_bytes, int64_t live_bytes, int64_t pages, Cell stack) {
    table.add({free_bytes, live_bytes, pages, std::move(stack)});
  };
  if (at == "time") {
    for (const PageHolder& row : image.page_holders) {
      add(static_cast<int64_t>(row.free_bytes), static_cast<int64_t>(row.live_bytes),
          static_cast<int64_t>(row.pages), trace.stack(row.stack));
    }
    return table;
  }
  schema::Statement select = trace.db.prepare(
      "SELECT free_bytes, live_bytes, pages, stack FROM page_holder WHERE process = ? AND at = ?"
      " AND stack IS NOT NULL ORDER BY rowid");
  select.bind_all(process.id, at);
  while (select.step()) {
    add(select.column_int(0), select.column_int(1), select.column_int(2),
        trace.stack(select.column_int(3)));
  }
  schema::Statement rest = trace.db.prepare(
      "SELECT free_bytes, live_bytes, stacks FROM page_holder WHERE process = ? AND at = ?"
      " AND stack IS NULL");
  rest.bind_all(process.id, at);
  if (rest.step()) {
    table.unlisted_count = static_cast<size_t>(rest.column_int(2));
    table.unlisted = {{"free_bytes", rest.column_int(0)}, {"live_bytes", rest.column_int(1)}};
  }
  return table;
}

// What fragmentation cost while it arose: heaps that grew though as much was free in them.
Table growth_table(Trace& trace, int64_t process) {
  Table table("growths",
              "Heaps that grew for a request, by its stack; how often although as much was free in "
              "the same arena, in pieces too small or in caches",
              {{"failed_reuses", "though free", Unit::kCount, true},
               {"failed_bytes", "grew by", Unit::kBytes, true},
               {"free_bytes_max", "free then, at most", Unit::kBytes},
               {"growths", "all growths", Unit::kCount, true},
               {"bytes", "grew by", Unit::kBytes, true},
               {"stack", "", Unit::kText}});
  schema::Statement select = trace.db.prepare(
      "SELECT failed_reuses, failed_bytes, free_bytes_max, growths, bytes, stack FROM heap_growth"
      " WHERE process = ? ORDER BY failed_bytes DESC, bytes DESC, stack");
  select.bind(1, process);
  while (select.step()) {
    Row row;
    for (int i = 0; i < 5; ++i) row.push_back(select.column_int(i));
    row.push_back(trace.stack(select.column_int(5)));
    table.add(std::move(row));
  }
  table.empty_text = "no heap grew";
  return table;
}

// All rows for programs, some for people.
void add_timeline(Trace& trace, int64_t process, Document& document) {
  const std::vector<Column> columns = {
      {"time_ns", "time", Unit::kTimeNs},           {"live_bytes", "live", Unit::kBytes},
      {"live_blocks", "blocks", Unit::kCount},      {"held_bytes", "held", Unit::kBytes},
      {"resident_bytes", "resident", Unit::kBytes}, {"calls", "calls", Unit::kCount},
      {"syscalls", "syscalls", Unit::kCount},       {"faults", "faults", Unit::kCount}};
  Table table("", "Over time", columns);
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  schema::Statement select = trace.db.prepare(
      "SELECT time_ns, live_bytes, live_blocks, held_bytes, resident_bytes, calls, syscalls, faults"
      " FROM timeline WHERE process = ? ORDER BY time_ns");
  select.bind(1, process);
  std::vector<Row> all;
  while (select.step()) {
    Row row;
    nlohmann::ordered_json object;
    for (int i = 0; i < static_cast<int>(columns.size()); ++i) {
      row.push_back(integer_cell(select.column_optional_int(i)));
      object[columns[static_cast<size_t>(i)].key] =
          select.is_null(i) ? nlohmann::ordered_json()
                            : nlohmann::ordered_json(select.column_int(i));
    }
    all.push_back(std::move(row));
    rows.push_back(std::move(object));
  }
  const size_t lines = std::min(kTimelineLines, all.size());
  for (size_t i = 0; i < lines; ++i) {
    const size_t last = all.size() - 1;
    table.add(all[lines == 1 ? last : i * last / (lines - 1)]);
  }
  table.limited = false;
  document.json["timeline"] = std::move(rows);
  document.add_table(std::move(table));
}

}  // namespace

Document run_fragmentation(const ReportInput& input) {
  Trace& trace = input.trace();
  const ProcessInfo& process = main_process(input);
  Document document;
  document.json["process"] = process.id;
  document.json["pid"] = process.pid;
  bool first = true;
  for (const Moment& moment : parse_moments(input.options.at)) {
    const HeapImage image = image_of(trace, process, moment);
    // The first moment's keys stand at the top.
    const std::string prefix = first ? "" : moment.name + ".";
    put_json(image, moment.name, first ? document.json : document.json[moment.name]);
    first = false;
    const std::string name = moment.name == "peak"         ? "At the peak of held bytes"
                             : moment.name == "exit"       ? "At exit"
                             : moment.name == "fragmented" ? "When most was held and not live"
                                                           : "At the time asked for";
    document.sections.push_back(
        {fmt::format("{}, {} (process {})", name, human_time(image.at_ns), process.pid),
         lines_of(image), std::nullopt});
    document.add_table(histogram_table(image, prefix));
    document.add_table(pinner_table(trace, image, prefix));
    document.add_table(page_holder_table(trace, process, moment.name, image, prefix));
  }
  document.add_table(growth_table(trace, process.id));
  add_timeline(trace, process.id, document);
  add_notes(input, document);
  return document;
}

}  // namespace heapledger::analyzer
