// SPDX-License-Identifier: Apache-2.0
#include "analyzer/symbols/symbolize.h"

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "analyzer/symbols/module_symbols.h"

namespace heapledger::analyzer {

namespace {

struct FrameRow {
  int64_t id;
  uint64_t offset;
};

// One file may be a module of many processes: its frames are looked up together.
using FramesByFile = std::map<std::pair<std::string, std::string>, std::vector<FrameRow>>;

FramesByFile load_frames(schema::Database& db) {
  schema::Statement select = db.prepare(
      "SELECT frame.id, frame.offset, module.path, module.build_id FROM frame"
      " JOIN module ON module.id = frame.module WHERE frame.offset > 0"
      " AND NOT EXISTS (SELECT 1 FROM symbol WHERE symbol.frame = frame.id)");
  FramesByFile frames;
  while (select.step()) {
    frames[{select.column_text(2), select.column_optional_text(3).value_or("")}].push_back(
        {select.column_int(0), select.column_uint(1)});
  }
  return frames;
}

std::optional<std::string> known(const std::string& text) {
  return text.empty() ? std::nullopt : std::optional(text);
}

}  // namespace

void symbolize(schema::Database& db) {
  schema::Statement insert = db.prepare("INSERT INTO symbol VALUES (?, ?, ?, ?, ?)");
  for (const auto& [file, frames] : load_frames(db)) {
    if (!file.first.starts_with('/')) continue;  // The vDSO, memory files.
    const ModuleSymbols symbols(file.first, file.second);
    if (!symbols.is_open()) continue;
    std::vector<uint64_t> addresses;
    addresses.reserve(frames.size());
    for (const FrameRow& frame : frames) addresses.push_back(frame.offset - 1);
    const std::vector<SourcePlaces> places = symbols.look_up(addresses);
    for (size_t i = 0; i < frames.size(); ++i) {
      for (size_t depth = 0; depth < places[i].size(); ++depth) {
        const SourcePlace& place = places[i][depth];
        insert.bind_all(frames[i].id, depth, known(place.function), known(place.file));
        if (place.line == 0) {
          insert.bind(5, nullptr);
        } else {
          insert.bind(5, place.line);
        }
        insert.run();
      }
    }
  }
}

}  // namespace heapledger::analyzer
