// SPDX-License-Identifier: Apache-2.0
#include "tools/heapledger/malloc_environment.h"

#include <unistd.h>

#include <algorithm>
#include <string_view>

namespace heapledger::front {

std::vector<std::string> malloc_environment(const std::string& tunables) {
  constexpr std::string_view kPrefix = "GLIBC_TUNABLES=";
  std::vector<std::string> words;
  std::string kept;  // Tunables of other parts.
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view word = *entry;
    if (word.starts_with("MALLOC_") || word.starts_with("HEAPLEDGER_")) continue;
    if (!word.starts_with(kPrefix)) {
      words.emplace_back(word);
      continue;
    }
    std::string_view rest = word.substr(kPrefix.size());
    while (!rest.empty()) {
      const size_t end = std::min(rest.find(':'), rest.size());
      const std::string_view tunable = rest.substr(0, end);
      rest.remove_prefix(std::min(end + 1, rest.size()));
      if (!tunable.starts_with("glibc.malloc.")) kept += std::string(tunable) + ":";
    }
  }
  std::string all = kept + tunables;
  if (all.ends_with(':')) all.pop_back();
  if (!all.empty()) words.push_back(std::string(kPrefix) + all);
  return words;
}

}  // namespace heapledger::front
