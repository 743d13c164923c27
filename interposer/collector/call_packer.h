// SPDX-License-Identifier: Apache-2.0
// The calls of one process on their way into batches.
//
// Most programs allocate in one thread for long. While all calls come from one ring they are in
// order already, so they go straight into an encoder, while they are in the processor's cache, and
// only what it has made of them is kept. Calls of several rings wait as rows to be sorted among
// each other (packer.h). What a process does is looked at anew with every close_before(), once a
// second.
//
// An encoder takes some megabytes, so only processes with many calls get one, and few at a time.
//
// Invariant: every batch is sorted, and holds kBatchEvents at most.
// Thread safety: none (writer thread).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "interposer/collector/packer.h"
#include "schema/call_chunk.h"
#include "schema/event_batch.h"

namespace heapledger::collector {

struct CallBefore {
  bool operator()(const schema::CallRow& a, const schema::CallRow& b) const {
    return schema::call_before(a, b);
  }
};

// A batch that is encoded already.
struct PackedCalls {
  size_t events;
  int64_t time_min_ns;
  int64_t time_max_ns;
  std::span<const uint8_t> blob;
};

// Encoders that processes borrow.
class CallEncoders {
 public:
  explicit CallEncoders(size_t lent_max = 8) : left_(lent_max) {}

  // Empty: enough are lent.
  std::unique_ptr<schema::CallEncoder> lend() {
    if (left_ == 0) return nullptr;
    --left_;
    if (idle_.empty()) return std::make_unique<schema::CallEncoder>();
    auto encoder = std::move(idle_.back());
    idle_.pop_back();
    return encoder;
  }
  void take_back(std::unique_ptr<schema::CallEncoder> encoder) {
    idle_.push_back(std::move(encoder));
    ++left_;
  }

 private:
  std::vector<std::unique_ptr<schema::CallEncoder>> idle_;
  size_t left_;
};

// What is given out goes to emit(PackedCalls) or to emit(std::span<const schema::CallRow>), sorted.
class CallPacker {
 public:
  static constexpr size_t kBatch = schema::kBatchEvents;
  static constexpr size_t kStreamFrom = 4096;  // So many waiting calls are worth an encoder.

  // Calls of one ring, which `ring` stands for.
  template <typename Emit>
  void add(const void* ring, const schema::CallChunk& calls, CallEncoders& encoders, Emit emit) {
    if (calls.count == 0) return;
    look_at_ring(ring, calls.count, encoders, emit);
    if (streams_ && calls.rises && calls.time_ns[0] > last_ns_) {
      stream(calls, emit);
    } else {
      rows_.resize(calls.count);
      calls.copy_to(rows_);
      hold(rows_);
    }
  }
  template <typename Emit>
  void add(const void* ring, const schema::CallRow& row, CallEncoders& encoders, Emit emit) {
    look_at_ring(ring, 1, encoders, emit);
    if (streams_ && row.time_ns > last_ns_) {
      stream({&row, 1}, emit);
    } else {
      hold({&row, 1});
    }
  }

  // Gives out batches that are full.
  template <typename Emit>
  void close_full(Emit emit) {
    held_.close_full(emit);
  }
  // Gives out what lies before a time, in batches however small.
  template <typename Emit>
  void close_before(int64_t time_ns, CallEncoders& encoders, Emit emit) {
    if (streams_) stop_stream(encoders, emit);
    held_.close_before(time_ns, emit);
    several_ = false;
    ring_ = nullptr;
  }
  // Gives out the rest.
  template <typename Emit>
  void close_all(CallEncoders& encoders, Emit emit) {
    if (streams_) stop_stream(encoders, emit);
    held_.close_all(emit);
  }
  bool empty() const { return size() == 0; }
  size_t size() const { return held_.size() + (streams_ ? stream_->rows() : 0); }

 private:
  template <typename Emit>
  void look_at_ring(const void* ring, size_t more, CallEncoders& encoders, Emit emit) {
    if (ring != ring_ && ring_ != nullptr) {
      several_ = true;
      if (streams_) stop_stream(encoders, emit);
    }
    ring_ = ring;
    if (!streams_ && !several_ && held_.size() + more >= kStreamFrom) start_stream(encoders, emit);
  }
  void hold(std::span<const schema::CallRow> rows) {
    held_.begin_after(last_ns_);
    held_.add(rows);
  }
  bool rises(std::span<const schema::CallRow> rows) const {
    int64_t last_ns = last_ns_;
    bool all = true;
    for (const schema::CallRow& row : rows) {
      all &= row.time_ns > last_ns;
      last_ns = row.time_ns;
    }
    return all;
  }

  template <typename Emit>
  void stream(const schema::CallChunk& calls, Emit emit) {
    // A batch that these do not fit into stays a little smaller.
    if (stream_->rows() + calls.count > kBatch) finish_batch(emit);
    if (stream_->rows() == 0) first_ns_ = calls.time_ns[0];
    stream_->add(calls);
    last_ns_ = calls.time_ns[calls.count - 1];
    if (stream_->rows() == kBatch) finish_batch(emit);
  }
  template <typename Emit>
  void stream(std::span<const schema::CallRow> rows, Emit emit) {
    while (!rows.empty()) {
      const auto part = rows.first(std::min(rows.size(), kBatch - stream_->rows()));
      if (stream_->rows() == 0) first_ns_ = part.front().time_ns;
      stream_->add(part);
      last_ns_ = part.back().time_ns;
      rows = rows.subspan(part.size());
      if (stream_->rows() == kBatch) finish_batch(emit);
    }
  }
  template <typename Emit>
  void finish_batch(Emit emit) {
    const PackedCalls batch{stream_->rows(), first_ns_, last_ns_, stream_->finish()};
    stream_->begin(kBatch);
    emit(batch);
  }
  template <typename Emit>
  void start_stream(CallEncoders& encoders, Emit emit) {
    stream_ = encoders.lend();
    streams_ = stream_ != nullptr;
    if (!streams_) return;
    stream_->begin(kBatch);
    held_.close_all([&](std::span<const schema::CallRow> rows) {
      if (rises(rows)) {
        stream(rows, emit);
      } else {
        emit(rows);
      }
    });
  }
  template <typename Emit>
  void stop_stream(CallEncoders& encoders, Emit emit) {
    if (stream_->rows() != 0) finish_batch(emit);
    encoders.take_back(std::move(stream_));
    streams_ = false;
  }

  Packer<schema::CallRow, CallBefore, kBatch> held_;
  std::vector<schema::CallRow> rows_;  // Of the calls that are being added.
  std::unique_ptr<schema::CallEncoder> stream_;
  bool streams_ = false;
  bool several_ = false;         // Rings, since the last close_before().
  const void* ring_ = nullptr;   // The last one since then.
  int64_t first_ns_ = 0;         // Of the encoder's batch.
  int64_t last_ns_ = INT64_MIN;  // That an encoder was given.
};

}  // namespace heapledger::collector
