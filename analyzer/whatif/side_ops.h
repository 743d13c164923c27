// SPDX-License-Identifier: Apache-2.0
// What decides beside the calls what an allocator does: ends of threads, moves of the break by the
// program, mallopt, malloc_trim. They are rare, so they are read at once and then merged by time
// into the calls' operations.
// Thread safety: none. Cost: a row of SQL each.
#pragma once

#include <cstdint>
#include <vector>

#include "analyzer/whatif/op.h"
#include "schema/trace_db.h"

namespace heapledger::analyzer {

// Rows of table `thread` as small numbers, in order of appearance.
class ThreadNumbers {
 public:
  uint32_t number_of(uint32_t row) {
    if (row >= numbers_.size()) numbers_.resize(row + size_t{1}, 0);
    if (numbers_[row] == 0) {
      numbers_[row] = (adopts_ ? last_ : made_++) + 1;
      adopts_ = false;
    }
    return last_ = numbers_[row] - 1;
  }
  bool has(uint32_t row) const { return row < numbers_.size() && numbers_[row] != 0; }
  // The one asked for last.
  uint32_t last() const { return last_; }
  // The next new thread goes on as the last one: it is the one that forked, in the child.
  void adopt_last() { adopts_ = true; }
  // A forked child's: other rows, but numbers go on.
  ThreadNumbers of_child() const {
    ThreadNumbers child;
    child.made_ = made_;
    child.last_ = last_;
    return child;
  }

 private:
  std::vector<uint32_t> numbers_;  // By row, + 1; 0: none yet.
  uint32_t made_ = 0;
  uint32_t last_ = 0;
  bool adopts_ = false;
};

class SideOps {
 public:
  // Those of a process up to `end_ns`.
  SideOps(schema::Database& db, int64_t process, int64_t end_ns);

  // INT64_MAX at the end.
  int64_t next_time() const { return next_time_; }
  // Appends those up to `time_ns`.
  void take_until(int64_t time_ns, ThreadNumbers& threads, std::vector<Op>& ops);

 private:
  struct SideOp {
    Op op;
    uint32_t thread_row;
  };
  void load_breaks(schema::Database& db, int64_t process, int64_t end_ns);
  void load_thread_ends(schema::Database& db, int64_t process, int64_t end_ns);
  void load_admin(schema::Database& db, int64_t process, int64_t end_ns);
  void find_next_time();

  std::vector<SideOp> ops_;
  size_t next_ = 0;
  int64_t next_time_ = INT64_MAX;
};

}  // namespace heapledger::analyzer
