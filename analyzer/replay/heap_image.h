// SPDX-License-Identifier: Apache-2.0
// A heap at one moment: what of the held memory is live, header, rounding or free, and which live
// blocks keep free memory from going back to the system.
//
// Held ranges are walked in order of address. In memory that is cut into chunks, what lies between
// two live chunks is a free chunk (the allocator merges neighbours; pieces below the smallest
// chunk, 32 bytes, are rounding), and the last piece of the brk heap is its top. In a mapping made
// for one block everything behind the block is its tail. So
//     held = live (usable) + headers + tails and rounding + free.
//
// Freed chunks in a thread's cache or a fastbin are free, but pieces of their own: they merge with
// nothing while they are there. Who keeps free memory from going back: pinners.h.
// Thread safety: plain values. Cost: sorts the live blocks.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "analyzer/replay/pinners.h"
#include "analyzer/replay/replay.h"

namespace heapledger::analyzer {

struct HistogramRow {
  uint64_t bytes_min = 0, bytes_max = 0;  // Both inclusive.
  uint64_t chunks = 0, bytes = 0;
};

struct HeapImage {
  int64_t at_ns = 0;
  uint64_t held_bytes = 0;
  uint64_t live_bytes = 0;  // Usable.
  uint64_t requested_bytes = 0;
  uint64_t live_blocks = 0;
  uint64_t overhead_bytes = 0;  // Headers, tails of mappings, rounding.
  uint64_t free_bytes = 0;
  std::optional<uint64_t> free_resident_bytes;
  uint64_t largest_free_bytes = 0;
  // Of free_bytes: in threads' caches, in fastbins, at the end of the brk heap. The rest is in bins
  // or tops of other arenas.
  uint64_t cached_bytes = 0, fast_bytes = 0, top_bytes = 0;
  std::vector<HistogramRow> free_histogram;
  std::vector<Pinner> pinners;
  std::vector<PageHolder> page_holders;  // Empty where residency is not known.

  double external() const;
  double internal() const;
};

// `resident_known`: the replay knows which pages are resident.
HeapImage make_heap_image(const HeapState& heap, int64_t at_ns, const TrimSettings& trim,
                          bool resident_known);

}  // namespace heapledger::analyzer
