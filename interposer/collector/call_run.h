// SPDX-License-Identifier: Apache-2.0
// Runs of calls of one ring, from their bytes to columns: the fast way for what nearly all events
// are. WireReader reads everything, one event at a time; this reads some hundred plain calls at
// once, step by step, so that no step waits for another's memory: first the fixed parts, then the
// frames and where the call tree has their stacks, then the tree.
//
// It stops before the first event that is not a whole, sane call of the malloc family; that one is
// WireReader's.
//
// Thread safety: none. Cost: see tests/interposer/collector/packing_speed.cc.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "interposer/collector/address_space.h"
#include "interposer/collector/call_tree.h"
#include "interposer/collector/clock_map.h"
#include "schema/call_chunk.h"

namespace heapledger::collector {

class CallRun {
 public:
  static constexpr size_t kRowsMax = schema::CallChunk::kRows;

  // What turns stamps into trace time, and which times make sense.
  struct Times {
    ClockMap::Cursor clock;
    int64_t origin_raw_ns;
    int64_t last_ns;
  };

  // Reads calls from the beginning of `bytes` on, as those of `thread`. Returns how many bytes they
  // took.
  size_t read(std::span<const std::byte> bytes, Times& times, uint32_t thread);
  // Gives the calls their stacks.
  void find_stacks(StackCursor& cursor, CallTree& tree, AddressSpace& space);

  const schema::CallChunk& calls() const { return calls_; }
  size_t incomplete_stacks() const { return incomplete_; }

 private:
  size_t take_rare(const schema::EventHead& head, const std::byte* at, size_t row, Times& times);

  schema::CallChunk calls_;
  // Of the calls that have one; the last place is written and not kept.
  std::array<StackDelta, kRowsMax + 1> stacks_;
  std::array<StackCursor::NodeRef, kRowsMax> nodes_;
  size_t stacked_ = 0;
  StackCursor::Plan plan_;
  size_t incomplete_ = 0;
};

}  // namespace heapledger::collector
