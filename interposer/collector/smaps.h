// SPDX-License-Identifier: Apache-2.0
// The lines of /proc/PID/smaps as rows of table `region`, each with its kind.
//
// Kinds that a mapping's own line decides: text, data, file, heap, stack, vdso, shared, recorder
// (the memfd of our rings). Two are told by their neighbours: an anonymous mapping right behind a
// file's data is that file's bss; one right behind a guard mapping is a thread's stack. "block"
// (the allocator's own mappings) is decided by the writer, which knows the allocator's system
// calls; here such a mapping is "anonymous".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace heapledger::collector {

enum class RegionKind : uint8_t {
  kText,
  kData,
  kBss,
  kHeap,
  kBlock,
  kFile,
  kAnonymous,
  kStack,
  kThreadStack,
  kRecorder,
  kVdso,
  kShared
};
const char* region_kind_name(RegionKind kind);

struct MemoryRegion {
  uint64_t start = 0;
  uint64_t end = 0;
  RegionKind kind = RegionKind::kAnonymous;
  std::string name;
  std::string permissions;  // As "rw-p".
  uint64_t inode = 0;       // Of the file; 0: none.
  uint64_t rss_bytes = 0;
  uint64_t pss_bytes = 0;
  uint64_t swap_bytes = 0;
  uint64_t private_dirty_bytes = 0;
  uint64_t anonymous_bytes = 0;
  uint64_t huge_bytes = 0;
  uint64_t shared_bytes = 0;  // Of RSS: pages that other processes map, too.

  uint64_t size_bytes() const { return end - start; }
  // May the allocator own pages of it? Then its residency is worth recording. What looks like a
  // bss or a thread's stack may be a block's mapping that happens to lie there.
  bool may_be_heap() const {
    const bool anonymous = kind == RegionKind::kHeap || kind == RegionKind::kAnonymous ||
                           kind == RegionKind::kBss || kind == RegionKind::kThreadStack;
    return anonymous && permissions.starts_with("rw") && permissions.ends_with("p");
  }
};

// Lines that cannot be read are skipped.
std::vector<MemoryRegion> parse_smaps(std::string_view text);

}  // namespace heapledger::collector
