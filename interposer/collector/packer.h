// SPDX-License-Identifier: Apache-2.0
// Collects the rows of one process until there are enough for a batch, in order of time.
//
// A killed collector must not take with it what was here for more than a second, so a batch that
// does not fill is given out all the same (close_before).
//
// Rings are drained one after the other, so a window's rows come in runs that are each sorted. Rows
// that belong before the last batch that was given out go into a batch of their own, so that the
// others stay narrow in time. Used for faults, and for calls of several threads (call_packer.h).
//
// Thread safety: none. Cost: a comparison per row where there is one thread; else each row is moved
// once more, in blocks as long as no other run has a row between.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace heapledger::collector {

// Merges runs, stably: of equal rows those of the earlier run come first. `starts`: where each run
// but the first begins.
template <typename Row, typename Before>
void merge_runs(std::vector<Row>& rows, const std::vector<size_t>& starts, Before before) {
  if (starts.empty()) return;
  struct Run {
    const Row* next;
    const Row* end;
    size_t number;
  };
  std::vector<Run> runs;
  for (size_t i = 0; i <= starts.size(); ++i) {
    const size_t begin = i == 0 ? 0 : starts[i - 1];
    const size_t end = i == starts.size() ? rows.size() : starts[i];
    if (begin != end) runs.push_back({rows.data() + begin, rows.data() + end, i});
  }
  const auto comes_first = [&](const Run& a, const Run& b) {
    if (before(*a.next, *b.next)) return true;
    return !before(*b.next, *a.next) && a.number < b.number;
  };
  // Runs begin in the order of their windows, so few are open at a time: a sorted list of those.
  std::sort(runs.begin(), runs.end(), comes_first);
  std::vector<Row> merged;
  merged.reserve(rows.size());
  std::vector<Run> open;  // The next row of the last one comes next.
  size_t unopened = 0;
  const auto insert = [&](const Run& run) {
    auto place = open.end();
    while (place != open.begin() && comes_first(*(place - 1), run)) --place;
    open.insert(place, run);
  };
  while (!open.empty() || unopened < runs.size()) {
    if (open.empty()) insert(runs[unopened++]);
    while (unopened < runs.size() && comes_first(runs[unopened], open.back())) {
      insert(runs[unopened++]);
    }
    Run run = open.back();
    open.pop_back();
    // As far as no other run has a row that comes before.
    const Row* from = run.next;
    const auto goes_on = [&] {
      return run.next != run.end && (open.empty() || comes_first(run, open.back())) &&
             (unopened == runs.size() || comes_first(run, runs[unopened]));
    };
    do {
      ++run.next;
    } while (goes_on());
    merged.insert(merged.end(), from, run.next);
    if (run.next != run.end) insert(run);
  }
  rows.swap(merged);
}

// Sorts what consists of few sorted runs.
template <typename Row, typename Before>
void sort_runs(std::vector<Row>& rows, Before before) {
  std::vector<size_t> starts;
  for (size_t i = 1; i < rows.size(); ++i) {
    if (before(rows[i], rows[i - 1])) starts.push_back(i);
  }
  merge_runs(rows, starts, before);
}

// Row has time_ns; Before is its strict order, by time first.
template <typename Row, typename Before, size_t kBatch>
class Packer {
 public:
  void add(const Row& row) {
    if (row.time_ns < closed_ns_) {
      late_.push_back(row);
      return;
    }
    if (!open_.empty() && Before()(row, open_.back())) starts_.push_back(open_.size());
    open_.push_back(row);
  }
  void add(std::span<const Row> rows) {
    int64_t last_ns = closed_ns_;
    bool rises = open_.empty() || !Before()(rows.front(), open_.back());
    for (const Row& row : rows) {
      rises &= row.time_ns > last_ns;
      last_ns = row.time_ns;
    }
    if (rises) {
      open_.insert(open_.end(), rows.begin(), rows.end());
    } else {
      for (const Row& row : rows) add(row);
    }
  }

  // Gives out batches that are full: emit(std::span<const Row>), sorted. Rows of the last moments
  // stay, because rows of other rings may still come between them.
  template <typename Emit>
  void close_full(Emit emit) {
    if (open_.size() >= kBatch + kHeldBack) {
      sort_open();
      size_t done = 0;
      for (; open_.size() - done >= kBatch + kHeldBack; done += kBatch) {
        closed_ns_ = std::max(closed_ns_, open_[done + kBatch - 1].time_ns);
        emit(std::span<const Row>(open_.data() + done, kBatch));
      }
      open_.erase(open_.begin(), open_.begin() + static_cast<std::ptrdiff_t>(done));
    }
    if (late_.size() >= kBatch) close(late_, emit);
  }
  // Gives out what lies before a time, in batches however small.
  template <typename Emit>
  void close_before(int64_t time_ns, Emit emit) {
    sort_open();
    const auto end = std::partition_point(open_.begin(), open_.end(),
                                          [&](const Row& row) { return row.time_ns < time_ns; });
    std::vector<Row> closing(open_.begin(), end);
    open_.erase(open_.begin(), end);
    if (!closing.empty()) closed_ns_ = std::max(closed_ns_, close(closing, emit));
    close(late_, emit);
  }
  // Gives out the rest.
  template <typename Emit>
  void close_all(Emit emit) {
    sort_open();
    if (!open_.empty()) closed_ns_ = std::max(closed_ns_, close(open_, emit));
    close(late_, emit);
  }
  // What comes before this time, from now on, is late.
  void begin_after(int64_t time_ns) { closed_ns_ = std::max(closed_ns_, time_ns); }
  bool empty() const { return open_.empty() && late_.empty(); }
  size_t size() const { return open_.size() + late_.size(); }

 private:
  static constexpr size_t kHeldBack = kBatch / 8;

  void sort_open() {
    merge_runs(open_, starts_, Before());
    starts_.clear();
  }

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
  std::vector<size_t> starts_;  // Of the runs in open_ but the first.
  std::vector<Row> late_;
  int64_t closed_ns_ = INT64_MIN;
};

}  // namespace heapledger::collector
