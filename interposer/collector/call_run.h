// SPDX-License-Identifier: Apache-2.0
// Runs of calls of one ring, from their bytes to rows: the fast way for what nearly all events are.
// WireReader reads everything, one event at a time; this reads some hundred plain calls at once,
// step by step, so that no step waits for another's memory: first the fixed parts, then the frames
// and where the call tree has their stacks, then the tree.
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
#include "schema/event_batch.h"

namespace heapledger::collector {

class CallRun {
 public:
  static constexpr size_t kRowsMax = 256;

  // What turns stamps into trace time, and which times make sense.
  struct Times {
    ClockMap::Cursor clock;
    int64_t origin_raw_ns;
    int64_t last_ns;
  };

  // Reads calls from the beginning of `bytes` on, as those of `thread`. Returns how many bytes they
  // took.
  size_t read(std::span<const std::byte> bytes, Times& times, uint32_t thread);
  // Gives the rows their stacks.
  void find_stacks(StackCursor& cursor, CallTree& tree, AddressSpace& space);

  std::span<const schema::CallRow> rows() const { return {rows_.data(), count_}; }
  size_t incomplete_stacks() const { return incomplete_; }

 private:
  struct Stack {
    const std::byte* fresh;  // Return addresses.
    uint16_t fresh_count;
    uint16_t keep;
    uint16_t row;
    bool incomplete;
  };

  static size_t take_plain(const schema::EventHead& head, const std::byte* at,
                           schema::CallRow& row);
  static size_t take_realloc(const schema::EventHead& head, const std::byte* at, Times& times,
                             schema::CallRow& row);
  static size_t take_more(const schema::EventHead& head, const std::byte* at, size_t fixed,
                          schema::CallRow& row);

  std::array<schema::CallRow, kRowsMax> rows_;
  // Of the rows that have one; the last place is written and not kept.
  std::array<Stack, kRowsMax + 1> stacks_;
  std::array<StackCursor::NodeRef, kRowsMax> nodes_;
  size_t stacked_ = 0;
  StackCursor::Plan plan_;
  size_t count_ = 0;
  size_t incomplete_ = 0;
};

}  // namespace heapledger::collector
