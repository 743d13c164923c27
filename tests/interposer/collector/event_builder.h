// SPDX-License-Identifier: Apache-2.0
// A small language for ring contents: EventBuilder().thread(pid).malloc(...).free(...).bytes(), and
// RegionWriter, which puts them into a ring as a program's thread does, pads and all.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <thread>
#include <vector>

#include "schema/event.h"
#include "schema/shared_region.h"

namespace heapledger::collector::testing {

using Bytes = std::vector<std::byte>;

// What an event carries besides its fixed part.
struct Extra {
  std::vector<uint64_t> fresh = {};  // Innermost first.
  uint16_t keep = 0;
  uint8_t flags = 0;
  bool has_stack = false;
};

inline Extra stack(std::vector<uint64_t> fresh, uint16_t keep = 0, uint8_t flags = 0) {
  return {std::move(fresh), keep, flags, true};
}

template <typename T>
Bytes make_event(schema::EventKind kind, T fixed, uint64_t tick, const Extra& extra = {},
                 std::string_view text = {}, const std::vector<uint64_t>& optional = {}) {
  fixed.head.kind = kind;
  fixed.head.flags = static_cast<uint8_t>(extra.flags | (extra.has_stack ? schema::kHasStack : 0));
  fixed.head.fresh = static_cast<uint16_t>(extra.fresh.size());
  fixed.head.keep = extra.keep;
  fixed.head.tick = tick;
  const size_t words =
      sizeof(T) / 8 + optional.size() + schema::text_words(text.size()) + extra.fresh.size();
  fixed.head.words = static_cast<uint16_t>(words);
  Bytes bytes;
  const auto append = [&bytes](const void* from, size_t count) {
    const auto* first = static_cast<const std::byte*>(from);
    bytes.insert(bytes.end(), first, first + count);
  };
  append(&fixed, sizeof fixed);
  append(optional.data(), optional.size() * 8);
  append(text.data(), text.size());
  bytes.resize((bytes.size() + 7) / 8 * 8);
  append(extra.fresh.data(), extra.fresh.size() * 8);
  return bytes;
}

inline Bytes thread_start(uint64_t tick, uint32_t pid, uint32_t tid, uint32_t process_slot = 0) {
  schema::ThreadStartEvent event{};
  event.pid = pid;
  event.tid = tid;
  event.process_slot = process_slot;
  event.next_sequence = 1;
  return make_event(schema::EventKind::kThreadStart, event, tick);
}
inline Bytes thread_end(uint64_t tick) {
  return make_event(schema::EventKind::kThreadEnd, schema::PlainEvent{}, tick);
}
inline Bytes allocation(schema::EventKind kind, uint64_t tick, uint64_t id, uint64_t address,
                        uint64_t size, const Extra& extra = {},
                        const std::vector<uint64_t>& optional = {}) {
  schema::AllocEvent event{};
  event.address = address;
  event.size = size;
  event.id = id;
  return make_event(kind, event, tick, extra, {}, optional);
}
inline Bytes release(uint64_t tick, uint64_t id, uint64_t address) {
  schema::FreeEvent event{};
  event.address = address;
  event.ended_id = id;
  return make_event(schema::EventKind::kFree, event, tick);
}
inline Bytes module(schema::EventKind kind, uint64_t tick, uint64_t start, uint64_t end,
                    std::string_view path) {
  schema::ModuleEvent event{};
  event.base = start;
  event.start = start;
  event.end = end;
  event.build_id[0] = 0xAB;
  event.build_id_bytes = 1;
  event.text_bytes = static_cast<uint32_t>(path.size());
  return make_event(kind, event, tick, {}, path);
}

inline Bytes joined(std::initializer_list<Bytes> parts) {
  Bytes all;
  for (const Bytes& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

// The producing side of one ring of a mapped region.
class RingWriter {
 public:
  RingWriter(std::byte* base, uint32_t slot) : base_(base), slot_(slot) {
    uint32_t used = control().ring_slots_used.load();
    while (used <= slot && !control().ring_slots_used.compare_exchange_weak(used, slot + 1)) {
    }
    ring().state.store(schema::RingState::kLive);
  }

  schema::ControlPage& control() const { return *reinterpret_cast<schema::ControlPage*>(base_); }
  schema::RingSlot& ring() const {
    return reinterpret_cast<schema::RingSlot*>(base_ + control().slot_offset)[slot_];
  }
  std::byte* data() const {
    return base_ + control().data_offset + uint64_t{slot_} * control().ring_bytes;
  }

  // Writes one whole event; waits for room. False: the collector no longer records.
  bool write(std::span<const std::byte> event) {
    const uint64_t ring_bytes = control().ring_bytes;
    uint64_t head = ring().head.load(std::memory_order_relaxed);
    const uint64_t to_end = ring_bytes - head % ring_bytes;
    const uint64_t pad = event.size() > to_end ? to_end : 0;
    while (head + pad + event.size() - ring().tail.load(std::memory_order_acquire) > ring_bytes) {
      if (control().recording.load() == 0) return false;
      if (!rung_) {
        rung_ = true;
        control().doorbell.fetch_add(1);
        ring_doorbell();
      }
      std::this_thread::yield();
    }
    rung_ = false;
    if (pad != 0) {
      schema::EventHead head_of_pad{};
      head_of_pad.words = static_cast<uint16_t>(std::min<uint64_t>(pad / 8, 65535));
      for (uint64_t at = 0; at < pad; at += uint64_t{head_of_pad.words} * 8) {
        head_of_pad.words = static_cast<uint16_t>(std::min<uint64_t>((pad - at) / 8, 65535));
        std::memcpy(data() + head % ring_bytes + at, &head_of_pad, 8);
      }
      head += pad;
    }
    std::memcpy(data() + head % ring_bytes, event.data(), event.size());
    ring().events.fetch_add(1, std::memory_order_relaxed);
    ring().head.store(head + event.size(), std::memory_order_release);
    return true;
  }

 private:
  void ring_doorbell();

  std::byte* base_;
  uint32_t slot_;
  bool rung_ = false;
};

// Claims a process slot as an image's first process, or as a fork of `parent_slot`.
void claim_process(std::byte* base, uint32_t slot, uint32_t pid, uint32_t parent_slot,
                   uint64_t tick);

// Says Hello to a session and maps the region it gets. Null: refused.
std::byte* join_session(const char* name);

}  // namespace heapledger::collector::testing
