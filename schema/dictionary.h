// SPDX-License-Identifier: Apache-2.0
// Numbers to small numbers: what the encoders of packed batches look things up in.
//
// All keep their memory, since an encoder lives for many batches, and are emptied in no more time
// than filling them took.
// Thread safety: none. Cost: a multiplication and mostly one cache line a look-up; an index into an
// array for what is numbered densely (IdRows).
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
// entry counts only if it was written in the present epoch. It keeps the size it has grown to.
class NumberMap {
 public:
  void start() {
    used_ = 0;
    if (!entries_.empty() && ++epoch_ != 0) return;
    resize(std::max(entries_.size(), kFew));
  }
  // The value of a key, made (with `fresh`) if it has none.
  uint32_t& at(uint64_t key, uint32_t fresh, bool& inserted) {
    Entry* entry = &entries_[slot_of(key)];
    inserted = entry->epoch != epoch_;
    if (inserted) {
      if (2 * ++used_ > entries_.size()) {
        grow();
        entry = &entries_[slot_of(key)];
      }
      *entry = {key, fresh, epoch_};
    }
    return entry->value;
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

  static constexpr size_t kFew = 64;
  static_assert(std::has_single_bit(kFew));

  void resize(size_t entries) {
    entries_.assign(entries, {});
    epoch_ = 1;
    shift_ = 64 - std::countr_zero(entries);
  }
  void grow() {
    const std::vector<Entry> old = std::move(entries_);
    const uint32_t old_epoch = epoch_;
    resize(2 * old.size());
    for (const Entry& entry : old) {
      if (entry.epoch == old_epoch) entries_[slot_of(entry.key)] = {entry.key, entry.value, epoch_};
    }
  }

  std::vector<Entry> entries_;
  size_t used_ = 0;
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

  void start() {
    index.start();
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
  static constexpr uint32_t kNone = UINT32_MAX;

  void start(size_t rows) {
    places_.start();
    for (size_t i = 0; i < used_; ++i) slots_[i].rows.clear();
    used_ = 0;
    last_ = {};
    span_max_ = 2 * rows + 64;
    others_.start();
    has_others_ = false;
  }
  void put(uint64_t id, uint32_t row) {
    const uint64_t place = id - last_.first;
    if (place < last_.count) {
      last_.rows[place] = row + 1;
    } else {
      put_elsewhere(id, row);
    }
  }
  // kNone: in none.
  uint32_t find(uint64_t id) {
    const uint64_t place = id - last_.first;
    if (place < last_.count && last_.rows[place] != 0) return last_.rows[place] - 1;
    if (id >> kIdSequenceBits == last_.first >> kIdSequenceBits && !has_others_) return kNone;
    return find_elsewhere(id);
  }

 private:
  static constexpr size_t kSlotsMax = 4096;
  struct Slot {
    uint64_t first = 0;          // Id.
    std::vector<uint32_t> rows;  // By id - first; row + 1, 0: none.
  };
  // The slot that was last looked into: ids are mostly of one for long.
  struct View {
    uint64_t first = UINT64_MAX;
    uint64_t count = 0;
    uint32_t* rows = nullptr;
  };

  void look_at(Slot& slot) {
    const uint64_t until_next = (uint64_t{1} << kIdSequenceBits) - id_sequence(slot.first);
    last_ = {slot.first, std::min<uint64_t>(slot.rows.size(), until_next), slot.rows.data()};
  }
  // Null: unknown, or there are too many.
  Slot* slot_of(uint64_t id, bool make) {
    const uint64_t number = id >> kIdSequenceBits;
    const uint32_t* place = places_.find(number);
    if (place == nullptr) {
      if (!make || used_ == kSlotsMax) return nullptr;
      bool inserted;
      place = &places_.at(number, static_cast<uint32_t>(used_++), inserted);
      if (used_ > slots_.size()) slots_.emplace_back();
      slots_[*place].first = id;
    }
    return &slots_[*place];
  }
  void put_elsewhere(uint64_t id, uint32_t row) {
    Slot* slot = slot_of(id, true);
    const uint64_t place = slot == nullptr ? UINT64_MAX : id - slot->first;
    if (place >= span_max_) {
      bool inserted;
      others_.at(id, 0, inserted) = row;
      has_others_ = true;
      return;
    }
    if (place >= slot->rows.size()) {
      slot->rows.resize(std::max<size_t>(place + kRoom, 2 * slot->rows.size()));
    }
    slot->rows[place] = row + 1;
    look_at(*slot);
  }
  uint32_t find_elsewhere(uint64_t id) {
    if (Slot* slot = slot_of(id, false)) {
      look_at(*slot);
      const uint64_t place = id - slot->first;
      if (place < slot->rows.size() && slot->rows[place] != 0) return slot->rows[place] - 1;
    }
    if (!has_others_) return kNone;
    const uint32_t* row = others_.find(id);
    return row == nullptr ? kNone : *row;
  }
  static constexpr size_t kRoom = 64;

  NumberMap places_;  // Of slots.
  std::vector<Slot> slots_;
  size_t used_ = 0;
  View last_;
  size_t span_max_ = 0;
  NumberMap others_;
  bool has_others_ = false;
};

}  // namespace heapledger::schema
