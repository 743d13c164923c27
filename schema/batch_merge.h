// SPDX-License-Identifier: Apache-2.0
// Merges the packed batches of a process by time: the engine inside schema/event_reader.h.
//
// The index (one entry per batch: id, rows, time range) is read at once, in order of the ranges'
// beginnings. A batch is decoded when the merge reaches its beginning and dropped after its last
// row. The *current* batch is the one with the next row; a *run* is as many of its rows as come
// before anything another batch can have, so that the common case, no overlap, costs a comparison
// per batch and not per row.
//
// Source is one of the two kinds of batches; it says
//     Batch                               with time_ns, sorted
//     kIndexSql, kDataSql                 the queries
//     decode(row of kDataSql, columns, batch)         or throw Error
//     kDecodesAhead                       whether a batch can be decoded on another thread:
//     decode_data(blob, columns, batch)   then
//     rank(batch, row)                    order at equal times
// Where the reader asks for it (ReadOptions::ahead), the batch that will be opened next is decoded
// on a thread while the rows before it are read.
//
// Invariants: 1. Of every open batch [at, end) are the rows still to come, and it is not empty.
// 2. Batches not yet open begin at or after the last row given. Thread safety: none.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "schema/error.h"
#include "schema/event_reader.h"
#include "schema/worker.h"

namespace heapledger::schema {

template <typename Source>
class BatchMerge {
 public:
  using Batch = typename Source::Batch;

  BatchMerge(Database& db, int64_t process, ReadOptions options)
      : options_(std::move(options)), data_(db.prepare(Source::kDataSql)) {
    Statement index = db.prepare(Source::kIndexSql);
    index.bind_all(process, options_.time_min_ns, options_.time_max_ns);
    while (index.step()) {
      index_.push_back({index.column_int(0), index.column_int(1), index.column_int(2)});
    }
  }

  // The next run; empty at the end. It stays valid until the next call.
  const Batch* next_run(size_t& begin, size_t& end) {
    retire_current();
    open_reached();
    if (open_.empty()) return nullptr;
    current_ = pop();
    const int64_t limit = std::min(open_.empty() ? kNever : open_.front()->time(), next_begin());
    const std::vector<int64_t>& times = current_->batch.time_ns;
    begin = current_->at;
    const auto first = times.begin() + static_cast<ptrdiff_t>(begin);
    const auto last = times.begin() + static_cast<ptrdiff_t>(current_->end);
    if (limit == kNever) {
      end = current_->end;
    } else {
      end = begin + static_cast<size_t>(std::lower_bound(first, last, limit) - first);
      if (end == begin) ++end;  // A tie: it was chosen by rank, so look again after one row.
    }
    current_->at = end;
    return &current_->batch;
  }

 private:
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

  struct IndexEntry {
    int64_t id;
    int64_t rows;
    int64_t time_min_ns;
  };
  struct Open {
    int64_t id = 0;
    Batch batch;
    size_t at = 0;
    size_t end = 0;
    int64_t time() const { return batch.time_ns[at]; }
  };
  using OpenPtr = std::unique_ptr<Open>;

  // The heap's order: what comes later.
  static bool later(const OpenPtr& a, const OpenPtr& b) {
    if (a->time() != b->time()) return a->time() > b->time();
    const int rank_a = Source::rank(a->batch, a->at);
    const int rank_b = Source::rank(b->batch, b->at);
    return rank_a != rank_b ? rank_a > rank_b : a->id > b->id;
  }

  int64_t next_begin() const { return next_ < index_.size() ? index_[next_].time_min_ns : kNever; }

  void push(OpenPtr open) {
    open_.push_back(std::move(open));
    std::push_heap(open_.begin(), open_.end(), later);
  }
  OpenPtr pop() {
    std::pop_heap(open_.begin(), open_.end(), later);
    OpenPtr open = std::move(open_.back());
    open_.pop_back();
    return open;
  }

  void retire_current() {
    if (current_ == nullptr) return;
    if (current_->at < current_->end) {
      push(std::move(current_));
    } else {
      spare_.push_back(std::move(current_));
    }
  }

  // Opens what may hold the next row.
  void open_reached() {
    while (next_ < index_.size() &&
           (open_.empty() || index_[next_].time_min_ns <= open_.front()->time())) {
      open_batch(next_++);
      decode_ahead();
    }
  }

  OpenPtr take_spare() {
    if (spare_.empty()) return std::make_unique<Open>();
    OpenPtr open = std::move(spare_.back());
    spare_.pop_back();
    return open;
  }

  void open_batch(size_t index) {
    const IndexEntry& entry = index_[index];
    const bool is_ahead = ahead_ != nullptr;
    OpenPtr open = is_ahead ? std::move(ahead_) : take_spare();
    try {
      if (is_ahead) {
        worker_.wait();
      } else {
        load(entry, *open);
      }
      check(entry, *open);
    } catch (Error& error) {
      data_.reset();
      spare_.push_back(std::move(open));
      if (!options_.damage) {
        error.while_("reading batch " + std::to_string(entry.id));
        throw;
      }
      options_.damage({entry.id, entry.rows, error.why()});
      return;
    }
    if (open->at < open->end) {
      push(std::move(open));
    } else {
      spare_.push_back(std::move(open));
    }
  }

  void load(const IndexEntry& entry, Open& open) {
    data_.bind(1, entry.id);
    if (!data_.step()) throw Error("cannot read a batch", "it is gone");
    Source::decode(data_, options_.columns, open.batch);
    data_.reset();
  }

  // The batch after the one that was opened last. What is wrong with it comes out when it is
  // opened.
  void decode_ahead() {
    if constexpr (Source::kDecodesAhead) {
      if (!options_.ahead || next_ >= index_.size() || !read_data(index_[next_].id)) return;
      ahead_ = take_spare();
      worker_.start([this, open = ahead_.get()] {
        Source::decode_data(ahead_data_, options_.columns, open->batch);
      });
    }
  }

  // False: load() will say what is wrong.
  bool read_data(int64_t id) {
    try {
      data_.bind(1, id);
      const bool found = data_.step();
      const std::span<const uint8_t> blob = found ? data_.column_blob(0) : std::span<uint8_t>();
      ahead_data_.assign(blob.begin(), blob.end());
      data_.reset();
      return found;
    } catch (const Error&) {
      data_.reset();
      return false;
    }
  }

  void check(const IndexEntry& entry, Open& open) {
    const std::vector<int64_t>& times = open.batch.time_ns;
    if (times.size() != static_cast<uint64_t>(entry.rows) ||
        (!times.empty() && times.front() < entry.time_min_ns)) {
      throw Error("cannot read a batch", "its rows are not those that the table says it has");
    }
    const auto begin = std::lower_bound(times.begin(), times.end(), options_.time_min_ns);
    const auto end = std::upper_bound(begin, times.end(), options_.time_max_ns);
    open.id = entry.id;
    open.at = static_cast<size_t>(begin - times.begin());
    open.end = static_cast<size_t>(end - times.begin());
  }

  ReadOptions options_;
  Statement data_;
  std::vector<IndexEntry> index_;
  size_t next_ = 0;             // First of the index that was not opened.
  std::vector<OpenPtr> open_;   // A heap by later(), without the current one.
  std::vector<OpenPtr> spare_;  // For their memory.
  OpenPtr current_;
  OpenPtr ahead_;  // Of index_[next_]; null: not being decoded.
  std::vector<uint8_t> ahead_data_;
  Worker worker_;  // Last: it ends before what it works on.
};

}  // namespace heapledger::schema
