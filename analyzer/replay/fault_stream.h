// SPDX-License-Identifier: Apache-2.0
// The page faults of a process in order of time, each with a place to write what it was about.
//
// Batches may overlap in time, so reading is a merge over those that are open. An attribution may
// come late (a fault inside a call waits for the call's event), so a batch stays in memory until
// its last fault is attributed or given up; then its blob is handed to the sink.
// Thread safety: none. Memory: one decoded batch (3 MB) per overlapping or waiting batch.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "schema/event_reader.h"
#include "schema/fault_batch.h"

namespace heapledger::analyzer {

class FaultStream {
 public:
  // Called with a batch's row and its attributions once all of them are known.
  using Sink = std::function<void(int64_t, std::span<const schema::FaultAttribution>)>;

  struct OpenBatch;
  // A fault's place in its batch; keeps the batch.
  struct Place {
    std::shared_ptr<OpenBatch> batch;
    size_t index = 0;
  };

  // `sink` may be empty. Faults after `time_max_ns` are not read.
  FaultStream(schema::Database& db, int64_t process, int64_t time_max_ns, Sink sink,
              schema::DamageSink damage);

  // INT64_MAX at the end.
  int64_t next_time() const { return next_time_; }
  schema::FaultRow next(Place& place);
  static void attribute(const Place& place, const schema::FaultAttribution& attribution);

 private:
  struct Pending {
    int64_t id;
    int64_t time_min_ns;
  };
  void open_batch(int64_t id);
  void settle();

  schema::Database& db_;
  int64_t time_max_ns_;
  Sink sink_;
  schema::DamageSink damage_;
  std::vector<Pending> unopened_;  // Last first.
  std::vector<std::shared_ptr<OpenBatch>> open_;
  size_t current_ = 0;  // Of open_.
  int64_t next_time_ = 0;
};

}  // namespace heapledger::analyzer
