// SPDX-License-Identifier: Apache-2.0
// What a process asked for, by size, by lifetime and by thread; counted while it is replayed.
//
// Classes are powers of two. A realloc ends one block and begins another, in place too.
// Thread safety: none. Cost: a few ns per call.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <vector>

#include "analyzer/replay/replay.h"

namespace heapledger::analyzer {

struct SizeClass {
  uint64_t blocks = 0, bytes = 0, usable_bytes = 0;
  uint64_t live_blocks = 0, live_bytes = 0;  // Of them, not freed yet.
};
struct LifetimeClass {
  uint64_t blocks = 0, bytes = 0;
};
struct ThreadUse {
  uint64_t blocks = 0, bytes = 0;       // Allocated by it.
  uint64_t freed = 0, freed_bytes = 0;  // Freed by it, whoever had allocated them.
  uint64_t freed_foreign = 0;           // Of those: blocks of other threads.
  uint64_t freed_by_others = 0;         // Its blocks that other threads freed.
};

class UsageCounts {
 public:
  static constexpr size_t kClasses = 65;  // Class n: from 2^(n-1) to 2^n - 1; class 0: nothing.

  void on_alloc(const schema::CallRow& row, const Block& block);
  void on_end(const schema::CallRow& row, const Block& block);

  const std::array<SizeClass, kClasses>& sizes() const { return sizes_; }
  // Of blocks that ended, by nanoseconds.
  const std::array<LifetimeClass, kClasses>& lifetimes() const { return lifetimes_; }
  const std::vector<ThreadUse>& threads() const { return threads_; }  // By row of `thread`.

 private:
  static size_t class_of(uint64_t value) { return static_cast<size_t>(std::bit_width(value)); }
  ThreadUse& thread(uint32_t id) {
    if (id >= threads_.size()) [[unlikely]]
      make_thread(id);
    return threads_[id];
  }
  void make_thread(uint32_t id);

  std::array<SizeClass, kClasses> sizes_{};
  std::array<LifetimeClass, kClasses> lifetimes_{};
  std::vector<ThreadUse> threads_;
};

// Asked for with every call, so they are to be inlined.
inline void UsageCounts::on_alloc(const schema::CallRow& row, const Block& block) {
  SizeClass& size = sizes_[class_of(block.size)];
  ++size.blocks;
  size.bytes += block.size;
  size.usable_bytes += block.usable;
  ++size.live_blocks;
  size.live_bytes += block.size;
  ThreadUse& by = thread(row.thread);
  ++by.blocks;
  by.bytes += block.size;
}

inline void UsageCounts::on_end(const schema::CallRow& row, const Block& block) {
  ThreadUse& by = thread(row.thread);
  ++by.freed;
  by.freed_bytes += block.size;
  if (block.inherited) return;  // Its allocation is its parent's.
  SizeClass& size = sizes_[class_of(block.size)];
  --size.live_blocks;
  size.live_bytes -= block.size;
  LifetimeClass& lifetime = lifetimes_[class_of(
      static_cast<uint64_t>(std::max<int64_t>(0, row.time_ns - block.time_ns)))];
  ++lifetime.blocks;
  lifetime.bytes += block.size;
  if (block.thread == row.thread) return;
  ++by.freed_foreign;
  ++thread(block.thread).freed_by_others;
}

}  // namespace heapledger::analyzer
