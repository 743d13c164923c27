// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay/heap_ledger.h"

#include <algorithm>
#include <limits>

namespace heapledger::analyzer {

namespace {

constexpr uint64_t kHeapBytesMax = 64 << 20;

const char* const kMainName = "main heap";
const char* const kMappedName = "mapped blocks";

uint64_t resident_bytes_of(const PageSet& resident, uint64_t start, uint64_t end) {
  if (start >= end) return 0;
  // Most blocks are within a page.
  if (start / kPageBytes == (end - 1) / kPageBytes) {
    return resident.contains(start) ? end - start : 0;
  }
  return resident.bytes(start, end);
}

}  // namespace

HeapLedger::HeapLedger(const Replay& replay, const ArenaHeaps& arenas) : at_ns_(replay.now_ns()) {
  const MemoryMap& memory = replay.memory();
  held_bytes_ = memory.held_bytes();
  std::vector<Extent> blocks;
  blocks.reserve(replay.live().blocks());
  replay.live().for_each([&](const Block& block) {
    blocks.push_back({block.address, block.size, block.usable});
  });
  std::sort(blocks.begin(), blocks.end(),
            [](const Extent& a, const Extent& b) { return a.address < b.address; });
  size_t next = 0;
  for (const auto& [start, range] : memory.held().ranges()) {
    const uint32_t part = part_of(start, range, arenas);
    parts_[part].size_bytes += range.end - start;
    held_.push_back({start, range.end, part});
    unfaulted_bytes_ += memory.unfaulted().bytes(start, range.end);
    touched_absent_bytes_ += memory.touched_absent().bytes(start, range.end);
    walk(start, range, part, memory, blocks, next);
  }
}

uint32_t HeapLedger::part_of(uint64_t start, const HeldRange& range, const ArenaHeaps& arenas) {
  std::string name = range.kind == RangeKind::kMapped ? kMappedName : kMainName;
  if (range.kind == RangeKind::kHeap) {
    const auto after = arenas.upper_bound(start);
    // Else: a mapping that stands in for the break.
    if (after != arenas.begin() && start - std::prev(after)->first < kHeapBytesMax) {
      name = "arena " + std::to_string(std::prev(after)->second);
    }
  }
  for (uint32_t i = 0; i < parts_.size(); ++i) {
    if (parts_[i].name == name) return i;
  }
  parts_.push_back({});
  parts_.back().name = name;
  return static_cast<uint32_t>(parts_.size() - 1);
}

void HeapLedger::walk(uint64_t start, const HeldRange& range, uint32_t part_number,
                      const MemoryMap& memory, const std::vector<Extent>& blocks, size_t& next) {
  HeapPart& part = parts_[part_number];
  const auto resident = [&](uint64_t from, uint64_t to) {
    return resident_bytes_of(memory.resident(), from, to);
  };
  const bool mapped = range.kind == RangeKind::kMapped;
  uint64_t cursor = start;
  bool has_block = false;
  for (; next < blocks.size() && blocks[next].address < range.end; ++next) {
    const Extent& block = blocks[next];
    if (block.address < start + kHeaderBytes) continue;
    has_block = true;
    const uint64_t chunk = std::max(cursor, block.address - kHeaderBytes);
    if (mapped) {
      part.overhead += resident(cursor, chunk);  // There for the block's alignment.
    } else {
      add_gap(cursor, chunk, part_number, memory, false);
    }
    const uint64_t body = std::max(cursor, block.address);
    const uint64_t end = std::max(body, std::min(block.address + block.usable, range.end));
    const uint64_t requested_end = std::clamp(block.address + block.size, body, end);
    part.overhead += resident(chunk, body) + resident(requested_end, end);
    part.requested += resident(body, requested_end);
    cursor = std::max(cursor, end);
  }
  if (mapped && has_block) {
    part.overhead += resident(cursor, range.end);
  } else {
    add_gap(cursor, range.end, part_number, memory, range.kind == RangeKind::kBreak);
  }
}

void HeapLedger::add_gap(uint64_t start, uint64_t end, uint32_t part, const MemoryMap& memory,
                         bool is_last) {
  const uint64_t bytes = resident_bytes_of(memory.resident(), start, end);
  if (bytes == 0) return;
  if (end - start < kChunkBytesMin) {
    parts_[part].overhead += bytes;
    return;
  }
  // Windows of use are smaller than gaps may be: the one with the gap's last resident byte counts.
  uint64_t used_end = memory.used().end_at(start);
  for (uint64_t at = start + kHeapBytesMax; used_end < end && at < end + kHeapBytesMax;
       at += kHeapBytesMax) {
    used_end = std::max(used_end, memory.used().end_at(std::min(at, end - 1)));
  }
  const size_t ranges = gap_ranges_.size();
  memory.resident().for_each(start, end, [&](uint64_t page) {
    const uint64_t from = std::max(start, page);
    const uint64_t to = std::min(end, page + kPageBytes);
    if (gap_ranges_.size() > ranges && gap_ranges_.back().second == from) {
      gap_ranges_.back().second = to;
    } else {
      gap_ranges_.emplace_back(from, to);
    }
  });
  gaps_.push_back({start, end, used_end, ranges, gap_ranges_.size(), part, is_last});
}

uint64_t HeapLedger::resident_in(const Gap& gap, uint64_t start, uint64_t end) const {
  const auto range = [&](size_t index) {
    return gap_ranges_.begin() + static_cast<std::ptrdiff_t>(index);
  };
  uint64_t bytes = 0;
  for (auto it = std::partition_point(range(gap.ranges), range(gap.ranges_end),
                                      [&](const auto& known) { return known.second <= start; });
       it != range(gap.ranges_end) && it->first < end; ++it) {
    bytes += std::min(end, it->second) - std::max(start, it->first);
  }
  return bytes;
}

// Above the end of use nothing was ever anybody's.
void HeapLedger::add_free(const Gap& gap, uint64_t start, uint64_t end, uint64_t HeapPart::*kind) {
  const uint64_t used = std::clamp(gap.used_end, start, end);
  parts_[gap.part].*kind += resident_in(gap, start, used);
  parts_[gap.part].never_used += resident_in(gap, used, end);
}

bool HeapLedger::classify_gap(const Gap& gap, const std::vector<FreePiece>& pieces, size_t& next) {
  while (next < pieces.size() && pieces[next].end <= gap.start) ++next;
  size_t last = next;
  uint64_t cursor = gap.start;
  for (; last < pieces.size() && cursor < gap.end; ++last) {
    if (pieces[last].start != cursor) return false;
    cursor = pieces[last].end;
  }
  if (cursor != gap.end) return false;
  for (size_t i = next; i < last; ++i) {
    const FreePiece& piece = pieces[i];
    switch (piece.kind) {
      case heap::FreeKind::kOwn:
        parts_[gap.part].own += resident_in(gap, piece.start, piece.end);
        break;
      case heap::FreeKind::kCache:
        parts_[gap.part].in_cache += resident_in(gap, piece.start, piece.end);
        break;
      case heap::FreeKind::kBin:
        parts_[gap.part].in_bins += resident_in(gap, piece.start, piece.end);
        break;
      case heap::FreeKind::kTop:
        add_free(gap, piece.start, piece.end, &HeapPart::in_top);
        break;
    }
  }
  next = last;
  return true;
}

void HeapLedger::classify(std::vector<FreePiece> pieces) {
  std::sort(pieces.begin(), pieces.end(),
            [](const FreePiece& a, const FreePiece& b) { return a.start < b.start; });
  size_t next = 0;
  for (const Gap& gap : gaps_) {
    if (classify_gap(gap, pieces, next)) continue;
    const bool top = gap.is_last && pieces.empty();
    add_free(gap, gap.start, gap.end, top ? &HeapPart::in_top : &HeapPart::free_unknown);
  }
  gaps_.clear();
  gap_ranges_.clear();
}

void HeapLedger::set_kernel_bytes(const AddressRanges& resident) {
  size_t next = 0;
  for (const Held& held : held_) {
    while (next < resident.size() && resident[next].second <= held.start) ++next;
    for (size_t i = next; i < resident.size() && resident[i].first < held.end; ++i) {
      parts_[held.part].kernel_bytes +=
          std::min(held.end, resident[i].second) - std::max(held.start, resident[i].first);
    }
  }
}

uint64_t HeapLedger::resident_bytes() const {
  uint64_t bytes = 0;
  for (const HeapPart& part : parts_) bytes += part.resident_bytes();
  return bytes;
}

}  // namespace heapledger::analyzer
