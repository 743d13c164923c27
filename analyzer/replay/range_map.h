// SPDX-License-Identifier: Apache-2.0
// Address ranges got from the system, and what each is for: those that the allocator holds, and
// those that others do.
//
// Ranges do not overlap; neighbours of one kind that touch are one range, except mapped blocks,
// which stay apart. Removing a part cuts. Few per process, changed by system calls only, so an
// ordered map will do.
// Thread safety: none.
#pragma once

#include <cstdint>
#include <map>

namespace heapledger::analyzer {

enum class RangeKind : uint8_t {
  kBreak,   // The brk heap.
  kHeap,    // Memory that is cut into chunks but did not come from brk.
  kMapped,  // One mapping for one block.
  // Not the allocator's.
  kAnonymous,  // Private.
  kFile,       // Or shared: a page may have contents before it is touched.
};

struct HeldRange {
  uint64_t end = 0;
  RangeKind kind = RangeKind::kHeap;
  uint32_t stack = 0;  // kMapped: the stack whose call mapped it.
};

class RangeMap {
 public:
  using Map = std::map<uint64_t, HeldRange>;

  void add(uint64_t start, uint64_t end, RangeKind kind, uint32_t stack);
  void remove(uint64_t start, uint64_t end);
  // The range that holds `address`, or nullptr.
  const HeldRange* find(uint64_t address) const;
  uint64_t bytes() const { return bytes_; }
  const Map& ranges() const { return ranges_; }

 private:
  Map ranges_;
  uint64_t bytes_ = 0;
};

}  // namespace heapledger::analyzer
