// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay/heap_image.h"

#include <malloc.h>

#include <algorithm>
#include <array>
#include <bit>

namespace heapledger::analyzer {

namespace {

constexpr size_t kPinnersMax = 50;

class ImageBuilder {
 public:
  ImageBuilder(const Replay& replay, bool resident_known)
      : memory_(replay.memory()), resident_known_(resident_known) {
    replay.live().for_each([this](const Block& block) { blocks_.push_back(block); });
    std::sort(blocks_.begin(), blocks_.end(), [](const Block& a, const Block& b) {
      return a.address != b.address ? a.address < b.address : a.time_ns < b.time_ns;
    });
  }

  HeapImage build(int64_t at_ns, const TrimSettings& trim) {
    image_.at_ns = at_ns;
    image_.held_bytes = memory_.held_bytes();
    image_.live_blocks = blocks_.size();
    for (const Block& block : blocks_) {
      image_.live_bytes += block.usable;
      image_.requested_bytes += block.size;
    }
    for (const auto& [start, range] : memory_.held().ranges()) walk(start, range);
    for (size_t i = 0; i < buckets_.size(); ++i) {
      if (buckets_[i].chunks != 0) image_.free_histogram.push_back(buckets_[i]);
    }
    if (resident_known_) image_.free_resident_bytes = free_resident_;
    find_pinners(trim);
    return std::move(image_);
  }

 private:
  void walk(uint64_t start, const HeldRange& range) {
    uint64_t cursor = start;
    bool has_block = false;
    for (; next_ < blocks_.size() && blocks_[next_].address < range.end; ++next_) {
      const Block& block = blocks_[next_];
      if (block.address < start) continue;
      has_block = true;
      const uint64_t chunk = std::max(cursor, block.address - kHeaderBytes);
      // In a mapping, what is before the header is there for the block's alignment.
      if (range.kind == RangeKind::kMapped) {
        image_.overhead_bytes += chunk - cursor;
      } else {
        add_gap(cursor, chunk);
      }
      image_.overhead_bytes += std::max(cursor, block.address) - chunk;
      cursor = std::max(cursor, std::min(block.address + block.usable, range.end));
    }
    if (range.kind == RangeKind::kMapped && has_block) {
      image_.overhead_bytes += range.end - cursor;
    } else {
      add_gap(cursor, range.end);
    }
  }

  void add_gap(uint64_t start, uint64_t end) {
    const uint64_t bytes = end - start;
    if (bytes < kChunkBytesMin) {
      image_.overhead_bytes += bytes;
      return;
    }
    image_.free_bytes += bytes;
    image_.largest_free_bytes = std::max(image_.largest_free_bytes, bytes);
    if (resident_known_) free_resident_ += memory_.resident().bytes(start, end);
    const auto power = static_cast<size_t>(std::bit_width(bytes) - 1);
    HistogramRow& row = buckets_[power];
    row.bytes_min = uint64_t{1} << power;
    row.bytes_max = (uint64_t{1} << power) * 2 - 1;
    ++row.chunks;
    row.bytes += bytes;
  }

  // What a trim of a top of this size gives back: all but top_pad, the smallest chunk and rounding.
  static uint64_t returned(uint64_t top_bytes, const TrimSettings& trim) {
    if (top_bytes < trim.trim_threshold || top_bytes <= kChunkBytesMin + 1) return 0;
    const uint64_t spare = top_bytes - kChunkBytesMin - 1;
    if (spare <= trim.top_pad) return 0;
    return (spare - trim.top_pad) / kPageBytes * kPageBytes;
  }

  // The brk heap: from its last range that ends at the break down.
  void find_pinners(const TrimSettings& trim) {
    const uint64_t top_end = memory_.break_end();
    const HeldRange* top = top_end == 0 ? nullptr : memory_.held().find(top_end - 1);
    if (top == nullptr || top->kind != RangeKind::kBreak) return;
    uint64_t heap_start = top_end;
    for (const auto& [start, range] : memory_.held().ranges()) {
      if (range.end == top_end) heap_start = start;
    }
    const auto first = std::lower_bound(
        blocks_.begin(), blocks_.end(), heap_start,
        [](const Block& block, uint64_t address) { return block.address < address; });
    auto last = std::lower_bound(
        first, blocks_.end(), top_end,
        [](const Block& block, uint64_t address) { return block.address < address; });
    // The distinct stacks met on the way down; a block of a stack already met is gone too.
    std::vector<uint32_t> stacks;
    uint64_t given = last == first ? 0 : returned(top_end - end_of(*(last - 1)), trim);
    while (last != first && image_.pinners.size() < kPinnersMax) {
      Pinner pinner;
      pinner.stack = (last - 1)->stack;
      stacks.push_back(pinner.stack);
      while (last != first &&
             std::find(stacks.begin(), stacks.end(), (last - 1)->stack) != stacks.end()) {
        --last;
        if (last->stack != pinner.stack) continue;
        ++pinner.blocks;
        pinner.own_bytes += last->usable + kHeaderBytes;
        pinner.age_ns = std::max(pinner.age_ns, image_.at_ns - last->time_ns);
      }
      const uint64_t floor = last == first ? heap_start : end_of(*(last - 1));
      const uint64_t total = returned(top_end - floor, trim);
      pinner.bytes_released_if_freed = total - std::min(total, given);
      given = std::max(given, total);
      image_.pinners.push_back(pinner);
    }
  }

  static uint64_t end_of(const Block& block) { return block.address + block.usable; }

  const MemoryMap& memory_;
  bool resident_known_;
  std::vector<Block> blocks_;
  size_t next_ = 0;
  HeapImage image_;
  uint64_t free_resident_ = 0;
  std::array<HistogramRow, 64> buckets_{};
};

double clamped_ratio(double value) { return std::clamp(value, 0.0, 1.0); }

}  // namespace

double HeapImage::external() const {
  if (held_bytes == 0) return 0;
  return clamped_ratio(1 - static_cast<double>(live_bytes) / static_cast<double>(held_bytes));
}

double HeapImage::internal() const {
  if (live_bytes == 0) return 0;
  return clamped_ratio(static_cast<double>(live_bytes - requested_bytes) /
                       static_cast<double>(live_bytes));
}

TrimSettings trim_settings_at(schema::Database& db, const ProcessInfo& process, int64_t time_ns) {
  TrimSettings settings;
  if (process.trim_threshold) {
    settings.trim_threshold = static_cast<uint64_t>(*process.trim_threshold);
  }
  if (process.top_pad) settings.top_pad = static_cast<uint64_t>(*process.top_pad);
  schema::Statement select = db.prepare(
      "SELECT kind, old_value, new_value FROM policy_event WHERE process = ? AND time_ns <= ?"
      " AND kind IN ('threshold raised', 'setting changed') ORDER BY time_ns, rowid");
  select.bind_all(process.id, time_ns);
  while (select.step()) {
    const uint64_t value = select.column_uint(2);
    if (select.column_text(0) == "threshold raised") {
      settings.trim_threshold = 2 * value;
    } else if (select.column_int(1) == M_TRIM_THRESHOLD) {
      settings.trim_threshold = value;
    } else if (select.column_int(1) == M_TOP_PAD) {
      settings.top_pad = value;
    }
  }
  return settings;
}

HeapImage make_heap_image(const Replay& replay, int64_t at_ns, const TrimSettings& trim,
                          bool resident_known) {
  return ImageBuilder(replay, resident_known).build(at_ns, trim);
}

}  // namespace heapledger::analyzer
