// SPDX-License-Identifier: Apache-2.0
#include "schema/event_reader.h"

#include <span>

#include "schema/batch_merge.h"

namespace heapledger::schema {
namespace {

struct CallSource {
  using Batch = CallBatch;
  static constexpr char kIndexSql[] =
      "SELECT id, events, time_min_ns FROM event_batch "
      "WHERE process = ? AND time_max_ns >= ? AND time_min_ns <= ? ORDER BY time_min_ns, id";
  static constexpr char kDataSql[] = "SELECT data FROM event_batch WHERE id = ?";

  static constexpr bool kDecodesAhead = true;

  static void decode(Statement& row, uint32_t columns, Batch& batch) {
    decode_data(row.column_blob(0), columns, batch);
  }
  static void decode_data(std::span<const uint8_t> data, uint32_t columns, Batch& batch) {
    thread_local CallDecoder decoder;
    decoder.decode(data, columns | kColumnTime | kColumnKind, batch);
  }
  static int rank(const Batch& batch, size_t row) { return call_rank(batch.kind[row]); }
};

struct AttributedBatch : FaultBatch {
  std::vector<FaultAttribution> attribution;
  bool attributed = false;
};

struct FaultSource {
  using Batch = AttributedBatch;
  static constexpr char kIndexSql[] =
      "SELECT id, faults, time_min_ns FROM fault_batch "
      "WHERE process = ? AND time_max_ns >= ? AND time_min_ns <= ? ORDER BY time_min_ns, id";
  static constexpr char kDataSql[] = "SELECT data, attribution FROM fault_batch WHERE id = ?";

  static constexpr bool kDecodesAhead = false;

  static void decode(Statement& row, uint32_t columns, Batch& batch) {
    decode_faults(row.column_blob(0), columns | kFaultTime, batch);
    batch.attributed = !row.is_null(1);
    batch.attribution.clear();
    if (!batch.attributed) return;
    batch.attribution = decode_attribution(row.column_blob(1));
    if (batch.attribution.size() != batch.faults) {
      throw Error("cannot read a batch", "its attribution is of another length");
    }
  }
  static int rank(const Batch&, size_t) { return 0; }
};

}  // namespace

struct CallReader::State {
  State(Database& db, int64_t process, ReadOptions options)
      : merge(db, process, std::move(options)) {}
  BatchMerge<CallSource> merge;
  CallRun run;
};

CallReader::CallReader(Database& db, int64_t process, ReadOptions options)
    : state_(std::make_unique<State>(db, process, std::move(options))) {}
CallReader::~CallReader() = default;
CallReader::CallReader(CallReader&&) noexcept = default;

bool CallReader::next_run(CallRun& run) {
  CallRun& rest = state_->run;  // What next() began and left.
  if (rest.begin == rest.end) rest.batch = state_->merge.next_run(rest.begin, rest.end);
  run = rest;
  rest.begin = rest.end;
  return run.batch != nullptr;
}

bool CallReader::next(CallRow& row) {
  CallRun& run = state_->run;
  if (run.begin == run.end) {
    run.batch = state_->merge.next_run(run.begin, run.end);
    if (run.batch == nullptr) return false;
  }
  row = run.batch->row(run.begin++);
  return true;
}

struct FaultReader::State {
  State(Database& db, int64_t process, ReadOptions options)
      : merge(db, process, std::move(options)) {}
  BatchMerge<FaultSource> merge;
  const AttributedBatch* batch = nullptr;
  size_t begin = 0;
  size_t end = 0;
};

FaultReader::FaultReader(Database& db, int64_t process, ReadOptions options)
    : state_(std::make_unique<State>(db, process, std::move(options))) {}
FaultReader::~FaultReader() = default;
FaultReader::FaultReader(FaultReader&&) noexcept = default;

bool FaultReader::next(AttributedFault& row) {
  State& state = *state_;
  if (state.begin == state.end) {
    state.batch = state.merge.next_run(state.begin, state.end);
    if (state.batch == nullptr) return false;
  }
  const size_t index = state.begin++;
  row.fault = state.batch->row(index);
  row.attributed = state.batch->attributed;
  row.attribution = row.attributed ? state.batch->attribution[index] : FaultAttribution{};
  return true;
}

}  // namespace heapledger::schema
