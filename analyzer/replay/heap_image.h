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
// Pinners. The break can fall to the end of the highest live chunk, less what trimming keeps
// (top_pad, page rounding), if that leaves at least trim_threshold. Going down from the break,
// live blocks are grouped by stack: row k says how much more would go back if the blocks of its
// stack were freed too, those of the rows before it being gone. For the first row that is simply
// what freeing them returns.
// Thread safety: plain values. Cost: sorts the live blocks.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "analyzer/replay/replay.h"

namespace heapledger::analyzer {

inline constexpr uint64_t kChunkBytesMin = 32;

// What decides how much of a free top goes back.
struct TrimSettings {
  uint64_t trim_threshold = 128 * 1024;
  uint64_t top_pad = 128 * 1024;
};
// The settings in force at a time: those the process began with, and what changed them.
TrimSettings trim_settings_at(schema::Database& db, const ProcessInfo& process, int64_t time_ns);

struct HistogramRow {
  uint64_t bytes_min = 0, bytes_max = 0;  // Both inclusive.
  uint64_t chunks = 0, bytes = 0;
};

struct Pinner {
  uint32_t stack = 0;
  uint64_t bytes_released_if_freed = 0;
  uint64_t own_bytes = 0;  // Of their chunks; what is released beyond them is free already.
  uint64_t blocks = 0;
  int64_t age_ns = 0;  // Of the oldest.
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
  std::vector<HistogramRow> free_histogram;
  std::vector<Pinner> pinners;

  double external() const;
  double internal() const;
};

// `resident_known`: the replay knows which pages are resident.
HeapImage make_heap_image(const Replay& replay, int64_t at_ns, const TrimSettings& trim,
                          bool resident_known);

}  // namespace heapledger::analyzer
