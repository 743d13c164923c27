// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "analyzer/render/render.h"
#include "analyzer/render/units.h"

namespace heapledger::analyzer {

namespace {

// Characters, not bytes: names may be UTF-8.
size_t width_of(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

// Where the first `width` characters end.
size_t bytes_of(std::string_view text, size_t width) {
  size_t end = 0;
  for (size_t seen = 0; end < text.size(); ++end) {
    if ((text[end] & 0xC0) != 0x80 && seen++ == width) break;
  }
  return end;
}

// Long template names are cut in the middle: both ends say something.
std::string fit(const std::string& text, size_t width) {
  const size_t whole = width_of(text);
  if (whole <= width || width < 8) return text;
  const size_t head = (width - 3) * 2 / 3;
  const size_t tail = width - 3 - head;
  return text.substr(0, bytes_of(text, head)) + "..." + text.substr(bytes_of(text, whole - tail));
}

// A command line may hold anything; a line of the report is one line.
std::string printable(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < ' ') c = ' ';
  }
  return text;
}

// Breaks at spaces; continuation lines are indented by `indent` more.
std::string wrap(const std::string& raw, size_t indent) {
  const std::string text = printable(raw);
  std::string out;
  std::string line;
  for (size_t at = 0; at < text.size();) {
    const size_t space = std::min(text.find(' ', at + 1), text.size());
    const std::string word = text.substr(at, space - at);
    if (!line.empty() && width_of(line) + width_of(word) > kTextWidth) {
      out += line + "\n";
      line = std::string(indent, ' ') + word.substr(word.find_first_not_of(' '));
    } else {
      line += word;
    }
    at = space;
  }
  return out + line + "\n";
}

std::string cell_string(const Cell& cell, Unit unit) {
  if (std::holds_alternative<std::monostate>(cell)) return "-";
  if (const auto* text = std::get_if<std::string>(&cell)) return printable(*text);
  if (const auto* real = std::get_if<double>(&cell)) {
    return unit == Unit::kFactor ? human_factor(*real) : human_ratio(*real);
  }
  const int64_t value = std::get<int64_t>(cell);
  switch (unit) {
    case Unit::kBytes:
      return human_bytes(value);
    case Unit::kNs:
      return human_ns(value);
    case Unit::kTimeNs:
      return human_time(value);
    case Unit::kAddress:
      return fmt::format("0x{:x}", static_cast<uint64_t>(value));
    case Unit::kPlain:
      return std::to_string(value);
    default:
      return human_count(value);
  }
}

// One table laid out: columns with a title, except stacks, which stand below their row.
class TextTable {
 public:
  explicit TextTable(const Table& table) : table_(table) {
    for (size_t i = 0; i < table.columns.size(); ++i) {
      if (is_stack(i)) {
        stack_ = i;
      } else if (!table.columns[i].title.empty()) {
        shown_.push_back(i);
        if (table.columns[i].unit == Unit::kText && !label_) label_ = i;
      }
    }
  }

  std::string render() {
    if (table_.rows.empty() && table_.others_count == 0 && table_.not_attributed.empty()) {
      return "  " + table_.empty_text + "\n";
    }
    add_header();
    for (const Row& row : table_.rows) add_line(row, "");
    if (table_.others_count != 0) {
      add_line(table_.others, fmt::format("[{} other{}]", human_count(to_int(table_.others_count)),
                                          table_.others_count == 1 ? "" : "s"));
    }
    if (!table_.not_attributed.empty()) add_line(table_.not_attributed, "[not attributed]");
    if (!table_.total.empty()) add_line(table_.total, "TOTAL");
    return layout();
  }

 private:
  struct Line {
    std::vector<std::string> cells;
    std::vector<std::string> below;
  };

  static int64_t to_int(size_t value) { return static_cast<int64_t>(value); }

  bool is_stack(size_t column) const {
    for (const Row& row : table_.rows) {
      if (std::holds_alternative<StackText>(row[column])) return true;
    }
    return false;
  }

  void add_header() {
    Line line;
    for (const size_t column : shown_) line.cells.push_back(table_.columns[column].title);
    lines_.push_back(std::move(line));
  }

  // `label` names a line that is no row of the table; sums may be missing.
  void add_line(const Row& row, const std::string& label) {
    Line line;
    for (const size_t column : shown_) {
      const bool special = !label.empty();
      if (special && label_ == column) {
        line.cells.push_back(label);
      } else if (row.empty() || (special && std::holds_alternative<std::monostate>(row[column]))) {
        line.cells.push_back("");
      } else {
        line.cells.push_back(cell_string(row[column], table_.columns[column].unit));
      }
    }
    if (!label.empty() && !label_) line.cells.push_back(label);
    if (label.empty() && stack_) add_stack(std::get<StackText>(row[*stack_]), line);
    lines_.push_back(std::move(line));
  }

  static void add_stack(const StackText& stack, Line& line) {
    if (stack.empty()) line.below.push_back("[no stack]");
    // One line more is no worse than a line that says so.
    const size_t shown = stack.size() <= kTextFrames + 1 ? stack.size() : kTextFrames;
    for (size_t i = 0; i < shown; ++i) {
      line.below.push_back(fit(printable(frame_label(stack[i], false)), kTextWidth - 6));
    }
    if (shown < stack.size()) {
      line.below.push_back(fmt::format("[{} more frames]", stack.size() - shown));
    }
  }

  std::string layout() const {
    std::vector<size_t> widths(shown_.size());
    for (const Line& line : lines_) {
      for (size_t i = 0; i < shown_.size(); ++i) {
        widths[i] = std::max(widths[i], width_of(line.cells[i]));
      }
    }
    // Text columns give way, the last one first, until the line fits.
    size_t total = 0;
    for (const size_t width : widths) total += width + 2;
    for (size_t i = shown_.size(); i-- > 0 && total > kTextWidth;) {
      if (table_.columns[shown_[i]].unit != Unit::kText) continue;
      const size_t spare =
          std::min(widths[i] - std::min<size_t>(widths[i], 12), total - kTextWidth);
      widths[i] -= spare;
      total -= spare;
    }
    std::string out;
    for (const Line& line : lines_) {
      std::string text;
      for (size_t i = 0; i < shown_.size(); ++i) {
        const std::string cell = fit(line.cells[i], widths[i]);
        const std::string padding(widths[i] - std::min(widths[i], width_of(cell)), ' ');
        const bool left = table_.columns[shown_[i]].unit == Unit::kText;
        text += "  " + (left ? cell + padding : padding + cell);
      }
      // A label where the table has no column for it.
      if (line.cells.size() > shown_.size()) text += "  " + line.cells.back();
      text.erase(text.find_last_not_of(' ') + 1);
      out += text + "\n";
      for (const std::string& below : line.below) out += "      " + below + "\n";
    }
    return out;
  }

  const Table& table_;
  std::vector<size_t> shown_;
  std::optional<size_t> stack_;
  std::optional<size_t> label_;
  std::vector<Line> lines_;
};

}  // namespace

std::string render_text(const Document& document) {
  std::string out;
  for (const Section& section : document.sections) {
    if (!out.empty()) out += "\n";
    if (!section.heading.empty()) out += wrap(section.heading, 2);
    for (const std::string& line : section.lines) out += wrap(line, 4);
    if (!section.table) continue;
    if (!section.table->title.empty()) out += wrap(section.table->title, 2);
    out += TextTable(*section.table).render();
  }
  if (!document.notes.empty()) out += "\n";
  for (const std::string& note : document.notes) out += wrap("note: " + note, 6);
  return out;
}

}  // namespace heapledger::analyzer
