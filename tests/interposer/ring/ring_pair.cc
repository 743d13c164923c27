// SPDX-License-Identifier: Apache-2.0
#include "tests/interposer/ring/ring_pair.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "schema/event.h"

namespace heapledger::testing {

namespace {

constexpr size_t kHeadWords = sizeof(schema::TextEvent) / 8;

}  // namespace

uint64_t mixed(uint64_t seed, uint64_t number) {
  uint64_t value = seed * 0x9E3779B97F4A7C15U + number;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9U;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBU;
  return value ^ (value >> 31);
}

size_t words_of(uint64_t seed, uint64_t number, uint64_t ring_bytes) {
  const uint64_t random = mixed(seed, number);
  const uint64_t largest = ring_bytes / 8 / 2;
  // Mostly as small as calls are, now and then as large as a ring takes.
  const uint64_t range = random % 64 == 0 ? largest - kHeadWords : std::min<uint64_t>(20, largest);
  return kHeadWords + (random >> 8) % (range + 1);
}

Sender::Sender(const trace::Region& region, uint32_t slot, uint64_t seed)
    : seed_(seed),
      ring_bytes_(region.ring_bytes),
      shared_{region.control, &stopped_, &region.processes[0], trace::Patience{}} {
  producer_.attach(&shared_, &region.rings[slot], region.data + slot * region.ring_bytes,
                   region.ring_bytes);
  uint32_t used = region.control->ring_slots_used.load();
  while (used <= slot && !region.control->ring_slots_used.compare_exchange_weak(used, slot + 1)) {
  }
}

bool Sender::send(bool may_wait) {
  const uint64_t number = sent_ + 1;
  const size_t words = words_of(seed_, number, ring_bytes_);
  uint64_t* at = producer_.reserve(words, may_wait);
  if (at == nullptr) return false;
  schema::TextEvent event{};
  event.head = {schema::EventKind::kNote, 0, static_cast<uint16_t>(words), 0, 0, number};
  event.text_bytes = (words - kHeadWords) * 8;
  std::memcpy(at, &event, sizeof event);
  for (size_t i = kHeadWords; i < words; ++i) at[i] = mixed(seed_ + i, number);
  producer_.commit(words);
  sent_ = number;
  return true;
}

trace::Region same_mapping(const collector::Region& region) {
  const collector::RegionLayout& layout = region.layout();
  auto* base = reinterpret_cast<std::byte*>(&region.control());
  return {&region.control(),           &region.process_slot(0), &region.ring_slot(0),
          base + layout.data_offset(), layout.ring_bytes,       layout.process_slots,
          layout.ring_slots,           layout.region_bytes()};
}

trace::Region map_as_program(int fd, uint64_t region_bytes) {
  trace::Region region{};
  if (const char* why = trace::map_region(fd, region_bytes, &region)) {
    std::fprintf(stderr, "cannot map the region: %s\n", why);
    std::abort();
  }
  return region;
}

size_t Receiver::drain() {
  region_->control().heartbeat.fetch_add(1, std::memory_order_relaxed);
  collector::RawBytes raw;
  std::vector<collector::RingPiece> pieces;
  reader_.drain(raw, pieces, size_t{1} << 20);
  size_t count = 0;
  for (const collector::RingPiece& piece : pieces) {
    Stream& stream = streams_[piece.slot];
    if (piece.broken && wrong_.empty()) wrong_ = "a ring was given up";
    collector::WireReader events({raw.data() + piece.offset, piece.bytes});
    collector::WireEvent event;
    for (; events.next(event); ++count) check(piece.slot, stream, event);
    if (events.damaged() + events.unknown() != 0 && wrong_.empty()) wrong_ = "damaged events";
  }
  return count;
}

void Receiver::check(uint32_t slot, Stream& stream, const collector::WireEvent& event) {
  const uint64_t number = ++stream.received;
  const size_t words = words_of(stream.seed, number, region_->layout().ring_bytes);
  bool right = event.head.kind == schema::EventKind::kNote && event.head.tick == number &&
               event.head.words == words && event.text.size() == (words - kHeadWords) * 8;
  for (size_t i = kHeadWords; right && i < words; ++i) {
    uint64_t word = 0;
    std::memcpy(&word, event.text.data() + (i - kHeadWords) * 8, 8);
    right = word == mixed(stream.seed + i, number);
  }
  if (right || !wrong_.empty()) return;
  wrong_ = "ring " + std::to_string(slot) + ": not event " + std::to_string(number) + " but " +
           std::to_string(event.head.tick);
}

}  // namespace heapledger::testing
