// SPDX-License-Identifier: Apache-2.0
// What the kernel said of a process at a snapshot, parted into the allocator's memory and the rest.
//
// The rest is read off smaps: files, stacks, the program's own mappings, and what heapledger itself
// takes (its library, its rings, the tables of its allocator and recorder). The kernel joins
// neighbouring mappings into one line of smaps; where such a line is the allocator's in part, the
// pages that pagemap showed say how much of it.
//
// Invariant: heap_bytes and the lines add up to rss_bytes, unless the process changed its mappings
// while smaps and pagemap were read.
// Thread safety: plain values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "analyzer/replay/map_notes.h"
#include "analyzer/replay/replay.h"

namespace heapledger::analyzer {

struct RssLine {
  std::string region, name;
  uint64_t bytes = 0;
};

struct KernelView {
  uint64_t rss_bytes = 0;
  uint64_t heap_bytes = 0;  // Of them the allocator's.
  std::vector<RssLine> other;
  AddressRanges resident;  // By pagemap, where the allocator may have memory.
  bool has_pages = false;  // Pagemap could be read.
  // Sums over smaps, of the whole process and of lines with the allocator's memory in them.
  uint64_t swap_bytes = 0, huge_bytes = 0, shared_bytes = 0;
  uint64_t heap_swap_bytes = 0, heap_huge_bytes = 0, heap_shared_bytes = 0;

  uint64_t other_bytes() const;
};

// `held`: what the allocator held while the snapshot was taken; `resident`: what the replay says,
// for where pagemap could not be read.
KernelView kernel_view(schema::Database& db, int64_t snapshot, const AddressRanges& held,
                       const AddressRanges& own, const PageSet& resident);

}  // namespace heapledger::analyzer
