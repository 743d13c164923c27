// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay/heap_map.h"

#include <algorithm>
#include <limits>

#include "schema/error.h"

namespace heapledger::analyzer {

namespace {

constexpr uint64_t kAddressEnd = std::numeric_limits<uint64_t>::max() / kPageBytes * kPageBytes;

// One held range while its cells are filled.
struct MapRange {
  uint64_t start, end;
  size_t first;  // Its first cell.
  RangeKind kind;
  uint64_t used_end;  // Of its last chunk in use.
};

// What is not held and was resident once: in cells, by index.
std::vector<MapCell> released_cells(const MemoryMap& memory, uint64_t cell_bytes, size_t cells_max,
                                    bool& too_many) {
  std::vector<MapCell> cells;
  const auto visit = [&](uint64_t page) {
    if (memory.resident().contains(page) || too_many) return;
    if (cells.empty() || cells.back().index != page / cell_bytes) {
      too_many = cells.size() == cells_max;
      if (too_many) return;
      cells.push_back({page / cell_bytes});
    }
    cells.back().released += kPageBytes;
  };
  uint64_t from = 0;
  for (const auto& [start, range] : memory.held().ranges()) {
    memory.ever_held_resident().for_each(from, start, visit);
    from = range.end;
  }
  memory.ever_held_resident().for_each(from, kAddressEnd, visit);
  return cells;
}

class MomentBuilder {
 public:
  MomentBuilder(const Replay& replay, uint64_t cell_bytes, bool resident_known)
      : replay_(replay),
        memory_(replay.memory()),
        cell_bytes_(cell_bytes),
        resident_known_(resident_known) {}

  // False: more than `cells_max`.
  bool build(size_t cells_max, std::vector<MapCell>& cells) {
    if (held_cells() > cells_max) return false;
    bool too_many = false;
    const std::vector<MapCell> gone = released_cells(memory_, cell_bytes_, cells_max, too_many);
    if (too_many) return false;
    lay_out(gone);
    if (cells_.size() > cells_max) return false;
    chunk_bytes_.resize(cells_.size());
    replay_.live().for_each([&](const Block& block) {
      add_chunk(block.address - kHeaderBytes, block.address + block.usable, true);
    });
    replay_.freed_chunks().for_each([&](const FreedChunk& chunk) {
      const uint64_t start = chunk.address - kHeaderBytes;
      add_chunk(start, start + chunk.bytes, false);
    });
    for (const MapRange& range : ranges_) settle(range);
    for (size_t i = 0; i < cells_.size(); ++i) {
      const uint64_t live = std::min(chunk_bytes_[i], cells_[i].free);
      cells_[i].live += live;
      cells_[i].free -= live;
    }
    cells = std::move(cells_);
    return true;
  }

 private:
  uint64_t resident_bytes(uint64_t start, uint64_t end) const {
    if (start >= end) return 0;
    if (!resident_known_) return end - start;
    if (start / kPageBytes == (end - 1) / kPageBytes) {
      return memory_.resident().contains(start) ? end - start : 0;
    }
    return memory_.resident().bytes(start, end);
  }

  // Calls visit(cell, start, end) for the pieces of a range's part.
  template <typename Visit>
  void each_piece(const MapRange& range, uint64_t start, uint64_t end, Visit visit) {
    for (uint64_t at = start; at < end;) {
      const uint64_t stop = std::min(end, (at / cell_bytes_ + 1) * cell_bytes_);
      visit(range.first + (at / cell_bytes_ - range.start / cell_bytes_), at, stop);
      at = stop;
    }
  }

  size_t held_cells() const {
    size_t cells = 0;
    for (const auto& [start, range] : memory_.held().ranges()) {
      cells += (range.end - 1) / cell_bytes_ - start / cell_bytes_ + 1;
    }
    return cells;
  }

