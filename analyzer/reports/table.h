// SPDX-License-Identifier: Apache-2.0
// What a report returns: numbers and words in tables, no text layout. Renderers know only this.
//
// Invariant, tested over every report: shown rows + "[N others]" + "[not attributed]" = TOTAL =
// the trace's own total. A report gives all its rows and, for columns that add up, the trace's
// total by another way; limit() then decides which rows are shown.
// Thread safety: plain values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace heapledger::analyzer {

enum class Unit {
  kText,
  kCount,
  kBytes,
  kNs,      // A duration.
  kTimeNs,  // A moment since the recording began.
  kRatio,   // 0..1, shown as a percentage.
  kFactor,  // How many times the best of the column.
  kPlain,   // An integer without grouping: a pid.
  kAddress,
};

// One frame of a stack, or one inlined call in it.
struct FrameText {
  std::string function;  // Empty: not known; then module and offset say where.
  std::string file;
  int64_t line = 0;
  std::string module;
  uint64_t offset = 0;
  bool operator==(const FrameText&) const = default;
};
// Innermost first.
using StackText = std::vector<FrameText>;

// A stack not yet read: most rows of a long table are never shown. limit() reads those that are.
class Stacks;
struct StackRef {
  Stacks* stacks = nullptr;
  int64_t id = 0;
};

using CellValue = std::variant<std::monostate, int64_t, double, std::string, StackText, StackRef>;

// Its special members are not inline: GCC 12 sees uninitialized strings in moved variants.
class Cell : public CellValue {
 public:
  using CellValue::CellValue;
  Cell();
  Cell(const Cell& other);
  Cell(Cell&& other) noexcept;
  Cell& operator=(const Cell& other);
  Cell& operator=(Cell&& other) noexcept;
  ~Cell();
};

// Integers of any type as a cell; an empty optional is an empty cell.
template <typename T>
Cell integer_cell(T value) {
  return Cell(static_cast<int64_t>(value));
}
template <typename T>
Cell integer_cell(const std::optional<T>& value) {
  return value ? Cell(static_cast<int64_t>(*value)) : Cell();
}

struct Column {
  std::string key;    // In JSON and CSV.
  std::string title;  // In text; empty: not shown there.
  Unit unit = Unit::kText;
  bool sum = false;  // Adds up: has a TOTAL.
};

using Row = std::vector<Cell>;

struct Limits {
  std::optional<size_t> top;  // Rows to show; unset: all.
  std::string site;           // Show only rows whose stack text contains it.
};

class Table {
 public:
  Table() = default;
  Table(std::string table_key, std::string table_title, std::vector<Column> table_columns)
      : key(std::move(table_key)),
        title(std::move(table_title)),
        columns(std::move(table_columns)) {}

  std::string key;    // In JSON.
  std::string title;  // In text; may be empty.
  std::vector<Column> columns;
  std::vector<Row> rows;
  // Trace totals of columns by key, found without the rows. A difference becomes a row of its own.
  std::map<std::string, int64_t> totals;
  // Rows that the trace holds as a sum only: among [N others].
  size_t unlisted_count = 0;
  std::map<std::string, int64_t> unlisted;
  bool limited = true;  // False: every row is shown, and there is no TOTAL line.
  std::string empty_text = "none";

  // Set by limit().
  size_t others_count = 0;
  Row others;          // Sums over the rows not shown.
  Row not_attributed;  // TOTAL less all rows; empty: the books balance.
  Row total;           // Empty: no column adds up.

  // Adds a row and checks its width.
  void add(Row row);
  // Largest first by `column`, then by words and ids, so that equal traces give equal reports.
  void sort_by(const std::string& column);
  // Once, before rendering.
  void limit(const Limits& limits);
  size_t column_index(const std::string& key) const;
  bool has_totals() const;

 private:
  Row sums(size_t first, size_t last) const;
  void sum_up();
  size_t select(const Limits& limits);
};

// Pieces of a document, in order of text.
struct Section {
  std::string heading;             // May be empty.
  std::vector<std::string> lines;  // Sentences and "name: value" lines, ready to print.
  std::optional<Table> table;
};

struct Document {
  std::vector<Section> sections;
  std::vector<std::string> notes;  // What the reader must know: losses, estimates.
  // Keys beside the tables'. A table with a key is added under it by the renderer unless the key
  // is here already.
  nlohmann::ordered_json json = nlohmann::ordered_json::object();

  Section& add_table(Table table, std::string heading = "");
  void limit(const Limits& limits);
};

// The stack on one line: its innermost frame that is no wrapper of malloc, "cache.cc:88 (load)".
std::string stack_label(const StackText& stack);
// All of it, one frame a line, for searching.
std::string stack_search_text(const StackText& stack);
std::string frame_label(const FrameText& frame, bool full_path);

}  // namespace heapledger::analyzer
