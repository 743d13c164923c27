// SPDX-License-Identifier: Apache-2.0
// Makes streams of calls that look like a program's: for tests of round trips and for measuring how
// long and how fast batches are. Sizes, stacks and lifetimes are skewed as in real programs (few
// sizes and stacks make most calls, most blocks die young), and addresses come from a small model
// of an allocator: a free list per size and thread, last in first out, else fresh memory.
// Deterministic: a seed gives the same stream everywhere.
#pragma once

#include <cstdint>
#include <map>
#include <random>
#include <vector>

#include "schema/event_batch.h"

namespace heapledger::schema {

class PlausibleCalls {
 public:
  explicit PlausibleCalls(uint64_t seed, uint32_t threads = 4) : random_(seed), threads_(threads) {
    for (uint32_t i = 0; i < threads; ++i) {
      threads_[i].top = 0x555500000000 + (uint64_t{i} << 36);
    }
  }

  CallRow next() {
    // Threads take turns of some dozens of calls.
    if (below(32) == 0) current_ = static_cast<uint32_t>(below(threads_.size()));
    Thread& thread = threads_[current_];
    time_ns_ += static_cast<int64_t>(20 + below(64) + (below(8) == 0 ? below(4000) : 0));
    CallRow row;
    row.time_ns = row.ended_ns = time_ns_;
    row.thread = current_ + 1;
    const uint64_t choice = below(100);
    if (choice < 46 && !thread.live.empty()) {
      free_block(thread, row);
    } else if (choice < 50 && !thread.live.empty()) {
      reallocate(thread, row);
    } else {
      row.kind = choice < 80   ? EventKind::kMalloc
                 : choice < 95 ? EventKind::kNew
                               : EventKind::kCalloc;
      row.stack = skewed(8000);
      allocate(thread, row);
    }
    return row;
  }

  std::vector<CallRow> take(size_t count) {
    std::vector<CallRow> rows(count);
    for (CallRow& row : rows) row = next();
    return rows;
  }

 private:
  struct Block {
    uint64_t id, address, usable;
  };
  struct Thread {
    uint64_t sequence = 0;
    uint64_t top = 0;
    std::vector<Block> live;
    std::map<uint64_t, std::vector<uint64_t>> free_lists;
  };

  uint64_t below(uint64_t limit) { return random_() % limit; }
  // 1..limit, small numbers far more often.
  uint32_t skewed(uint32_t limit) {
    const double unit = static_cast<double>(random_() >> 11) * 0x1p-53;
    return static_cast<uint32_t>(unit * unit * unit * unit * limit) + 1;
  }

  void allocate(Thread& thread, CallRow& row) {
    row.size = below(4) != 0 ? 8 * skewed(64) : skewed(5000);
    row.usable = usable_by_rule(row.size);
    row.id = make_id(current_, ++thread.sequence);
    std::vector<uint64_t>& list = thread.free_lists[row.usable];
    if (!list.empty()) {
      row.address = list.back();
      list.pop_back();
    } else {
      row.address = thread.top + 16;
      thread.top += row.usable + 16;
    }
    thread.live.push_back({row.id, row.address, row.usable});
  }

  Block take_live(Thread& thread) {
    // Mostly one of the youngest.
    const size_t count = thread.live.size();
    const size_t back = below(8) != 0 ? std::min<size_t>(skewed(200), count) : 1 + below(count);
    const Block block = thread.live[count - back];
    thread.live[count - back] = thread.live.back();
    thread.live.pop_back();
    thread.free_lists[block.usable].push_back(block.address);
    return block;
  }

  void free_block(Thread& thread, CallRow& row) {
    const Block block = take_live(thread);
    row.kind = below(4) != 0 ? EventKind::kFree : EventKind::kDelete;
    row.address = block.address;
    row.ended_id = block.id;
  }

  void reallocate(Thread& thread, CallRow& row) {
    const Block block = take_live(thread);
    row.kind = EventKind::kRealloc;
    row.old_address = block.address;
    row.ended_id = block.id;
    row.ended_ns -= static_cast<int64_t>(below(40));
    row.stack = skewed(300);
    allocate(thread, row);
  }

  std::mt19937_64 random_;
  std::vector<Thread> threads_;
  uint32_t current_ = 0;
  int64_t time_ns_ = 0;
};

}  // namespace heapledger::schema
