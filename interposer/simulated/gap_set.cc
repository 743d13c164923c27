// SPDX-License-Identifier: Apache-2.0
#include "interposer/simulated/gap_set.h"

#include <bit>
#include <iterator>

namespace heapledger::heap {

size_t GapSet::class_of(size_t bytes) { return static_cast<size_t>(std::bit_width(bytes)) - 1; }

void GapSet::insert(uintptr_t begin, size_t bytes) {
  const size_t size_class = class_of(bytes);
  by_address_.emplace(begin, bytes);
  by_class_[size_class].insert(begin);
  used_classes_ |= uint64_t{1} << size_class;
}

void GapSet::erase(std::map<uintptr_t, size_t>::iterator gap) {
  const size_t size_class = class_of(gap->second);
  by_class_[size_class].erase(gap->first);
  if (by_class_[size_class].empty()) used_classes_ &= ~(uint64_t{1} << size_class);
  by_address_.erase(gap);
}

void GapSet::cut_end(std::map<uintptr_t, size_t>::iterator gap, uintptr_t end) {
  const uintptr_t begin = gap->first;
  const size_t bytes = end - begin;
  // The common case, a large gap that stays one, moves nothing.
  if (bytes != 0 && class_of(bytes) == class_of(gap->second)) {
    gap->second = bytes;
    return;
  }
  erase(gap);
  if (bytes != 0) insert(begin, bytes);
}

uintptr_t GapSet::take_highest(size_t bytes) {
  if (bytes == 0) return 0;
  const size_t own_class = class_of(bytes);
  uintptr_t best = 0;
  for (size_t i = own_class + 1; i < kClasses; ++i) {
    if ((used_classes_ >> i & 1) == 0) continue;
    const uintptr_t highest = *by_class_[i].rbegin();
    if (highest > best) best = highest;
  }
  const std::set<uintptr_t>& own = by_class_[own_class];
  for (auto begin = own.rbegin(); begin != own.rend() && *begin > best; ++begin) {
    if (by_address_.at(*begin) < bytes) continue;
    best = *begin;
    break;
  }
  if (best == 0) return 0;
  const auto gap = by_address_.find(best);
  const uintptr_t taken = gap->first + gap->second - bytes;
  cut_end(gap, taken);
  return taken;
}

bool GapSet::take_at(uintptr_t begin, size_t bytes) {
  auto gap = by_address_.upper_bound(begin);
  if (gap == by_address_.begin()) return false;
  --gap;
  const uintptr_t gap_end = gap->first + gap->second;
  if (begin + bytes > gap_end || begin + bytes < begin) return false;
  cut_end(gap, begin);
  if (gap_end > begin + bytes) insert(begin + bytes, gap_end - begin - bytes);
  return true;
}

void GapSet::give(uintptr_t begin, size_t bytes) {
  if (bytes == 0) return;
  uintptr_t end = begin + bytes;
  auto after = by_address_.lower_bound(begin);
  if (after != by_address_.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second == begin) {
      begin = before->first;
      erase(before);
    }
  }
  if (after != by_address_.end() && after->first == end) {
    end += after->second;
    erase(after);
  }
  insert(begin, end - begin);
}

}  // namespace heapledger::heap
