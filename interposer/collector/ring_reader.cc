// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/ring_reader.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "interposer/collector/futex.h"

namespace heapledger::collector {

RawBytes::~RawBytes() { std::free(data_); }

void RawBytes::reserve(size_t count) {
  if (count <= capacity_) return;
  void* grown = std::realloc(data_, count);
  if (grown == nullptr) throw std::bad_alloc();
  data_ = static_cast<std::byte*>(grown);
  capacity_ = count;
}

std::byte* RawBytes::extend(size_t count) {
  if (size_ + count > capacity_) reserve(std::max({size_ + count, capacity_ * 2, size_t{4096}}));
  std::byte* place = data_ + size_;
  size_ += count;
  return place;
}

RingReader::RingReader(RegionPtr region) : region_(std::move(region)) {}

bool RingReader::drain(RawBytes& raw, std::vector<RingPiece>& pieces, size_t bytes_max) {
  // The high-water mark only grows; where it does not, it was written over.
  if (tails_.size() < region_->ring_slots_used()) tails_.resize(region_->ring_slots_used());
  const auto count = static_cast<uint32_t>(tails_.size());
  if (next_ >= count) next_ = 0;
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t slot = next_;
    next_ = next_ + 1 == count ? 0 : next_ + 1;
    // Acquire: pairs with the producer's release after it wrote the events below head.
    const uint64_t head = region_->ring_slot(slot).head.load(std::memory_order_acquire);
    if (head == tails_[slot].position) continue;
    drain_ring(slot, head, raw, pieces);
    if (raw.size() >= bytes_max && i + 1 < count) return false;
  }
  return true;
}

bool RingReader::is_pressing() const {
  for (uint32_t slot = 0; slot < tails_.size(); ++slot) {
    const uint64_t head = region_->ring_slot(slot).head.load(std::memory_order_seq_cst);
    if (head - tails_[slot].position >= region_->layout().ring_bytes / 2) return true;
  }
  return false;
}

void RingReader::drain_ring(uint32_t slot, uint64_t head, RawBytes& raw,
                            std::vector<RingPiece>& pieces) {
  Tail& tail = tails_[slot];
  schema::RingSlot& ring = region_->ring_slot(slot);
  const uint64_t ring_bytes = region_->layout().ring_bytes;
  const uint64_t fresh = head - tail.position;
  if (fresh > ring_bytes || fresh % 8 != 0) tail.broken = true;
  if (tail.broken) {
    pieces.push_back({region_, slot, true, raw.size(), 0});
  } else {
    const std::byte* data = region_->ring_data(slot);
    const uint64_t start = tail.position % ring_bytes;
    const size_t first = std::min(fresh, ring_bytes - start);
    const size_t offset = raw.size();
    std::byte* place = raw.extend(fresh);
    std::memcpy(place, data + start, first);
    std::memcpy(place + first, data, fresh - first);
    pieces.push_back({region_, slot, false, offset, fresh});
  }
  tail.position = head;
  publish_tail(ring, head);
}

void RingReader::publish_tail(schema::RingSlot& ring, uint64_t position) {
  // seq_cst on both: either we see that the producer waits, or it sees the new tail before it
  // sleeps (it sets `waiting`, then looks at the tail again).
  ring.tail.store(position, std::memory_order_seq_cst);
  if (ring.waiting.load(std::memory_order_seq_cst) == 0) return;
  ring.tail_futex.fetch_add(1, std::memory_order_release);
  futex_wake(ring.tail_futex);
}

}  // namespace heapledger::collector
