// SPDX-License-Identifier: Apache-2.0
// Files of known leaks, in the form that LeakSanitizer reads: a line "leak:PATTERN" leaves out
// every stack with a frame whose function, source file or module contains PATTERN. * stands for any
// text, ^ and $ for the beginning and the end; # begins a comment. Lines of other sanitizers
// ("race:...") are passed over.
// Thread safety: plain values.
#pragma once

#include <string>
#include <vector>

#include "analyzer/reports/table.h"

namespace heapledger::analyzer {

class Suppressions {
 public:
  // None where `path` is empty; throws Error where it cannot be read or a line is not understood.
  static Suppressions load(const std::string& path);
  bool empty() const { return patterns_.empty(); }
  bool matches(const StackText& stack) const;

 private:
  std::vector<std::string> patterns_;
};

// As LeakSanitizer matches: anywhere in the text, unless anchored.
bool matches_pattern(const std::string& pattern, const std::string& text);

}  // namespace heapledger::analyzer
