// SPDX-License-Identifier: Apache-2.0
// Names of frames on their way into the trace.
//
// A compiler's ten thousand frames lie in two thousand functions with names of fifty bytes each, so
// a name is written once and frames refer to it (tables symbol_name and symbol_place; the view
// `symbol` shows them as rows). A trace of an older version has `symbol` as a table with the texts
// themselves: that is filled as it is.
//
// Thread safety: none. Cost: the names are held in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>

#include "schema/trace_db.h"

namespace heapledger::schema {

class SymbolWriter {
 public:
  explicit SymbolWriter(Database& db);

  // Empty texts and line 0: unknown. Each (frame, depth) once.
  void write(int64_t frame, size_t inline_depth, const std::string& function,
             const std::string& file, int64_t line);

 private:
  std::optional<int64_t> name(const std::string& text);

  bool by_text_;  // An older trace.
  Statement place_, name_;
  std::unordered_map<std::string, int64_t> names_;
};

}  // namespace heapledger::schema
