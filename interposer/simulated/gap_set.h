// SPDX-License-Identifier: Apache-2.0
//
// The unmapped ranges of a simulated address space, and the kernel's choice among them: the highest
// one that is large enough, used from its high end.
//
// Gaps are kept by address, to merge neighbours, and again by size class (powers of two), each
// class by address: the highest gap of any larger class fits for certain, so that only the gaps of
// the request's own class are tried one by one. Invariants: 1. no two gaps touch. 2. every gap is
// in exactly the class of its length. Thread safety: none. Cost: O(log gaps), but for requests
// whose class is full of gaps that are slightly too small.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>

namespace heapledger::heap {

class GapSet {
 public:
  // Takes the high end of the highest gap of at least `bytes`; 0 where there is none.
  uintptr_t take_highest(size_t bytes);
  // Takes exactly this range if it lies in one gap.
  bool take_at(uintptr_t begin, size_t bytes);
  // Gives a range back that is in no gap.
  void give(uintptr_t begin, size_t bytes);

 private:
  static constexpr size_t kClasses = 64;
  static size_t class_of(size_t bytes);
  void insert(uintptr_t begin, size_t bytes);
  void erase(std::map<uintptr_t, size_t>::iterator gap);
  // Makes `gap` end at `end`, which may leave nothing of it.
  void cut_end(std::map<uintptr_t, size_t>::iterator gap, uintptr_t end);

  std::map<uintptr_t, size_t> by_address_;  // Begin -> bytes.
  std::array<std::set<uintptr_t>, kClasses> by_class_;
  uint64_t used_classes_ = 0;  // One bit for each that is not empty.
};

}  // namespace heapledger::heap
