// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay/range_map.h"

#include <algorithm>

namespace heapledger::analyzer {

void RangeMap::add(uint64_t start, uint64_t end, RangeKind kind, uint32_t stack) {
  if (start >= end) return;
  remove(start, end);
  bytes_ += end - start;
  if (kind != RangeKind::kMapped) {
    auto next = ranges_.lower_bound(end);
    if (next != ranges_.end() && next->first == end && next->second.kind == kind) {
      end = next->second.end;
      ranges_.erase(next);
    }
    auto before = ranges_.lower_bound(start);
    if (before != ranges_.begin()) {
      --before;
      if (before->second.end == start && before->second.kind == kind) {
        before->second.end = end;
        return;
      }
    }
  }
  ranges_[start] = {end, kind, stack};
}

void RangeMap::remove(uint64_t start, uint64_t end) {
  if (start >= end) return;
  auto it = ranges_.lower_bound(start);
  if (it != ranges_.begin() && std::prev(it)->second.end > start) --it;
  while (it != ranges_.end() && it->first < end) {
    const uint64_t range_start = it->first;
    const HeldRange range = it->second;
    it = ranges_.erase(it);
    bytes_ -= std::min(end, range.end) - std::max(start, range_start);
    if (range_start < start) ranges_[range_start] = {start, range.kind, range.stack};
    if (range.end > end) it = ranges_.emplace(end, range).first;
  }
}

const HeldRange* RangeMap::find(uint64_t address) const {
  auto it = ranges_.upper_bound(address);
  if (it == ranges_.begin()) return nullptr;
  --it;
  return address < it->second.end ? &it->second : nullptr;
}

}  // namespace heapledger::analyzer
