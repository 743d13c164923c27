// SPDX-License-Identifier: Apache-2.0
#include "analyzer/reports/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "analyzer/reports/saturating.h"
#include "analyzer/reports/stacks.h"

namespace heapledger::analyzer {

namespace {

bool is_wrapper(const FrameText& frame) {
  constexpr const char* kNames[] = {"malloc", "calloc", "realloc", "reallocarray", "memalign"};
  return frame.function.starts_with("operator new") ||
         std::find(std::begin(kNames), std::end(kNames), frame.function) != std::end(kNames);
}

std::string base_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

std::string cell_text(const Cell& cell) {
  if (const auto* text = std::get_if<std::string>(&cell)) return *text;
  if (const auto* stack = std::get_if<StackText>(&cell)) return stack_search_text(*stack);
  if (const auto* ref = std::get_if<StackRef>(&cell)) {
    return stack_search_text(ref->stacks->stack(ref->id));
  }
  return "";
}

std::string row_text(const Row& row) {
  std::string text;
  for (const Cell& cell : row) text += cell_text(cell) + "\n";
  return text;
}

// By words, then by stack ids: reading every stack would cost more than the report.
bool text_before(const Row& a, const Row& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    const auto* left = std::get_if<std::string>(&a[i]);
    const auto* right = std::get_if<std::string>(&b[i]);
    if (left != nullptr && right != nullptr && *left != *right) return *left < *right;
    const auto* left_stack = std::get_if<StackRef>(&a[i]);
    const auto* right_stack = std::get_if<StackRef>(&b[i]);
    if (left_stack != nullptr && right_stack != nullptr && left_stack->id != right_stack->id) {
      return left_stack->id < right_stack->id;
    }
  }
  return false;
}

double cell_number(const Cell& cell) {
  if (const auto* integer = std::get_if<int64_t>(&cell)) return static_cast<double>(*integer);
  if (const auto* real = std::get_if<double>(&cell)) return *real;
  return -1;
}

}  // namespace

Cell::Cell() = default;
Cell::Cell(const Cell& other) = default;
Cell::Cell(Cell&& other) noexcept = default;
Cell& Cell::operator=(const Cell& other) = default;
Cell& Cell::operator=(Cell&& other) noexcept = default;
Cell::~Cell() = default;

std::string frame_label(const FrameText& frame, bool full_path) {
  if (frame.function.empty()) {
    if (frame.module.empty()) return fmt::format("0x{:x}", frame.offset);
    return fmt::format("{}+0x{:x}", full_path ? frame.module : base_name(frame.module),
                       frame.offset);
  }
  const std::string file = full_path ? frame.file : base_name(frame.file);
  if (!file.empty() && frame.line != 0) {
    return fmt::format("{} ({}:{})", frame.function, file, frame.line);
  }
  if (!frame.module.empty()) {
    return fmt::format("{} in {}", frame.function,
                       full_path ? frame.module : base_name(frame.module));
  }
  return frame.function;
}

std::string stack_label(const StackText& stack) {
  if (stack.empty()) return "[no stack]";
  // A wrapper around malloc (the loader has one, C++ has operator new) says nothing.
  const FrameText& frame = *std::find_if_not(stack.begin(), stack.end() - 1, is_wrapper);
  if (frame.function.empty() || frame.file.empty() || frame.line == 0) {
    return frame_label(frame, false);
  }
  return fmt::format("{}:{} ({})", base_name(frame.file), frame.line, frame.function);
}

std::string stack_search_text(const StackText& stack) {
  std::string text;
  for (const FrameText& frame : stack) text += frame_label(frame, true) + "\n";
  return text;
}

void Table::add(Row row) {
  if (row.size() != columns.size()) throw std::logic_error("a row of " + key + " is too short");
  rows.push_back(std::move(row));
}

size_t Table::column_index(const std::string& name) const {
  for (size_t i = 0; i < columns.size(); ++i) {
    if (columns[i].key == name) return i;
  }
  throw std::logic_error("table " + key + " has no column " + name);
}

bool Table::has_totals() const {
  return std::any_of(columns.begin(), columns.end(), [](const Column& c) { return c.sum; });
}

void Table::sort_by(const std::string& column) {
  const size_t index = column_index(column);
  std::stable_sort(rows.begin(), rows.end(), [&](const Row& a, const Row& b) {
    const double left = cell_number(a[index]);
    const double right = cell_number(b[index]);
    return left != right ? left > right : text_before(a, b);
  });
}

Row Table::sums(size_t first, size_t last) const {
  Row sum(columns.size());
  for (size_t column = 0; column < columns.size(); ++column) {
    if (!columns[column].sum) continue;
    int64_t value = 0;
    for (size_t i = first; i < last; ++i) {
      if (const auto* cell = std::get_if<int64_t>(&rows[i][column])) value = sum_of(value, *cell);
    }
    sum[column] = value;
  }
  return sum;
}

void Table::sum_up() {
  if (!has_totals()) return;
  total = sums(0, rows.size());
  for (const auto& [name, value] : unlisted) {
    Cell& cell = total[column_index(name)];
    cell = sum_of(std::get<int64_t>(cell), value);
  }
  Row missing(columns.size());
  bool differs = false;
  for (const auto& [name, value] : totals) {
    const size_t column = column_index(name);
    const int64_t difference = difference_of(value, std::get<int64_t>(total[column]));
    missing[column] = difference;
    differs |= difference != 0;
    total[column] = value;
  }
  if (differs) not_attributed = std::move(missing);
}

// Puts the rows to show first, in their order; returns how many there are.
size_t Table::select(const Limits& limits) {
  size_t shown = rows.size();
  if (!limits.site.empty()) {
    const auto middle = std::stable_partition(rows.begin(), rows.end(), [&](const Row& row) {
      return row_text(row).find(limits.site) != std::string::npos;
    });
    shown = static_cast<size_t>(middle - rows.begin());
  }
  return limits.top ? std::min(shown, *limits.top) : shown;
}

void Table::limit(const Limits& limits) {
  if (limited) {
    sum_up();
    const size_t shown = select(limits);
    others_count = rows.size() - shown + unlisted_count;
    if (others_count != 0 && has_totals()) {
      others = sums(shown, rows.size());
      for (const auto& [name, value] : unlisted) {
        Cell& cell = others[column_index(name)];
        cell = sum_of(std::get<int64_t>(cell), value);
      }
    }
    rows.resize(shown);
  }
  for (Row& row : rows) {
    for (Cell& cell : row) {
      if (const auto* ref = std::get_if<StackRef>(&cell)) cell = ref->stacks->stack(ref->id);
    }
  }
}

Section& Document::add_table(Table table, std::string heading) {
  sections.push_back({std::move(heading), {}, std::move(table)});
  return sections.back();
}

void Document::limit(const Limits& limits) {
  for (Section& section : sections) {
    if (section.table) section.table->limit(limits);
  }
}

}  // namespace heapledger::analyzer
