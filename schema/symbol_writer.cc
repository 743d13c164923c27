// SPDX-License-Identifier: Apache-2.0
#include "schema/symbol_writer.h"

namespace heapledger::schema {
namespace {

bool has_table_of_texts(Database& db) {
  return db.query_int("SELECT 1 FROM sqlite_schema WHERE name = 'symbol' AND type = 'table'")
      .has_value();
}

std::optional<std::string> known(const std::string& text) {
  return text.empty() ? std::nullopt : std::optional(text);
}

}  // namespace

SymbolWriter::SymbolWriter(Database& db) : by_text_(has_table_of_texts(db)) {
  if (by_text_) {
    place_ = db.prepare("INSERT INTO symbol VALUES (?, ?, ?, ?, ?)");
    return;
  }
  place_ = db.prepare("INSERT INTO symbol_place VALUES (?, ?, ?, ?, ?)");
  name_ = db.prepare("INSERT INTO symbol_name VALUES (?, ?)");
  Statement names = db.prepare("SELECT name, id FROM symbol_name");
  while (names.step()) names_.emplace(names.column_text(0), names.column_int(1));
}

std::optional<int64_t> SymbolWriter::name(const std::string& text) {
  if (text.empty()) return std::nullopt;
  const auto next = static_cast<int64_t>(names_.size()) + 1;
  const auto [found, fresh] = names_.try_emplace(text, next);
  if (fresh) name_.run_with(next, text);
  return found->second;
}

void SymbolWriter::write(int64_t frame, size_t inline_depth, const std::string& function,
                         const std::string& file, int64_t line) {
  if (by_text_) {
    place_.bind_all(frame, inline_depth, known(function), known(file));
  } else {
    place_.bind_all(frame, inline_depth, name(function), name(file));
  }
  if (line == 0) {
    place_.bind(5, nullptr);
  } else {
    place_.bind(5, line);
  }
  place_.run();
}

}  // namespace heapledger::schema
