// SPDX-License-Identifier: Apache-2.0
#include "analyzer/reports/map_picture.h"

#include <fmt/format.h>

#include <algorithm>

#include "analyzer/render/units.h"

namespace heapledger::analyzer {

namespace {

constexpr size_t kColumns = 80;  // Beside the time.
constexpr size_t kRows = 32;
constexpr size_t kStretchesMax = 8;  // More are not named one by one.

// Cells in a row, without a hole.
struct Stretch {
  uint64_t first, end;
};

std::vector<Stretch> stretches_of(const HeapMap& map) {
  std::vector<uint64_t> indexes;
  for (const MapMoment& moment : map.moments()) {
    for (const MapCell& cell : moment.cells) indexes.push_back(cell.index);
  }
  std::sort(indexes.begin(), indexes.end());
  std::vector<Stretch> stretches;
  for (const uint64_t index : indexes) {
    if (stretches.empty() || index > stretches.back().end) {
      stretches.push_back({index, index + 1});
    } else {
      stretches.back().end = std::max(stretches.back().end, index + 1);
    }
  }
  return stretches;
}

// Which character a cell is part of: cells of all stretches in a row, `per_column` of them each.
class Columns {
 public:
  explicit Columns(const std::vector<Stretch>& stretches) : stretches_(stretches) {
    uint64_t cells = 0;
    for (const Stretch& stretch : stretches) {
      before_.push_back(cells);
      cells += stretch.end - stretch.first;
    }
    per_column_ = (cells + kColumns - 1) / kColumns;
    count_ = (cells + per_column_ - 1) / per_column_;
  }

  uint64_t per_column() const { return per_column_; }
  size_t count() const { return count_; }
  size_t of(uint64_t index) const {
    const auto after =
        std::partition_point(stretches_.begin(), stretches_.end(),
                             [&](const Stretch& stretch) { return stretch.end <= index; });
    const auto place = static_cast<size_t>(after - stretches_.begin());
    return (before_[place] + index - after->first) / per_column_;
  }

 private:
  const std::vector<Stretch>& stretches_;
  std::vector<uint64_t> before_;
  uint64_t per_column_ = 1;
  size_t count_ = 0;
};

std::string draw_moment(const MapMoment& moment, const Columns& columns) {
  std::vector<MapCell> sums(columns.count());
  for (const MapCell& cell : moment.cells) sums[columns.of(cell.index)].add(cell);
  std::string line;
  for (const MapCell& sum : sums) line += map_character(sum);
  return line;
}

}  // namespace

char map_character(const MapCell& cell) {
  const uint64_t chunks = cell.live + cell.free;
  const uint64_t most = std::max({chunks, cell.top, cell.untouched, cell.released});
  if (most == 0) return ' ';
  if (most == chunks) {
    if (cell.free == 0) return '#';
    if (cell.live == 0) return '-';
    return static_cast<char>('0' + std::min<uint64_t>(9, cell.live * 10 / chunks));
  }
  if (most == cell.top) return 't';
  return most == cell.untouched ? '.' : 'x';
}

std::vector<std::string> draw_heap_map(const HeapMap& map) {
  const std::vector<Stretch> stretches = stretches_of(map);
  if (stretches.empty()) return {};
  const Columns columns(stretches);
  const auto bytes_of = [&](uint64_t cells) {
    return human_bytes(static_cast<int64_t>(cells * map.cell_bytes()));
  };
  std::vector<std::string> lines = {
      fmt::format("  A character is {} of addresses: # live, 9 to 0 live by tenths beside free,",
                  bytes_of(columns.per_column())),
      "  - free, t top, . never touched, x given back, blank not the allocator's."};
  const size_t count = map.moments().size();
  const size_t rows = std::min(kRows, count);
  for (size_t i = 0; i < rows; ++i) {
    // The last one is always shown.
    const MapMoment& moment = map.moments()[rows == 1 ? count - 1 : i * (count - 1) / (rows - 1)];
    std::string line =
        fmt::format("  {:>11} |{}", human_time(moment.time_ns), draw_moment(moment, columns));
    line.erase(line.find_last_not_of(' ') + 1);
    lines.push_back(std::move(line));
  }
  if (stretches.size() > kStretchesMax) {
    lines.push_back(fmt::format("  in {} stretches of addresses, the first from 0x{:x}",
                                stretches.size(), stretches.front().first * map.cell_bytes()));
    return lines;
  }
  for (const Stretch& stretch : stretches) {
    lines.push_back(fmt::format("  column {:>2}: 0x{:x} to 0x{:x}, {}",
                                columns.of(stretch.first) + 1, stretch.first * map.cell_bytes(),
                                stretch.end * map.cell_bytes(),
                                bytes_of(stretch.end - stretch.first)));
  }
  return lines;
}

void add_heap_map(const ReportInput& input, Document& document) {
  Trace& trace = input.trace();
  const ProcessInfo& process = main_process(input);
  HeapMap map;
  schema::Statement select = trace.db.prepare(
      "SELECT time_ns, cell_bytes, cells FROM heap_map WHERE process = ? ORDER BY time_ns");
  select.bind(1, process.id);
  while (select.step()) {
    const MapMoment* before = map.moments().empty() ? nullptr : &map.moments().back();
    map.add_stored({select.column_int(0), decode_map_cells(select.column_blob(2), before)},
                   select.column_uint(1));
  }
  nlohmann::ordered_json& json = document.json["map"];
  json["cell_bytes"] = map.cell_bytes();
  json["moments"] = nlohmann::ordered_json::array();
  for (const MapMoment& moment : map.moments()) {
    nlohmann::ordered_json cells = nlohmann::ordered_json::array();
    for (const MapCell& cell : moment.cells) {
      cells.push_back({{"address", cell.index * map.cell_bytes()},
                       {"live_bytes", cell.live},
                       {"free_bytes", cell.free},
                       {"top_bytes", cell.top},
                       {"untouched_bytes", cell.untouched},
                       {"released_bytes", cell.released}});
    }
    json["moments"].push_back({{"time_ns", moment.time_ns}, {"cells", std::move(cells)}});
  }
  std::vector<std::string> lines = draw_heap_map(map);
  if (lines.empty()) lines.push_back("  nothing: the allocator held no memory");
  document.sections.insert(
      document.sections.begin(),
      {fmt::format("Heap map (process {})", process.pid), std::move(lines), std::nullopt});
}

}  // namespace heapledger::analyzer
