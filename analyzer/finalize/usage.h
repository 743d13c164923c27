// SPDX-License-Identifier: Apache-2.0
// What a process asked for, by size, by lifetime and by thread; counted while it is replayed.
//
// Classes are powers of two. A realloc ends one block and begins another, in place too.
// Thread safety: none. Cost: a few ns per call.
#pragma once

#include <array>
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

}  // namespace heapledger::analyzer
