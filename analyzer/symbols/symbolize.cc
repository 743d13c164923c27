// SPDX-License-Identifier: Apache-2.0
#include "analyzer/symbols/symbolize.h"

#include <optional>

namespace heapledger::analyzer {

namespace {

constexpr size_t kModulesKept = 32;  // Each takes two descriptors.

std::optional<std::string> known(const std::string& text) {
  return text.empty() ? std::nullopt : std::optional(text);
}

}  // namespace

SymbolPass::SymbolPass(schema::Database& db) : db_(db) {
  thread_ = std::thread([this, frames = load_frames()] {
    try {
      look_up(frames);
    } catch (...) {
      error_ = std::current_exception();
    }
  });
}

SymbolPass::~SymbolPass() {
  if (thread_.joinable()) thread_.join();
}

SymbolPass::FramesByFile SymbolPass::load_frames() {
  schema::Statement select = db_.prepare(
      "SELECT frame.id, frame.offset, module.path, module.build_id FROM frame"
      " JOIN module ON module.id = frame.module WHERE frame.id > ? AND frame.offset > 0"
      " AND NOT EXISTS (SELECT 1 FROM symbol WHERE symbol.frame = frame.id)");
  select.bind(1, last_frame_);
  FramesByFile frames;
  while (select.step()) {
    const std::string path = select.column_text(2);
    if (!path.starts_with('/')) continue;  // The vDSO, memory files.
    frames[{path, select.column_optional_text(3).value_or("")}].push_back(
        {select.column_int(0), select.column_uint(1)});
  }
  last_frame_ = db_.query_int("SELECT max(id) FROM frame").value_or(0);
  return frames;
}

void SymbolPass::look_up(const FramesByFile& frames) {
  for (const auto& [file, rows] : frames) {
    auto module = modules_.find(file);
    if (module == modules_.end()) {
      if (modules_.size() >= kModulesKept) modules_.erase(modules_.begin());
      module = modules_.try_emplace(file, file.first, file.second).first;
    }
    const ModuleSymbols& symbols = module->second;
    if (!symbols.is_open()) continue;
    std::vector<uint64_t> addresses;
    addresses.reserve(rows.size());
    for (const Frame& frame : rows) addresses.push_back(frame.offset - 1);
    std::vector<SourcePlaces> places = symbols.look_up(addresses);
    for (size_t i = 0; i < rows.size(); ++i) {
      if (!places[i].empty()) places_[rows[i].id] = std::move(places[i]);
    }
  }
}

void SymbolPass::finish() {
  thread_.join();
  if (error_) std::rethrow_exception(error_);
  look_up(load_frames());
  schema::Statement insert = db_.prepare("INSERT INTO symbol VALUES (?, ?, ?, ?, ?)");
  for (const auto& [frame, places] : places_) {
    for (size_t depth = 0; depth < places.size(); ++depth) {
      const SourcePlace& place = places[depth];
      insert.bind_all(frame, depth, known(place.function), known(place.file));
      if (place.line == 0) {
        insert.bind(5, nullptr);
      } else {
        insert.bind(5, place.line);
      }
      insert.run();
    }
  }
}

}  // namespace heapledger::analyzer
