// SPDX-License-Identifier: Apache-2.0
#include "analyzer/symbols/jit_map.h"

#include <fstream>
#include <iterator>
#include <sstream>

namespace heapledger::analyzer {

void JitMap::load(const std::string& path) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    uint64_t start = 0;
    uint64_t bytes = 0;
    std::string name;
    if (!(words >> std::hex >> start >> bytes) || bytes == 0 || start + bytes < start) continue;
    if (!std::getline(words >> std::ws, name) || name.empty()) continue;
    const uint64_t end = start + bytes;
    auto next = places_.lower_bound(start);
    if (next != places_.begin() && std::prev(next)->second.end > start) --next;
    while (next != places_.end() && next->first < end) next = places_.erase(next);
    places_[start] = {end, std::move(name)};
  }
}

std::string JitMap::name(uint64_t address) const {
  const auto next = places_.upper_bound(address);
  if (next == places_.begin()) return "";
  const Place& place = std::prev(next)->second;
  return address < place.end ? place.name : "";
}

}  // namespace heapledger::analyzer
