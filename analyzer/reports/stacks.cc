// SPDX-License-Identifier: Apache-2.0
#include "analyzer/reports/stacks.h"

#include <fmt/format.h>

#include <string_view>

namespace heapledger::analyzer {

namespace {

constexpr int64_t kIncompleteFrame = 1;
constexpr size_t kFramesMax = 65000;

}  // namespace

bool is_recorder(const FrameText& frame) {
  const std::string_view module = frame.module;
  return module.substr(module.rfind('/') + 1).starts_with("libheapledger.so");
}

Stacks::Stacks(schema::Database& db)
    : db_(db),
      node_(db_.prepare("SELECT parent, frame FROM stack WHERE id = ?")),
      frame_(db_.prepare("SELECT module.path, frame.offset FROM frame"
                         " LEFT JOIN module ON module.id = frame.module WHERE frame.id = ?")),
      symbols_(db_.prepare("SELECT function, file, line FROM symbol WHERE frame = ?"
                           " ORDER BY inline_depth DESC")) {}

const StackText& Stacks::frame(int64_t id) {
  const auto [found, fresh] = frames_.try_emplace(id);
  StackText& texts = found->second;
  if (!fresh) return texts;
  if (id == kIncompleteFrame) {
    texts.push_back({"[incomplete]", "", 0, "", 0});
    return texts;
  }
  FrameText base;
  frame_.bind(1, id);
  if (frame_.step()) {
    base.module = frame_.column_optional_text(0).value_or("");
    base.offset = frame_.column_uint(1);
  }
  frame_.reset();
  symbols_.bind(1, id);
  while (symbols_.step()) {
    FrameText text = base;
    text.function = symbols_.column_optional_text(0).value_or("");
    text.file = symbols_.column_optional_text(1).value_or("");
    text.line = symbols_.column_optional_int(2).value_or(0);
    texts.push_back(std::move(text));
  }
  if (texts.empty()) texts.push_back(std::move(base));
  return texts;
}

StackText Stacks::stack(int64_t id) {
  StackText texts;
  for (int64_t node = id; node != 0 && texts.size() < kFramesMax;) {
    node_.bind(1, node);
    if (!node_.step()) break;
    const int64_t parent = node_.column_int(0);
    const int64_t frame_id = node_.column_int(1);
    node_.reset();
    if (parent >= node) break;  // Only a damaged trace has a cycle.
    for (const FrameText& text : frame(frame_id)) {
      if (texts.empty() && is_recorder(text)) continue;
      texts.push_back(text);
    }
    node = parent;
  }
  return texts;
}

std::string stack_key(const StackText& stack) {
  std::string key;
  for (const FrameText& frame : stack) {
    if (frame.function.empty()) {
      key += fmt::format("{}+{:x}", frame.module.substr(frame.module.rfind('/') + 1), frame.offset);
    } else {
      key += frame.function;
    }
    key += '\n';
  }
  return key;
}

}  // namespace heapledger::analyzer
