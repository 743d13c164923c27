// SPDX-License-Identifier: Apache-2.0
#include "analyzer/symbols/symbolize.h"

#include "analyzer/symbols/jit_map.h"
#include "schema/symbol_writer.h"

namespace heapledger::analyzer {

namespace {

constexpr size_t kModulesKept = 32;  // Each takes two descriptors.

}  // namespace

SymbolPass::SymbolPass(schema::Database& db, const SymbolOptions& options)
    : db_(db), files_(options) {
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
      module = modules_.try_emplace(file, files_, file.first, file.second).first;
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
  schema::SymbolWriter writer(db_);
  for (const auto& [frame, places] : places_) {
    for (size_t depth = 0; depth < places.size(); ++depth) {
      const SourcePlace& place = places[depth];
      writer.write(frame, depth, place.function, place.file, place.line);
    }
  }
  name_jit_frames();
}

// Frames do not say whose they are: the processes of one recording mostly have one such map.
void SymbolPass::name_jit_frames() {
  constexpr int64_t kIncompleteFrame = 1;
  schema::Statement select = db_.prepare(
      "SELECT id, offset FROM frame WHERE module IS NULL AND id != ? AND offset > 0"
      " AND NOT EXISTS (SELECT 1 FROM symbol WHERE symbol.frame = frame.id)");
  select.bind(1, kIncompleteFrame);
  std::vector<Frame> frames;
  while (select.step()) frames.push_back({select.column_int(0), select.column_uint(1)});
  if (frames.empty()) return;
  JitMap map;
  schema::Statement pids = db_.prepare("SELECT DISTINCT pid FROM process WHERE recorded != 0");
  while (pids.step()) map.load("/tmp/perf-" + std::to_string(pids.column_int(0)) + ".map");
  if (map.empty()) return;
  schema::SymbolWriter writer(db_);
  for (const Frame& frame : frames) {
    const std::string name = map.name(frame.offset - 1);
    if (!name.empty()) writer.write(frame.id, 0, name, "", 0);
  }
}

}  // namespace heapledger::analyzer
