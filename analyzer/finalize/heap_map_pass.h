// SPDX-License-Identifier: Apache-2.0
// The heap map's part of the final pass: moments at even distances, fewer where they would cost too
// much, and the end.
//
// A moment costs a look at each live block, so it is left out while all of them together would look
// at more blocks than the process made calls (and a grace for small ones).
// Thread safety: none. Memory: kMomentsMax moments of at most HeapMap::kCellsMax cells.
#pragma once

#include <cstdint>
#include <vector>

#include "analyzer/replay/heap_map.h"
#include "schema/trace_db.h"

namespace heapledger::analyzer {

class HeapMapPass {
 public:
  static constexpr int64_t kMomentsMax = 64;  // Beside the last.

  // A forked process has its parent's blocks, and most such are short.
  HeapMapPass(int64_t start_ns, int64_t end_ns, bool is_forked);

  // When the replay must say on_moment().
  const std::vector<int64_t>& moments() const { return moments_; }
  void on_moment(const Replay& replay, int64_t time_ns, bool resident_known);
  void finish(const Replay& replay, int64_t time_ns, bool resident_known);
  void write(schema::Database& db, int64_t process) const;

 private:
  std::vector<int64_t> moments_;
  HeapMap map_;
  uint64_t grace_;
  uint64_t spent_ = 0;  // Blocks and cells that were looked at.
};

}  // namespace heapledger::analyzer
