// SPDX-License-Identifier: Apache-2.0
// Numbers to small numbers: what the encoders of packed batches look things up in.
//
// Both are emptied in constant time and keep their memory, since an encoder lives for many batches.
// Thread safety: none. Cost: a multiplication and mostly one cache line a look-up.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace heapledger::schema {

// A hash map from numbers to 32-bit values that is emptied in no time: open addressing, and an
// entry counts only if it was written in the present epoch.
class NumberMap {
 public:
  void start(size_t keys_max) {
    const size_t slots = std::bit_ceil(2 * keys_max + 2);
    if (entries_.size() < slots || ++epoch_ == 0) {
      entries_.assign(slots, {});
      epoch_ = 1;
    }
    shift_ = 64 - std::countr_zero(entries_.size());
  }
  // The value of a key, made (with `fresh`) if it has none.
  uint32_t& at(uint64_t key, uint32_t fresh, bool& inserted) {
    Entry& entry = entries_[slot_of(key)];
    inserted = entry.epoch != epoch_;
    if (inserted) entry = {key, fresh, epoch_};
    return entry.value;
  }
  // Or nullptr.
  const uint32_t* find(uint64_t key) const {
    const Entry& entry = entries_[slot_of(key)];
    return entry.epoch == epoch_ ? &entry.value : nullptr;
  }

 private:
  struct Entry {
    uint64_t key = 0;
    uint32_t value = 0;
    uint32_t epoch = 0;
  };
  size_t slot_of(uint64_t key) const {
    size_t slot = key * 0x9E3779B97F4A7C15u >> shift_;
    while (entries_[slot].epoch == epoch_ && entries_[slot].key != key) {
      slot = (slot + 1) & (entries_.size() - 1);
    }
    return slot;
  }

  std::vector<Entry> entries_;
  uint32_t epoch_ = 0;
  int shift_ = 0;
};

// The distinct values of a column, numbered in order of appearance.
struct Dictionary {
  NumberMap index;
  std::vector<uint64_t> values;

  void start(size_t rows) {
    index.start(rows);
    values.clear();
  }
  uint32_t number(uint64_t value) {
    bool inserted;
    const uint32_t number = index.at(value, static_cast<uint32_t>(values.size()), inserted);
    if (inserted) values.push_back(value);
    return number;
  }
};

}  // namespace heapledger::schema