  void lay_out(const std::vector<MapCell>& gone) {
    auto next = gone.begin();
    const auto add_gone_below = [&](uint64_t index) {
      for (; next != gone.end() && next->index < index; ++next) add_cell(*next);
    };
    for (const auto& [start, range] : memory_.held().ranges()) {
      ranges_.push_back({start, range.end, 0, range.kind, start});
      for (uint64_t index = start / cell_bytes_; index <= (range.end - 1) / cell_bytes_; ++index) {
        add_gone_below(index);
        add_cell({index});
        if (index == start / cell_bytes_) ranges_.back().first = cells_.size() - 1;
      }
    }
    add_gone_below(std::numeric_limits<uint64_t>::max());
    // A cell that is held in part may have been given back in part.
    auto place = cells_.begin();
    for (const MapCell& cell : gone) {
      while (place->index != cell.index) ++place;
      place->released = cell.released;
    }
  }

  void add_cell(const MapCell& cell) {
    if (cells_.empty() || cells_.back().index != cell.index) cells_.push_back(cell);
  }

  void add_chunk(uint64_t start, uint64_t end, bool live) {
    if (ranges_.empty()) return;
    if (start < last_->start || start >= last_->end) {
      const auto after =
          std::partition_point(ranges_.begin(), ranges_.end(),
                               [&](const MapRange& range) { return range.end <= start; });
      if (after == ranges_.end() || start < after->start) return;
      last_ = &*after;
    }
    if (last_->kind == RangeKind::kMapped) return;
    end = std::min(end, last_->end);
    last_->used_end = std::max(last_->used_end, end);
    if (!live) return;
    each_piece(*last_, start, end, [&](size_t cell, uint64_t from, uint64_t to) {
      chunk_bytes_[cell] += resident_bytes(from, to);
    });
  }

  // A range's bytes, live chunks still among the free.
  void settle(const MapRange& range) {
    const bool mapped = range.kind == RangeKind::kMapped;
    each_piece(range, range.start, range.end, [&](size_t index, uint64_t from, uint64_t to) {
      MapCell& cell = cells_[index];
      const uint64_t resident = resident_bytes(from, to);
      const uint64_t top = mapped ? 0 : resident_bytes(std::max(from, range.used_end), to);
      (mapped ? cell.live : cell.free) += resident - top;
      cell.top += top;
      const uint64_t ever =
          resident_known_ ? memory_.ever_held_resident().bytes(from, to) : resident;
      cell.released += ever - std::min(ever, resident);
      cell.untouched += to - from - std::max(ever, resident);
    });
  }

  const Replay& replay_;
  const MemoryMap& memory_;
  uint64_t cell_bytes_;
  bool resident_known_;
  std::vector<MapCell> cells_;
  std::vector<uint64_t> chunk_bytes_;  // Resident, of live chunks; by cell.
  std::vector<MapRange> ranges_;
  MapRange nowhere_{0, 0, 0, RangeKind::kHeap, 0};
  MapRange* last_ = &nowhere_;
};

}  // namespace

void MapCell::add(const MapCell& other) {
  live += other.live;
  free += other.free;
  top += other.top;
  untouched += other.untouched;
  released += other.released;
}

void HeapMap::add(const Replay& replay, int64_t time_ns, bool resident_known) {
  MapMoment moment{time_ns, {}};
  while (!MomentBuilder(replay, cell_bytes_, resident_known).build(kCellsMax, moment.cells)) {
    double_cells();
  }
  std::erase_if(moment.cells, [](const MapCell& cell) { return cell.bytes() == 0; });
  // Of one moment the latest state counts.
  if (!moments_.empty() && moments_.back().time_ns >= time_ns) moments_.pop_back();
  moments_.push_back(std::move(moment));
}

void HeapMap::add_stored(MapMoment moment, uint64_t cell_bytes) {
  cell_bytes_ = cell_bytes;
  moments_.push_back(std::move(moment));
}

void HeapMap::double_cells() {
  cell_bytes_ *= 2;
  for (MapMoment& moment : moments_) {
    size_t kept = 0;
    for (size_t i = 0; i < moment.cells.size(); ++i) {
      MapCell cell = moment.cells[i];
      cell.index /= 2;
      if (kept != 0 && moment.cells[kept - 1].index == cell.index) {
        moment.cells[kept - 1].add(cell);
      } else {
        moment.cells[kept++] = cell;
      }
    }
    moment.cells.resize(kept);
  }
}

namespace {

void put_varint(std::vector<uint8_t>& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<uint8_t>(value | 0x80));
  out.push_back(static_cast<uint8_t>(value));
}

uint64_t take_varint(std::span<const uint8_t>& in) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64 && !in.empty(); shift += 7) {
    const uint8_t byte = in.front();
    in = in.subspan(1);
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if ((byte & 0x80) == 0) return value;
  }
  throw schema::Error("cannot read the heap map", "a number is cut short");
}

