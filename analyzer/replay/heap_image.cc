// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay/heap_image.h"

#include <algorithm>
#include <array>
#include <bit>

namespace heapledger::analyzer {

namespace {

class ImageBuilder {
 public:
  ImageBuilder(const HeapState& heap, bool resident_known)
      : heap_(heap),
        memory_(heap.memory()),
        resident_known_(resident_known),
        chunks_(chunks_in_use(heap)) {}

  HeapImage build(int64_t at_ns, const TrimSettings& trim) {
    image_.at_ns = at_ns;
    image_.held_bytes = memory_.held_bytes();
    heap_.each_live([this](const Block& block) {
      ++image_.live_blocks;
      image_.live_bytes += block.usable;
      image_.requested_bytes += block.size;
    });
    for (const auto& [start, range] : memory_.held().ranges()) walk(start, range);
    for (size_t i = 0; i < buckets_.size(); ++i) {
      if (buckets_[i].chunks != 0) image_.free_histogram.push_back(buckets_[i]);
    }
    image_.pinners = find_pinners(heap_, chunks_, trim, at_ns, resident_known_);
    if (resident_known_) {
      image_.free_resident_bytes = free_resident_;
      image_.page_holders = find_page_holders(heap_, chunks_);
    }
    return std::move(image_);
  }

 private:
  void walk(uint64_t start, const HeldRange& range) {
    uint64_t cursor = start;
    bool has_block = false;
    for (; next_ < chunks_.size() && chunks_[next_].block < range.end; ++next_) {
      const HeapChunk& chunk = chunks_[next_];
      if (chunk.block < start) continue;
      has_block = true;
      const uint64_t chunk_start = std::max(cursor, chunk.start());
      // In a mapping, what is before the header is there for the block's alignment.
      if (range.kind == RangeKind::kMapped) {
        image_.overhead_bytes += chunk_start - cursor;
      } else {
        add_gap(cursor, chunk_start);
      }
      const uint64_t end = std::max(cursor, std::min(chunk.end, range.end));
      if (chunk.is_live()) {
        image_.overhead_bytes += std::max(cursor, chunk.block) - chunk_start;
      } else {
        add_gap(chunk_start, end);
        (chunk.state == ChunkState::kCached ? image_.cached_bytes : image_.fast_bytes) +=
            end - chunk_start;
      }
      cursor = end;
    }
    if (range.kind == RangeKind::kMapped && has_block) {
      image_.overhead_bytes += range.end - cursor;
      return;
    }
    if (range.kind == RangeKind::kBreak && range.end == memory_.break_end()) {
      image_.top_bytes = range.end - cursor;
    }
    add_gap(cursor, range.end);
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

  const HeapState& heap_;
  const MemoryMap& memory_;
  bool resident_known_;
  std::vector<HeapChunk> chunks_;
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

HeapImage make_heap_image(const HeapState& heap, int64_t at_ns, const TrimSettings& trim,
                          bool resident_known) {
  return ImageBuilder(heap, resident_known).build(at_ns, trim);
}

}  // namespace heapledger::analyzer
