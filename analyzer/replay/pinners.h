// SPDX-License-Identifier: Apache-2.0
// Who keeps free memory from going back to the system.
//
// The allocator gives back the end of the brk heap, and the end of each arena's last heap, from the
// highest chunk in use on: less what trimming keeps (top_pad, page rounding), and only if that much
// is free there (trim_threshold). So the highest chunks hold everything below them. Going down from
// the end, chunks in use are grouped by stack; row k says
//   held:     what more would go back if its chunks did not exist, those of the rows before being
//             gone too. Rows add up: no byte is held twice.
//   released: what their free() would give back at once. Less than held where blocks go to the
//             freeing thread's cache (taken to be the thread that allocated them, in order of
//             address) or to a fastbin, where they keep their place until they leave it.
// A row of freed chunks (`state`) names memory that nobody has any more and that is still held.
//
// Inside the heap nothing goes back without malloc_trim; there a page's free bytes are in RSS for
// the sake of the live blocks on it: PageHolder. Pages of several stacks are shared out by live
// bytes, so rows add up to the free bytes on pages with live blocks.
// Thread safety: pure. Cost: some ns per chunk in use.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "analyzer/replay/heap_chunks.h"

namespace heapledger::analyzer {

// What decides how much of a free end goes back.
struct TrimSettings {
  uint64_t trim_threshold = 128 * 1024;
  uint64_t top_pad = 128 * 1024;
  // Heaps of each secondary arena by address, oldest first.
  std::vector<std::vector<uint64_t>> heap_chains;
};
// The settings in force at a time: those the process began with, and what changed them.
TrimSettings trim_settings_at(schema::Database& db, const ProcessInfo& process, int64_t time_ns);

struct Pinner {
  uint64_t heap = 0;  // 0: the brk heap; else the address of an arena's last heap.
  uint32_t stack = 0;
  ChunkState state = ChunkState::kLive;
  uint32_t thread = 0;  // Of the highest.
  uint64_t bytes_released_if_freed = 0;
  uint64_t held_bytes = 0;
  std::optional<uint64_t> held_resident_bytes;  // What RSS would fall by; with held_bytes.
  uint64_t own_bytes = 0;  // Of their chunks; what is held beyond them is free already.
  uint64_t blocks = 0;
  uint64_t cached_blocks = 0;  // Of them: would go to a cache or fastbin, or are there.
  int64_t age_ns = 0;          // Of the oldest; 0 where freed.
};

std::vector<Pinner> find_pinners(const HeapState& heap, std::span<const HeapChunk> chunks,
                                 const TrimSettings& trim, int64_t at_ns, bool resident_known);

struct PageHolder {
  uint32_t stack = 0;
  uint64_t pages = 0;       // Of them with free bytes, that it alone holds or shares.
  uint64_t live_bytes = 0;  // Of its chunks, on those pages.
  uint64_t free_bytes = 0;  // Its share.
};

// By free bytes, most first.
std::vector<PageHolder> find_page_holders(const HeapState& heap, std::span<const HeapChunk> chunks);

}  // namespace heapledger::analyzer
