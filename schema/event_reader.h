// SPDX-License-Identifier: Apache-2.0
// The calls, or the page faults, of a process in the order in which they happened.
//
// Batches of a process may overlap in time (late events get a batch of their own), so reading is a
// merge: the table's time ranges say which batches can hold the next row, and only those are open.
// Memory: one decoded batch (about 5 MB for 64 Ki calls) per batch that overlaps the current time.
// Where none overlaps, rows come straight from the one open batch.
//
// A batch that cannot be decoded is reported to the damage sink and left out.
// Order at equal times: call_before(), then batch id, then place in the batch.
// Thread safety: a reader belongs to one thread, and reads its Database.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>

#include "schema/event_batch.h"
#include "schema/fault_batch.h"
#include "schema/trace_db.h"

namespace heapledger::schema {

// Part of a trace that could not be read.
struct Damage {
  int64_t batch;  // Row of event_batch or fault_batch.
  int64_t rows;   // Rows it should have had.
  std::string reason;
};
using DamageSink = std::function<void(const Damage&)>;

struct ReadOptions {
  uint32_t columns = ~0u;  // CallColumns or FaultColumns; time and kind always come along.
  int64_t time_min_ns = std::numeric_limits<int64_t>::min();  // Both inclusive.
  int64_t time_max_ns = std::numeric_limits<int64_t>::max();
  DamageSink damage;   // Unset: damage is thrown as an Error.
  bool ahead = false;  // Calls: decode the next batch on a thread of its own meanwhile.
};

// Rows `begin` to `end` (excluded) of a batch.
struct CallRun {
  const CallBatch* batch = nullptr;
  size_t begin = 0;
  size_t end = 0;
};

class CallReader {
 public:
  CallReader(Database& db, int64_t process, ReadOptions options = {});
  ~CallReader();
  CallReader(CallReader&&) noexcept;

  // The next row, false at the end.
  bool next(CallRow& row);
  // The next rows at once, as many as can be given without looking at another batch; false at the
  // end. Valid until the next call. For loops that want columns and the last bit of speed.
  bool next_run(CallRun& run);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// A fault, and what the final pass knows of it.
struct AttributedFault {
  FaultRow fault;
  FaultAttribution attribution;
  bool attributed = false;  // False: the final pass has not been here; attribution is empty.
};

class FaultReader {
 public:
  FaultReader(Database& db, int64_t process, ReadOptions options = {});
  ~FaultReader();
  FaultReader(FaultReader&&) noexcept;

  bool next(AttributedFault& row);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace heapledger::schema
