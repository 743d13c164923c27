// SPDX-License-Identifier: Apache-2.0
// Folded stacks: a line per stack, outermost function first, with semicolons between, then a space
// and the value. What flamegraph.pl, inferno and speedscope read.
#include <fmt/format.h>

#include <map>

#include "analyzer/export/export.h"

namespace heapledger::analyzer {

namespace {

// Semicolons part frames, and a line is a stack.
std::string frame_name(const FrameText& frame) {
  std::string name = frame.function;
  if (name.empty()) {
    name = frame.module.empty()
               ? fmt::format("0x{:x}", frame.offset)
               : fmt::format("{}+0x{:x}", frame.module.substr(frame.module.rfind('/') + 1),
                             frame.offset);
  }
  for (char& c : name) {
    if (c == ';') c = ':';
    if (static_cast<unsigned char>(c) < ' ') c = ' ';
  }
  return name;
}

}  // namespace

std::string export_folded(const ReportInput& input, size_t value) {
  // Stacks that differ in lines only are one.
  std::map<std::string, int64_t> lines;
  for (const ExportSample& sample : export_samples(input)) {
    if (sample.values[value] == 0) continue;
    std::string line;
    for (size_t i = sample.stack.size(); i-- > 0;) {
      line += (line.empty() ? "" : ";") + frame_name(sample.stack[i]);
    }
    lines[line] += sample.values[value];
  }
  std::string text;
  for (const auto& [line, number] : lines) text += fmt::format("{} {}\n", line, number);
  return text;
}

}  // namespace heapledger::analyzer
