// SPDX-License-Identifier: Apache-2.0
// The heap's resident bytes at one moment, each on one line: requested by a live block; header,
// rounding or tail; the allocator's own; free, by where the free chunk is kept; never used.
//
// What is live is certain: it comes from the recorded calls. Where a free chunk is kept (a thread's
// cache, a bin, the top) only the allocator knows, so that is asked of a model of it that was run
// over the same calls (whatif/model.h). Between two live chunks the model's pieces must tile the
// gap exactly; where they do not, the model's heap is not the recorded one there (threads that
// raced otherwise), and the gap is free without a kind.
//
// Invariant: the lines of all parts add up to the resident bytes of the held memory.
// Thread safety: plain values. Memory: the gaps with resident bytes, until they are classified.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "analyzer/replay/map_notes.h"
#include "analyzer/replay/replay.h"
#include "analyzer/whatif/model.h"

namespace heapledger::analyzer {

struct HeapPart {
  std::string name;  // "main heap", "arena 2", "mapped blocks".
  uint64_t size_bytes = 0;
  uint64_t requested = 0;
  uint64_t overhead = 0;  // Headers, rounding, tails of mappings.
  uint64_t own = 0;
  uint64_t in_cache = 0, in_bins = 0, in_top = 0;
  uint64_t free_unknown = 0;  // Free, of a kind that is not known.
  uint64_t never_used = 0;
  uint64_t kernel_bytes = 0;  // Resident by pagemap, where the ledger is of a snapshot.

  uint64_t resident_bytes() const {
    return requested + overhead + own + in_cache + in_bins + in_top + free_unknown + never_used;
  }
};

class HeapLedger {
 public:
  HeapLedger() = default;
  // As the replay stands now.
  HeapLedger(const Replay& replay, const ArenaHeaps& arenas);

  // Gives the gaps their kinds, once: `pieces` are the model's, in recorded addresses. Without
  // pieces only the end of the brk heap is known to be the top.
  void classify(std::vector<FreePiece> pieces);
  // Of each part what the kernel said; `resident` are sorted ranges.
  void set_kernel_bytes(const AddressRanges& resident);

  int64_t at_ns() const { return at_ns_; }
  const std::vector<HeapPart>& parts() const { return parts_; }
  uint64_t resident_bytes() const;
  uint64_t held_bytes() const { return held_bytes_; }
  uint64_t unfaulted_bytes() const { return unfaulted_bytes_; }
  uint64_t touched_absent_bytes() const { return touched_absent_bytes_; }

 private:
  struct Gap {
    uint64_t start, end;
    uint64_t used_end;  // Bytes above it were never used.
    size_t ranges;      // First of its resident ranges,
    size_t ranges_end;
    uint32_t part;
    bool is_last;  // Of the brk heap.
  };
  struct Extent {
    uint64_t address, size, usable;
  };
  struct Held {
    uint64_t start, end;
    uint32_t part;
  };

  uint32_t part_of(uint64_t start, const HeldRange& range, const ArenaHeaps& arenas);
  void walk(uint64_t start, const HeldRange& range, uint32_t part, const MemoryMap& memory,
            const std::vector<Extent>& blocks, size_t& next);
  void add_gap(uint64_t start, uint64_t end, uint32_t part, const MemoryMap& memory, bool is_last);
  bool classify_gap(const Gap& gap, const std::vector<FreePiece>& pieces, size_t& next);
  void add_free(const Gap& gap, uint64_t start, uint64_t end, uint64_t HeapPart::*kind);
  uint64_t resident_in(const Gap& gap, uint64_t start, uint64_t end) const;

  int64_t at_ns_ = 0;
  uint64_t held_bytes_ = 0, unfaulted_bytes_ = 0, touched_absent_bytes_ = 0;
  std::vector<HeapPart> parts_;
  std::vector<Held> held_;
  std::vector<Gap> gaps_;
  AddressRanges gap_ranges_;  // What is resident of the gaps.
};

}  // namespace heapledger::analyzer
