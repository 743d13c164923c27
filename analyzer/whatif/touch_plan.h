// SPDX-License-Identifier: Apache-2.0
// Which pages of its blocks a program touched, as far as a recording tells: what a model needs to
// count the page faults of another layout.
//
// A page of a block that was not resident when the block was allocated shows its first touch by a
// fault. Pages that came from a block before (recycled) show nothing. They are taken to stand at
// the block's beginning, and programs to write from there on: all of them are touched where a page
// behind them was, else as far as the share of a block goes that the same stack's fresh blocks had
// touched (without any, that of fresh blocks of the same power of two, then that of all). Only wide
// blocks need this: in smaller ones the allocator's headers and a neighbour's data touch every page
// anyhow; they count as touched in full. A write to a page that was only read until then, and so
// was the zero page, is a second fault; there are taken to be as many of those as were recorded.
// Thread safety: none while it is made, const afterwards.
// Memory: 24 bytes per fault in a wide block, 16 per other fault and per wide block with fresh
// pages. Cost: one replay.
#pragma once

#include <array>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "analyzer/replay/flat_map.h"
#include "analyzer/replay/page_set.h"
#include "analyzer/trace_info.h"
#include "analyzer/whatif/recorder_share.h"
#include "schema/trace_db.h"

namespace heapledger::analyzer {

// A block of fewer requested bytes is taken to be touched in full.
inline constexpr uint64_t kWideBytes = 4096;

class TouchPlan {
 public:
  // Of the process's own part. A trace without faults' addresses gives an empty plan: all is
  // assumed to be touched.
  static TouchPlan of(schema::Database& db, const TraceInfo& info, int64_t process);

  struct Touch {
    int64_t time_ns;
    uint64_t id;      // Of the block.
    uint64_t offset;  // Of a byte in the middle of the page; 0: the page that the block begins in.
  };
  // First touches of fresh pages, in order of time.
  const std::vector<Touch>& touches() const { return touches_; }

  // Bytes from the block's beginning on that are assumed to be touched at once. `id`: of a wide
  // block of `bytes`, allocated by `stack`.
  uint64_t assumed_bytes(uint64_t id, uint64_t bytes, uint32_t stack) const;

  // Second faults on pages of blocks.
  uint64_t second_faults() const { return second_faults_; }

  // Faults that neither touched the heap nor came from the recorder's code, in order of time.
  const std::vector<OtherTouch>& other_touches() const { return other_touches_; }
  // Pages of those that came from the recorder's code, outside its own memory.
  const PageSet& recorder_pages() const { return recorder_pages_; }

  bool is_known() const { return known_; }
  // Pages of wide blocks: what part of them was fresh, and so is known.
  uint64_t fresh_pages() const { return fresh_pages_; }
  uint64_t recycled_pages() const { return recycled_pages_; }

 private:
  class Observer;
  struct Share {
    uint64_t fresh = 0, touched = 0;  // Pages.
    void operator+=(const Share& other) {
      fresh += other.fresh;
      touched += other.touched;
    }
  };

  bool known_ = false;
  std::vector<Touch> touches_;
  FlatMap recycled_front_;  // Wide block with fresh pages -> how many before them were resident.
  std::unordered_map<uint32_t, Share> by_stack_;
  std::array<Share, 64> by_size_{};  // By the power of two.
  Share all_;
  uint64_t fresh_pages_ = 0, recycled_pages_ = 0;
  uint64_t second_faults_ = 0;
  std::vector<OtherTouch> other_touches_;
  PageSet recorder_pages_;
};

}  // namespace heapledger::analyzer
