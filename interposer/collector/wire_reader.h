// SPDX-License-Identifier: Apache-2.0
// Reads the events of one ring piece, trusting nothing: the program may have written over its ring.
//
// next() hands out only events whose parts lie inside their own `words`, and whose `words` lie
// inside the piece. What fails is counted and skipped: one event where its length makes sense, else
// the rest of the piece (the next piece begins at an event again, because heads are published
// between events).
//
// Thread safety: none. Cost: a few nanoseconds per event.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "schema/event.h"

namespace heapledger::collector {

struct WireEvent {
  schema::EventHead head{};
  const std::byte* at = nullptr;     // The whole event.
  const std::byte* fresh = nullptr;  // head.fresh return addresses.
  std::string_view text;
  uint64_t usable = 0;     // With kHasUsable.
  uint64_t alignment = 0;  // With kHasAlignment.

  bool has(schema::EventFlags flag) const { return (head.flags & flag) != 0; }
  // The fixed part. T must be the struct of the kind.
  template <typename T>
  T as() const {
    T fixed;
    std::memcpy(&fixed, at, sizeof fixed);
    return fixed;
  }
  uint64_t frame(size_t index) const {  // 0: innermost.
    uint64_t pc;
    std::memcpy(&pc, fresh + index * 8, sizeof pc);
    return pc;
  }
};

class WireReader {
 public:
  explicit WireReader(std::span<const std::byte> piece) : piece_(piece) {}

  // The next event of a known kind; false at the end. Pads and unknown kinds are passed over.
  bool next(WireEvent& event);

  // Moves on to the first event that is no call, or that has no sensible length. Not counted.
  void pass_calls() {
    while (position_ + 8 <= piece_.size()) {
      schema::EventHead head;
      std::memcpy(&head, piece_.data() + position_, 8);
      if (!schema::is_call(head.kind) || head.words == 0) return;
      if (size_t{head.words} * 8 > piece_.size() - position_) return;
      position_ += size_t{head.words} * 8;
    }
  }

  // What comes, for who reads some of it in another way, and then says how much.
  std::span<const std::byte> rest() const { return piece_.subspan(position_); }
  void pass(size_t bytes, size_t events) {
    position_ += bytes;
    events_ += events;
  }

  uint64_t damaged() const { return damaged_; }  // Events or rests of pieces dropped.
  uint64_t unknown() const { return unknown_; }  // Well-formed events of kinds we do not know.
  uint64_t events() const { return events_; }    // Handed out.

 private:
  // False: its parts do not fit into it.
  static bool split(size_t bytes, size_t fixed, WireEvent& event);

  std::span<const std::byte> piece_;
  size_t position_ = 0;
  uint64_t damaged_ = 0;
  uint64_t unknown_ = 0;
  uint64_t events_ = 0;
};

}  // namespace heapledger::collector
