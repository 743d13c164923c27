// SPDX-License-Identifier: Apache-2.0
// Stacks of a trace as text, innermost first, with inlined calls as frames of their own.
//
// The recorder's own frames at the top are left out: the first frame is the code that called
// malloc. Frames are read once and kept; stacks are not, there may be a million.
// Thread safety: as its Database.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>

#include "analyzer/reports/table.h"
#include "schema/trace_db.h"

namespace heapledger::analyzer {

// The frame lies in heapledger's own library.
bool is_recorder(const FrameText& frame);

class Stacks {
 public:
  explicit Stacks(schema::Database& db);

  // Stack 0, "no stack was taken", has no frames.
  StackText stack(int64_t id);
  // One frame, its inlined calls first.
  const StackText& frame(int64_t id);

 private:
  schema::Database& db_;
  schema::Statement node_, frame_, symbols_;
  std::unordered_map<int64_t, StackText> frames_;
};

// A stack by its functions, frame by frame, the same in another recording: addresses and lines
// change with every build. A frame without a name is known by its module and offset.
std::string stack_key(const StackText& stack);

}  // namespace heapledger::analyzer
