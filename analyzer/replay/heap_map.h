// SPDX-License-Identifier: Apache-2.0
// The heap as a picture: addresses one way, time the other, and what each piece of memory was.
//
// A *cell* is a run of addresses, a power of two long and aligned to its length: one OS page while
// that makes no more than kCellsMax cells at any moment, then two, four, ... A cell holds bytes, so
// cells of any length are exact: joining two adds them up. Of its bytes
//     live      resident, in a live chunk (header and rounding too) or a mapping for one block
//     free      resident, below a heap's last chunk in use, in no live chunk
//     top       resident, above it
//     untouched held from the system, never resident since
//     released  was resident and is not: trimmed, madvised or unmapped, held or not
// and what is left was not the allocator's. Cells of nothing but that are left out.
//
// Invariant: live + free + top over all cells are the heap's resident bytes, and these with
// untouched and what is released of held memory are the held bytes.
// Thread safety: plain values. Cost of a moment: 20 ns per live block, 100 ns per cell.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "analyzer/replay/replay.h"

namespace heapledger::analyzer {

struct MapCell {
  uint64_t index = 0;  // Address / cell bytes.
  uint64_t live = 0, free = 0, top = 0, untouched = 0, released = 0;

  bool operator==(const MapCell&) const = default;
  uint64_t bytes() const { return live + free + top + untouched + released; }
  void add(const MapCell& other);  // All but the index.
};

struct MapMoment {
  int64_t time_ns = 0;
  std::vector<MapCell> cells;  // By index.
};

class HeapMap {
 public:
  static constexpr size_t kCellsMax = 2048;

  // As the replay stands now. Where residency is not known, all that is held counts as resident.
  void add(const Replay& replay, int64_t time_ns, bool resident_known);
  // As they were stored; `cell_bytes` must be that of all.
  void add_stored(MapMoment moment, uint64_t cell_bytes);

  uint64_t cell_bytes() const { return cell_bytes_; }
  const std::vector<MapMoment>& moments() const { return moments_; }

 private:
  void double_cells();

  uint64_t cell_bytes_ = kPageBytes;
  std::vector<MapMoment> moments_;
};

// A moment as table `heap_map` has it: runs of equal cells, in varints (schema.sql). What is equal
// in the moment before is not written again.
std::vector<uint8_t> encode_map_cells(const MapMoment& moment, const MapMoment* before);
// Throws schema::Error where the bytes make no sense.
std::vector<MapCell> decode_map_cells(std::span<const uint8_t> bytes, const MapMoment* before);

}  // namespace heapledger::analyzer
