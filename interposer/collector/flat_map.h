// SPDX-License-Identifier: Apache-2.0
// A hash map from 64-bit keys to 32-bit values that only grows: open addressing, linear probing,
// one cache line touched per lookup as a rule. Key 0 is not allowed.
//
// Why our own: a call needs about five lookups, and std::unordered_map's two dependent cache misses
// each would be most of the time per event.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace heapledger::collector {

class FlatMap {
 public:
  FlatMap() : slots_(size_t{1} << kFirstBits) {}

  // The value's place; 0 in it means that the key is new, and the caller stores a value other than
  // 0 before it inserts again. Valid until the next call.
  uint32_t& at(uint64_t key) {
    if (used_ * 2 > slots_.size()) grow();
    Slot& slot = find(key);
    if (slot.key == 0) {
      slot.key = key;
      ++used_;
    }
    return slot.value;
  }

  // The value of a key, 0 if there is none.
  uint32_t value(uint64_t key) { return find(key).value; }

  void clear() {
    slots_.assign(slots_.size(), Slot{});
    used_ = 0;
  }
  size_t size() const { return used_; }

 private:
  struct Slot {
    uint64_t key = 0;
    uint32_t value = 0;
  };
  static constexpr int kFirstBits = 8;

  Slot& find(uint64_t key) {
    // Multiplicative hashing: the top bits of the product depend on every bit of the key.
    Slot* const slots = slots_.data();
    size_t index = static_cast<size_t>((key * 0x9E3779B97F4A7C15U) >> shift_);
    while (slots[index].key != key && slots[index].key != 0) {
      index = (index + 1) & (slots_.size() - 1);
    }
    return slots[index];
  }

  void grow() {
    std::vector<Slot> old(slots_.size() * 2);
    old.swap(slots_);
    --shift_;
    for (const Slot& slot : old) {
      if (slot.key != 0) find(slot.key) = slot;
    }
  }

  std::vector<Slot> slots_;
  size_t used_ = 0;
  int shift_ = 64 - kFirstBits;
};

}  // namespace heapledger::collector
