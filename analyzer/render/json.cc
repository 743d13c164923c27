// SPDX-License-Identifier: Apache-2.0
#include "analyzer/render/render.h"

namespace heapledger::analyzer {

namespace {

using Json = nlohmann::ordered_json;

Json cell_json(const Cell& cell) {
  if (const auto* integer = std::get_if<int64_t>(&cell)) return *integer;
  if (const auto* real = std::get_if<double>(&cell)) return *real;
  if (const auto* text = std::get_if<std::string>(&cell)) return *text;
  if (const auto* stack = std::get_if<StackText>(&cell)) return stack_json(*stack);
  return nullptr;
}

Json row_json(const Table& table, const Row& row, bool sums_only) {
  Json object = Json::object();
  for (size_t i = 0; i < table.columns.size() && i < row.size(); ++i) {
    if (sums_only && !table.columns[i].sum) continue;
    object[table.columns[i].key] = cell_json(row[i]);
  }
  return object;
}

// A key "exit.pinners" is `pinners` in the object `exit`.
void add_table(const Table& table, Json& document) {
  Json* json = &document;
  std::string key = table.key;
  if (const size_t dot = key.find('.'); dot != std::string::npos) {
    json = &document[key.substr(0, dot)];
    key = key.substr(dot + 1);
  }
  if (!json->contains(key)) (*json)[key] = table_json(table);
  if (!table.total.empty()) (*json)[key + "_total"] = row_json(table, table.total, true);
  if (table.others_count != 0) {
    Json others = row_json(table, table.others, true);
    others["rows"] = table.others_count;
    (*json)[key + "_others"] = std::move(others);
  }
  if (!table.not_attributed.empty()) {
    (*json)[key + "_not_attributed"] = row_json(table, table.not_attributed, true);
  }
}

}  // namespace

Json stack_json(const StackText& stack) {
  Json frames = Json::array();
  for (const FrameText& frame : stack) {
    Json object = Json::object();
    object["function"] = frame.function.empty() ? Json() : Json(frame.function);
    object["file"] = frame.file.empty() ? Json() : Json(frame.file);
    object["line"] = frame.line == 0 ? Json() : Json(frame.line);
    object["module"] = frame.module.empty() ? Json() : Json(frame.module);
    object["offset"] = frame.offset;
    frames.push_back(std::move(object));
  }
  return frames;
}

Json table_json(const Table& table) {
  Json rows = Json::array();
  for (const Row& row : table.rows) rows.push_back(row_json(table, row, false));
  return rows;
}

std::string render_json(const Document& document) {
  Json json = document.json;
  for (const Section& section : document.sections) {
    if (!section.table || section.table->key.empty()) continue;
    add_table(*section.table, json);
  }
  if (!document.notes.empty()) json["notes"] = document.notes;
  // Names may be in any encoding; JSON is UTF-8.
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace heapledger::analyzer
