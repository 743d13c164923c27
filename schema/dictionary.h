// SPDX-License-Identifier: Apache-2.0
// Numbers to small numbers: what the encoders of packed batches look things up in.
//
// All keep their memory, since an encoder lives for many batches, and are emptied in no more time
// than filling them took.
// Thread safety: none. Cost: a multiplication and mostly one cache line a look-up; an index into an
// array for what is numbered densely (IdRows, StackNumbers).
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "schema/event.h"

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

// The distinct values of a column, numbered in order of appearance. For few values.
struct Dictionary {
  NumberMap index;
  std::vector<uint64_t> values;
  // The last number given for each of a few kinds of values: where few values alternate at random,
  // asking whether this one is the last would be a guess wrong each time.
  std::array<uint32_t, 256> recent{};

  void start(size_t rows) {
    index.start(rows);
    values.clear();
    recent.fill(0);
  }
  uint32_t number(uint64_t value) {
    uint32_t& guess = recent[value * 0x9E3779B97F4A7C15u >> 56];
    if (guess < values.size() && values[guess] == value) return guess;
    bool inserted;
    guess = index.at(value, static_cast<uint32_t>(values.size()), inserted);
    if (inserted) values.push_back(value);
    return guess;
  }
};

// In which row of a batch an id began. The sequences of a ring slot are dense, so each slot has an
// array from its first sequence of the batch on; what does not fit there is in a map.
class IdRows {
 public:
  void start(size_t rows) {
    places_.start(kSlotsMax);
    for (size_t i = 0; i < used_; ++i) slots_[i].rows.clear();
    used_ = 0;
    last_slot_ = UINT64_MAX;
    span_max_ = 2 * rows + 64;
    others_.start(rows);
    has_others_ = false;
  }
  void put(uint64_t id, uint32_t row) {
    Slot* slot = slot_of(id, true);
    const uint64_t place = slot == nullptr ? UINT64_MAX : id_sequence(id) - slot->first;
    if (place >= span_max_) {
      bool inserted;
      others_.at(id, 0, inserted) = row;
      has_others_ = true;
      return;
    }
    if (place >= slot->rows.size()) {
      slot->rows.resize(std::max<size_t>(place + 1, 2 * slot->rows.size()));
    }
    slot->rows[place] = row + 1;
  }
  // Asks for what find() will look at from memory.
  void prefetch(uint64_t id) const {
    if (id >> kIdSequenceBits != last_slot_) return;
    const Slot& slot = slots_[last_place_];
    const uint64_t place = id_sequence(id) - slot.first;
    if (place < slot.rows.size()) __builtin_prefetch(&slot.rows[place]);
  }
  // kNone: in none.
  uint32_t find(uint64_t id) {
    if (const Slot* slot = slot_of(id, false)) {
      const uint64_t place = id_sequence(id) - slot->first;
      if (place < slot->rows.size() && slot->rows[place] != 0) return slot->rows[place] - 1;
    }
    if (!has_others_) return kNone;
    const uint32_t* row = others_.find(id);
    return row == nullptr ? kNone : *row;
  }
  static constexpr uint32_t kNone = UINT32_MAX;

 private:
  static constexpr size_t kSlotsMax = 4096;
  struct Slot {
    uint64_t first = 0;
    std::vector<uint32_t> rows;  // By sequence - first; row + 1, 0: none.
  };
  // Null: unknown, or there are too many.
  Slot* slot_of(uint64_t id, bool make) {
    const uint64_t number = id >> kIdSequenceBits;
    if (number == last_slot_) return &slots_[last_place_];
    bool inserted = false;
    const uint32_t* place = places_.find(number);
    if (place == nullptr) {
      if (!make || used_ == kSlotsMax) return nullptr;
      place = &places_.at(number, static_cast<uint32_t>(used_++), inserted);
      if (used_ > slots_.size()) slots_.emplace_back();
      slots_[*place].first = id_sequence(id);
    }
    last_slot_ = number;
    last_place_ = *place;
    return &slots_[last_place_];
  }

  NumberMap places_;  // Of slots.
  std::vector<Slot> slots_;
  size_t used_ = 0;
  uint64_t last_slot_ = UINT64_MAX;
  size_t last_place_ = 0;
  size_t span_max_ = 0;
  NumberMap others_;
  bool has_others_ = false;
};

// The distinct stacks of a batch, numbered in order of appearance. Stack ids are dense over the
// whole trace, and those that are used near each other in time are near each other, so an array
// over all of them is mostly in the cache where a hash table would not be.
class StackNumbers {
 public:
  void start() {
    for (const uint32_t value : values_) {
      if (value < kDirectMax) direct_[value] = 0;
    }
    values_.clear();
    has_others_ = false;
  }
  void prefetch(uint32_t value) const {
    if (value < direct_.size()) __builtin_prefetch(&direct_[value]);
  }
  uint32_t number(uint32_t value) {
    if (value >= kDirectMax) return number_of_other(value);
    if (value >= direct_.size()) {
      direct_.resize(std::max<size_t>(value + size_t{1}, 2 * direct_.size()));
    }
    uint32_t& place = direct_[value];
    if (place == 0) {
      values_.push_back(value);
      place = static_cast<uint32_t>(values_.size());
    }
    return place - 1;
  }
  const std::vector<uint32_t>& values() const { return values_; }

 private:
  static constexpr uint32_t kDirectMax = 1U << 24;

  uint32_t number_of_other(uint32_t value) {
    if (!has_others_) others_.start(kBatchRowsMax);
    has_others_ = true;
    bool inserted;
    const uint32_t number = others_.at(value, static_cast<uint32_t>(values_.size()), inserted);
    if (inserted) values_.push_back(value);
    return number;
  }
  static constexpr size_t kBatchRowsMax = 1U << 20;

  std::vector<uint32_t> values_;
  std::vector<uint32_t> direct_;  // By stack: its number + 1, 0: none.
  NumberMap others_;              // For traces with more stacks than that.
  bool has_others_ = false;
};

}  // namespace heapledger::schema
