// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "analyzer/render/render.h"

namespace heapledger::analyzer {

namespace {

std::string cell_csv(const Cell& cell) {
  if (const auto* integer = std::get_if<int64_t>(&cell)) return std::to_string(*integer);
  if (const auto* real = std::get_if<double>(&cell)) return fmt::format("{}", *real);
  if (const auto* text = std::get_if<std::string>(&cell)) return csv_field(*text);
  if (const auto* stack = std::get_if<StackText>(&cell)) {
    std::string text = stack_search_text(*stack);
    if (!text.empty()) text.pop_back();
    return csv_field(text);
  }
  return "";
}

void add_row(const Table& table, const Row& row, const std::string& label, std::string& out) {
  bool labelled = label.empty();
  for (size_t i = 0; i < table.columns.size(); ++i) {
    if (i != 0) out += ",";
    const bool is_text = table.columns[i].unit == Unit::kText;
    if (!labelled && is_text) {
      out += csv_field(label);
      labelled = true;
    } else if (i < row.size()) {
      out += cell_csv(row[i]);
    }
  }
  out += "\r\n";
}

}  // namespace

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) {
    quoted += c;
    if (c == '"') quoted += c;
  }
  return quoted + "\"";
}

std::string render_csv(const Document& document) {
  std::string out;
  for (const Section& section : document.sections) {
    if (!section.table) continue;
    const Table& table = *section.table;
    if (!out.empty()) out += "\r\n";
    for (size_t i = 0; i < table.columns.size(); ++i) {
      out += (i == 0 ? "" : ",") + csv_field(table.columns[i].key);
    }
    out += "\r\n";
    for (const Row& row : table.rows) add_row(table, row, "", out);
    if (table.others_count != 0) {
      add_row(table, table.others, fmt::format("[{} others]", table.others_count), out);
    }
    if (!table.not_attributed.empty()) {
      add_row(table, table.not_attributed, "[not attributed]", out);
    }
    if (!table.total.empty()) add_row(table, table.total, "TOTAL", out);
  }
  return out;
}

}  // namespace heapledger::analyzer
