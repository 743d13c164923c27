// SPDX-License-Identifier: Apache-2.0
// How far a heap has been used: the end of the highest block that ever was in it since the memory
// was got. What lies above on a resident page was never anybody's.
//
// Kept per window of 64 MiB of addresses, which is an arena's heap and a piece of the brk heap.
// Thread safety: none. Cost: a comparison per block, a map lookup where the window changes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>

namespace heapledger::analyzer {

class UsedEnds {
 public:
  UsedEnds() = default;
  UsedEnds(const UsedEnds& other) : ends_(other.ends_) {}
  UsedEnds& operator=(const UsedEnds& other) {
    ends_ = other.ends_;
    cached_key_ = UINT64_MAX;
    return *this;
  }

  // A block is in [start, end).
  void note(uint64_t start, uint64_t end) {
    const uint64_t key = start >> kWindowBits;
    if (key != cached_key_ || (end - 1) >> kWindowBits != key) {
      note_slowly(start, end);
    } else if (end > *cached_end_) {
      *cached_end_ = end;
    }
  }

  // Memory was given back. Holes below the end stay used.
  void forget(uint64_t start, uint64_t end) {
    auto it = ends_.lower_bound(start >> kWindowBits);
    for (; it != ends_.end() && it->first << kWindowBits < end; ++it) {
      const uint64_t from = std::max(start, it->first << kWindowBits);
      if (it->second <= end) it->second = std::min(it->second, from);
    }
  }

  // Where use ends in the window that holds `address`; 0: it was never used.
  uint64_t end_at(uint64_t address) const {
    const auto found = ends_.find(address >> kWindowBits);
    return found == ends_.end() ? 0 : found->second;
  }

 private:
  static constexpr int kWindowBits = 26;

  void note_slowly(uint64_t start, uint64_t end) {
    for (uint64_t key = start >> kWindowBits; key <= (end - 1) >> kWindowBits; ++key) {
      uint64_t& used = ends_[key];
      used = std::max(used, std::min(end, (key + 1) << kWindowBits));
      cached_key_ = key;
      cached_end_ = &used;
    }
  }

  std::map<uint64_t, uint64_t> ends_;  // By window.
  uint64_t cached_key_ = UINT64_MAX;   // The window noted last,
  uint64_t* cached_end_ = nullptr;     // and its end.
};

}  // namespace heapledger::analyzer
