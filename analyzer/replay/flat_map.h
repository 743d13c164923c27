// SPDX-License-Identifier: Apache-2.0
// A hash table from a non-zero 64-bit key to a 32-bit index: what the replay does twice per event.
//
// Open addressing in one array, linear probing, deletion by moving later entries back, at most
// 62 % full. Neighbouring keys (block ids count up) share a cache line: the hash mixes all but the
// low two bits of the key and leaves those as they are. Groups are scattered, so that a long-lived
// run of ids does not become one long run of probes.
// Thread safety: none. Cost: about one cache miss per operation on a large table.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace heapledger::analyzer {

class FlatMap {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;

  FlatMap() : entries_(kSizeMin), mask_(kSizeMin - 1) {}

  // The value of `key`, or kNone.
  uint32_t find(uint64_t key) const {
    for (size_t place = home(key);; place = (place + 1) & mask_) {
      if (entries_[place].key == key) return entries_[place].value;
      if (entries_[place].key == 0) return kNone;
    }
  }

  // Sets the value of `key`; returns the one it had, or kNone.
  uint32_t put(uint64_t key, uint32_t value) {
    if ((used_ + 1) * 8 > entries_.size() * 5) grow();
    for (size_t place = home(key);; place = (place + 1) & mask_) {
      if (entries_[place].key == key) {
        const uint32_t old = entries_[place].value;
        entries_[place].value = value;
        return old;
      }
      if (entries_[place].key == 0) {
        entries_[place] = {key, value};
        ++used_;
        return kNone;
      }
    }
  }

  // Takes `key` out; returns the value it had, or kNone.
  uint32_t take(uint64_t key) {
    size_t place = home(key);
    while (entries_[place].key != key) {
      if (entries_[place].key == 0) return kNone;
      place = (place + 1) & mask_;
    }
    const uint32_t value = entries_[place].value;
    close_gap(place);
    --used_;
    return value;
  }

  size_t size() const { return used_; }

 private:
  struct Entry {
    uint64_t key = 0;  // 0: empty.
    uint32_t value = 0;
  };
  static constexpr size_t kSizeMin = 1024;
  static constexpr int kGroupBits = 2;

  size_t home(uint64_t key) const {
    uint64_t mixed = (key >> kGroupBits) * 0x9E3779B97F4A7C15u;
    mixed ^= mixed >> 32;
    return ((mixed << kGroupBits) | (key & ((1u << kGroupBits) - 1))) & mask_;
  }

  void close_gap(size_t gap) {
    for (size_t place = (gap + 1) & mask_; entries_[place].key != 0; place = (place + 1) & mask_) {
      // An entry may move back to the gap if the gap is not before its home.
      if (((place - home(entries_[place].key)) & mask_) >= ((place - gap) & mask_)) {
        entries_[gap] = entries_[place];
        gap = place;
      }
    }
    entries_[gap].key = 0;
  }

  void grow() {
    std::vector<Entry> old(entries_.size() * 2);
    old.swap(entries_);
    mask_ = entries_.size() - 1;
    used_ = 0;
    for (const Entry& entry : old) {
      if (entry.key != 0) put(entry.key, entry.value);
    }
  }

  std::vector<Entry> entries_;
  size_t mask_;
  size_t used_ = 0;
};

}  // namespace heapledger::analyzer
