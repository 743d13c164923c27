// SPDX-License-Identifier: Apache-2.0
#include "analyzer/reports/suppressions.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "schema/error.h"

namespace heapledger::analyzer {

Suppressions Suppressions::load(const std::string& path) {
  Suppressions suppressions;
  if (path.empty()) return suppressions;
  const std::string what = fmt::format("cannot read suppressions '{}'", path);
  std::ifstream file(path);
  if (!file) throw schema::Error(what, std::strerror(errno));
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    const size_t first = line.find_first_not_of(" \t\r");
    if (first == std::string::npos || line[first] == '#') continue;
    line = line.substr(first, line.find_last_not_of(" \t\r") - first + 1);
    const size_t colon = line.find(':');
    if (colon == std::string::npos || colon == 0 || colon + 1 == line.size()) {
      throw schema::Error(what, fmt::format("line {} is not KIND:PATTERN", number));
    }
    if (line.substr(0, colon) == "leak") suppressions.patterns_.push_back(line.substr(colon + 1));
  }
  return suppressions;
}

bool Suppressions::matches(const StackText& stack) const {
  return std::any_of(stack.begin(), stack.end(), [&](const FrameText& frame) {
    return std::any_of(patterns_.begin(), patterns_.end(), [&](const std::string& pattern) {
      return matches_pattern(pattern, frame.function) || matches_pattern(pattern, frame.file) ||
             matches_pattern(pattern, frame.module);
    });
  });
}

bool matches_pattern(const std::string& pattern, const std::string& text) {
  if (text.empty()) return false;
  std::string rest = pattern;
  const bool at_begin = !rest.empty() && rest.front() == '^';
  if (at_begin) rest.erase(0, 1);
  const bool at_end = !rest.empty() && rest.back() == '$';
  if (at_end) rest.pop_back();
  // Pieces between stars, each found after the one before.
  size_t place = 0;
  bool is_first = true;
  for (size_t start = 0; start <= rest.size();) {
    const size_t star = std::min(rest.find('*', start), rest.size());
    const std::string piece = rest.substr(start, star - start);
    const bool is_last = star == rest.size();
    start = star + 1;
    size_t found = text.find(piece, place);
    if (is_first && at_begin && found != 0) return false;
    if (is_last && at_end && !piece.empty()) {
      if (text.size() < place + piece.size()) return false;
      found = text.size() - piece.size();
      if (text.compare(found, piece.size(), piece) != 0) return false;
      if (is_first && at_begin && found != 0) return false;
    }
    if (found == std::string::npos) return false;
    place = found + piece.size();
    is_first = false;
  }
  return true;
}

}  // namespace heapledger::analyzer