bool equal_bytes(const MapCell& a, const MapCell& b) {
  return a.live == b.live && a.free == b.free && a.top == b.top && a.untouched == b.untouched &&
         a.released == b.released;
}

// The cell of that index in the moment before; `at` moves on.
const MapCell* cell_before(const MapMoment* before, size_t& at, uint64_t index) {
  if (before == nullptr) return nullptr;
  while (at < before->cells.size() && before->cells[at].index < index) ++at;
  const bool found = at < before->cells.size() && before->cells[at].index == index;
  return found ? &before->cells[at] : nullptr;
}

}  // namespace

std::vector<uint8_t> encode_map_cells(const MapMoment& moment, const MapMoment* before) {
  std::vector<uint8_t> out;
  uint64_t next = 0;  // Index after the last run.
  size_t at = 0;
  for (size_t i = 0; i < moment.cells.size();) {
    const MapCell& first = moment.cells[i];
    const auto same_as_before = [&](const MapCell& cell) {
      const MapCell* other = cell_before(before, at, cell.index);
      return other != nullptr && equal_bytes(cell, *other);
    };
    const bool same = same_as_before(first);
    size_t end = i + 1;
    while (end < moment.cells.size() && moment.cells[end].index == first.index + (end - i) &&
           (same ? same_as_before(moment.cells[end]) : equal_bytes(first, moment.cells[end]))) {
      ++end;
    }
    put_varint(out, first.index - next);
    put_varint(out, (end - i) * 2 + (same ? 1 : 0));
    if (!same) {
      for (const uint64_t value :
           {first.live, first.free, first.top, first.untouched, first.released}) {
        put_varint(out, value);
      }
    }
    next = first.index + (end - i);
    i = end;
  }
  return out;
}

std::vector<MapCell> decode_map_cells(std::span<const uint8_t> bytes, const MapMoment* before) {
  std::vector<MapCell> cells;
  uint64_t next = 0;
  size_t at = 0;
  while (!bytes.empty()) {
    next += take_varint(bytes);
    const uint64_t head = take_varint(bytes);
    const uint64_t run = head / 2;
    if (run > HeapMap::kCellsMax - cells.size()) {
      throw schema::Error("cannot read the heap map", "it has more cells than a map can have");
    }
    MapCell cell;
    if (head % 2 == 0) {
      for (uint64_t* value : {&cell.live, &cell.free, &cell.top, &cell.untouched, &cell.released}) {
        *value = take_varint(bytes);
      }
    }
    for (uint64_t i = 0; i < run; ++i, ++next) {
      if (head % 2 != 0) {
        const MapCell* other = cell_before(before, at, next);
        if (other == nullptr) {
          throw schema::Error("cannot read the heap map", "it repeats a cell that is not there");
        }
        cell = *other;
      }
      cell.index = next;
      cells.push_back(cell);
    }
  }
  return cells;
}

}  // namespace heapledger::analyzer
