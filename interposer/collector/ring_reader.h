// SPDX-License-Identifier: Apache-2.0
// The consuming end of one region's rings: copies what lies between tail and head, moves the tail,
// wakes producers that wait for room.
//
// The tail is kept here, in memory the program cannot reach; what the slot says is only written. A
// head that cannot be (behind the tail, farther than the ring is long, odd) means that the program
// wrote over the slot: the ring is given up, its tail follows its head so that nobody waits, and
// `broken` tells the decoder to count what was lost.
//
// Thread safety: one thread (drain). Cost: an acquire load per idle ring.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "interposer/collector/region.h"

namespace heapledger::collector {

// Bytes of one ring inside a window.
struct RingPiece {
  RegionPtr region;
  uint32_t slot;
  bool broken;    // The slot's numbers made no sense; no bytes.
  size_t offset;  // Into the window's bytes; a multiple of 8.
  size_t bytes;
};

// A growing buffer that leaves fresh bytes as they are (a vector would clear what is overwritten).
class RawBytes {
 public:
  RawBytes() = default;
  ~RawBytes();
  RawBytes(RawBytes&& other) noexcept { swap(other); }
  RawBytes& operator=(RawBytes&& other) noexcept {
    swap(other);
    return *this;
  }

  void reserve(size_t count);
  std::byte* extend(size_t count);  // The place for `count` more bytes. Throws std::bad_alloc.
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  size_t capacity() const { return capacity_; }

 private:
  void swap(RawBytes& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
  }
  std::byte* data_ = nullptr;  // From malloc: realloc moves pages, not bytes.
  size_t size_ = 0;
  size_t capacity_ = 0;
};

class RingReader {
 public:
  explicit RingReader(RegionPtr region);

  // Copies from every ring until `bytes_max` is passed. False: stopped there, more may be left.
  bool drain(RawBytes& raw, std::vector<RingPiece>& pieces, size_t bytes_max);

  // Is a ring half full? Then there is no time to sleep.
  bool is_pressing() const;

  const RegionPtr& region() const { return region_; }

 private:
  struct Tail {
    uint64_t position = 0;
    bool broken = false;
  };
  void drain_ring(uint32_t slot, uint64_t head, RawBytes& raw, std::vector<RingPiece>& pieces);
  void publish_tail(schema::RingSlot& ring, uint64_t position);

  RegionPtr region_;
  std::vector<Tail> tails_;
  uint32_t next_ = 0;  // Where a round that stopped early goes on.
};

}  // namespace heapledger::collector
