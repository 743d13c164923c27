// SPDX-License-Identifier: Apache-2.0
// Collects the rows of one process until there are enough for a batch, in order of time.
//
// Rings are drained one after the other, so a window's rows come in runs that are each sorted. Rows
// that belong before the last batch that was given out go into a batch of their own, so that the
// others stay narrow in time. Used for calls and for faults.
//
// Thread safety: none. Cost: a comparison per row where there is one thread; log2(runs) merges
// else.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace heapledger::collector {

// Sorts what consists of few sorted runs: merges neighbours, stably. Time: O(n log runs).
template <typename Row, typename Before>
void sort_runs(std::vector<Row>& rows, Before before) {
  std::vector<size_t> ends;
  for (size_t i = 1; i < rows.size(); ++i) {
    if (before(rows[i], rows[i - 1])) ends.push_back(i);
  }
  if (ends.empty()) return;
  ends.push_back(rows.size());
  std::vector<Row> other(rows.size());
  const auto from = [&](size_t index) { return rows.begin() + static_cast<std::ptrdiff_t>(index); };
  while (ends.size() > 1) {
    std::vector<size_t> merged;
    size_t start = 0;
    for (size_t i = 0; i < ends.size(); i += 2) {
      const size_t middle = ends[i];
      const size_t end = i + 1 < ends.size() ? ends[i + 1] : middle;
      std::merge(from(start), from(middle), from(middle), from(end),
                 other.begin() + static_cast<std::ptrdiff_t>(start), before);
      merged.push_back(end);
      start = end;
    }
    rows.swap(other);
    ends.swap(merged);
  }
}

// Row has time_ns; Before is its strict order, by time first.
template <typename Row, typename Before, size_t kBatch>
class Packer {
 public:
  void add(const Row& row) { (row.time_ns < closed_ns_ ? late_ : open_).push_back(row); }

  // Gives out batches that are full: emit(std::span<const Row>), sorted. Rows of the last moments
  // stay, because rows of other rings may still come between them.
  template <typename Emit>
  void close_full(Emit emit) {
    while (open_.size() >= kBatch + kHeldBack) {
      sort_runs(open_, Before());
      closed_ns_ = std::max(closed_ns_, open_[kBatch - 1].time_ns);
      emit(std::span<const Row>(open_.data(), kBatch));
      open_.erase(open_.begin(), open_.begin() + kBatch);
    }
    if (late_.size() >= kBatch) close(late_, emit);
  }
  // Gives out the rest.
  template <typename Emit>
  void close_all(Emit emit) {
    if (!open_.empty()) closed_ns_ = std::max(closed_ns_, close(open_, emit));
    close(late_, emit);
  }
  bool empty() const { return open_.empty() && late_.empty(); }
  size_t size() const { return open_.size() + late_.size(); }

 private:
  static constexpr size_t kHeldBack = kBatch / 8;

  template <typename Emit>
  int64_t close(std::vector<Row>& rows, Emit emit) {
    if (rows.empty()) return INT64_MIN;
    sort_runs(rows, Before());
    const int64_t last = rows.back().time_ns;
    for (size_t at = 0; at < rows.size(); at += kBatch) {
      emit(std::span<const Row>(rows.data() + at, std::min(kBatch, rows.size() - at)));
    }
    rows.clear();
    return last;
  }

  std::vector<Row> open_;
  std::vector<Row> late_;
  int64_t closed_ns_ = INT64_MIN;
};

}  // namespace heapledger::collector
