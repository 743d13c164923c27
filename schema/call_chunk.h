// SPDX-License-Identifier: Apache-2.0
// Some calls of one thread, column by column, on their way from a ring into an encoder.
//
// Rows with all their fields are six times as long as what most calls have to say, and to ask each
// of them what it has is most of the work of packing. Here a column of the fields that all calls
// have is filled from end to end, and lists say which rows have the others.
//
// Invariants. 1. Kinds are calls; lists ascend. 2. A row that is not in `rare` has no alignment and
// no old address, ended when it began, has an address that is a multiple of 16 but not 0; if it
// began a block its usable size is usable_by_rule(size), else it has neither size. Thread safety:
// none; some 14 KiB, so that one stays in the processor's nearest cache.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "schema/event_batch.h"

namespace heapledger::schema {

struct CallChunk {
  static constexpr size_t kRows = 256;
  template <typename T>
  using Column = std::array<T, kRows>;

  // Some rows, by index.
  class List {
   public:
    // Fills it anew, with the count in a register.
    class Filler {
     public:
      explicit Filler(List& list) : list_(list) {}
      ~Filler() { list_.count_ = count_; }
      Filler(const Filler&) = delete;
      Filler& operator=(const Filler&) = delete;
      void add_if(size_t row, bool wanted) {
        list_.rows_[count_] = static_cast<uint16_t>(row);
        count_ += wanted ? 1 : 0;
      }

     private:
      List& list_;
      size_t count_ = 0;
    };
    std::span<const uint16_t> rows() const { return {rows_.data(), count_}; }
    const uint16_t* begin() const { return rows_.data(); }
    const uint16_t* end() const { return rows_.data() + count_; }

   private:
    Column<uint16_t> rows_;
    size_t count_ = 0;
  };

  size_t count = 0;
  uint32_t thread = 0;
  bool rises = true;  // Each row is later than the one before.

  Column<int64_t> time_ns;
  Column<uint16_t> kind;  // EventKind; above it the flags, of which those in kStoredFlags count.
  Column<uint64_t> address;
  // Of the rows that the lists name; what stands at others means nothing.
  List takes, ends, stacked, rare;
  Column<uint64_t> id;        // takes; 0: it began no block after all.
  Column<uint64_t> size;      // takes and rare; perhaps 0.
  Column<uint64_t> ended_id;  // ends; 0: it ended none.
  Column<uint32_t> stack;     // stacked: not 0.
  // Of rare rows.
  Column<uint64_t> usable, alignment, old_address;
  Column<int64_t> ended_ns;

  static constexpr uint16_t kind_of(EventKind kind, uint8_t flags) {
    return static_cast<uint16_t>(static_cast<unsigned>(kind) | unsigned{flags} << 8);
  }
  EventKind kind_at(size_t row) const { return static_cast<EventKind>(kind[row] & 0xff); }
  uint8_t flags_at(size_t row) const { return static_cast<uint8_t>(kind[row] >> 8 & kStoredFlags); }

  // Takes over rows, at most kRows; their threads are the caller's to know.
  void assign(std::span<const CallRow> rows);
  // As rows; there must be room for `count`.
  void copy_to(std::span<CallRow> rows) const;
};

}  // namespace heapledger::schema
