// SPDX-License-Identifier: Apache-2.0
// Both ends of a ring, and events that can be told to be whole: each carries its number, and all
// else in it (its length too) follows from the number and a seed. So a reader needs nothing but
// the seed to see whether an event was lost, doubled, torn or made up.
//
// Thread safety: a Sender belongs to one thread, a Receiver to one thread; that is what is tested.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "interposer/collector/ring_reader.h"
#include "interposer/collector/wire_reader.h"
#include "interposer/trace/region.h"
#include "interposer/trace/ring_producer.h"

namespace heapledger::testing {

// A number that looks random and follows from the two.
uint64_t mixed(uint64_t seed, uint64_t number);

// Words of event `number` (from 1 on), its head included; at most half a ring.
size_t words_of(uint64_t seed, uint64_t number, uint64_t ring_bytes);

// The producing end: the shim's own RingProducer on one slot of a region that it mapped.
class Sender {
 public:
  Sender(const trace::Region& region, uint32_t slot, uint64_t seed);

  // Writes the next event; waits for room if it may. False: no room, or recording has ended.
  bool send(bool may_wait = true);
  uint64_t sent() const { return sent_; }

 private:
  uint64_t seed_;
  uint64_t ring_bytes_;
  uint64_t sent_ = 0;
  std::atomic<uint32_t> stopped_{0};
  trace::RingProducer::Shared shared_;
  trace::RingProducer producer_{};
};

// The collector's own mapping, as the program would see it. The thread sanitizer goes by addresses:
// over two mappings it would see nothing.
trace::Region same_mapping(const collector::Region& region);

// Maps the region of this descriptor as a program does. Aborts where that fails.
trace::Region map_as_program(int fd, uint64_t region_bytes);

// The reading end: the collector's RingReader, with a check of every event.
class Receiver {
 public:
  explicit Receiver(collector::RegionPtr region) : region_(region), reader_(std::move(region)) {}

  // The ring in this slot is sent to with this seed.
  void expect(uint32_t slot, uint64_t seed) { streams_[slot].seed = seed; }

  // One round over all rings, also a sign of life. Returns how many events came.
  size_t drain();

  uint64_t received(uint32_t slot) const { return streams_.at(slot).received; }
  const std::string& wrong() const { return wrong_; }  // The first thing that was; empty: none.

 private:
  struct Stream {
    uint64_t seed = 0;
    uint64_t received = 0;
  };
  void check(uint32_t slot, Stream& stream, const collector::WireEvent& event);

  collector::RegionPtr region_;
  collector::RingReader reader_;
  std::map<uint32_t, Stream> streams_;
  std::string wrong_;
};

}  // namespace heapledger::testing
