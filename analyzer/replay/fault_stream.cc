// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay/fault_stream.h"

#include <algorithm>
#include <limits>

#include "schema/error.h"

namespace heapledger::analyzer {

struct FaultStream::OpenBatch {
  int64_t id = 0;
  schema::FaultBatch rows;
  std::vector<schema::FaultAttribution> attributions;
  size_t at = 0;
  Sink sink;

  // The last holder is gone: every attribution that will come has come.
  ~OpenBatch() {
    if (sink) sink(id, attributions);
  }
  OpenBatch() = default;
  OpenBatch(const OpenBatch&) = delete;
  OpenBatch& operator=(const OpenBatch&) = delete;
};

FaultStream::FaultStream(schema::Database& db, int64_t process, int64_t time_max_ns, Sink sink,
                         schema::DamageSink damage)
    : db_(db), time_max_ns_(time_max_ns), sink_(std::move(sink)), damage_(std::move(damage)) {
  schema::Statement select = db.prepare(
      "SELECT id, time_min_ns FROM fault_batch WHERE process = ? AND time_min_ns <= ?"
      " ORDER BY time_min_ns DESC, id DESC");
  select.bind_all(process, time_max_ns);
  while (select.step()) unopened_.push_back({select.column_int(0), select.column_int(1)});
  settle();
}

void FaultStream::open_batch(int64_t id) {
  schema::Statement select = db_.prepare("SELECT data, faults FROM fault_batch WHERE id = ?");
  select.bind(1, id);
  if (!select.step()) return;
  auto batch = std::make_shared<OpenBatch>();
  batch->id = id;
  try {
    schema::decode_faults(select.column_blob(0), schema::kFaultColumnsAll, batch->rows);
  } catch (const schema::Error& error) {
    if (damage_) damage_({id, select.column_int(1), error.what()});
    return;
  }
  batch->attributions.resize(batch->rows.faults);
  batch->sink = sink_;
  if (batch->rows.faults != 0) open_.push_back(std::move(batch));
}

// Finds the next fault: the earliest head of the open batches, once every batch that could hold an
// earlier one is open.
void FaultStream::settle() {
  for (;;) {
    next_time_ = std::numeric_limits<int64_t>::max();
    for (size_t i = 0; i < open_.size(); ++i) {
      const int64_t time = open_[i]->rows.time_ns[open_[i]->at];
      if (time < next_time_) {
        next_time_ = time;
        current_ = i;
      }
    }
    if (unopened_.empty() || unopened_.back().time_min_ns > next_time_) break;
    const int64_t id = unopened_.back().id;
    unopened_.pop_back();
    open_batch(id);
  }
  if (next_time_ > time_max_ns_) next_time_ = std::numeric_limits<int64_t>::max();
}

schema::FaultRow FaultStream::next(Place& place) {
  const std::shared_ptr<OpenBatch> batch = open_[current_];
  place = {batch, batch->at};
  const schema::FaultRow row = batch->rows.row(batch->at);
  ++batch->at;
  if (batch->at == batch->rows.faults) {
    open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(current_));
    settle();
  } else if (open_.size() > 1 || (!unopened_.empty() &&
                                  unopened_.back().time_min_ns <= batch->rows.time_ns[batch->at])) {
    settle();
  } else {
    const int64_t time = batch->rows.time_ns[batch->at];
    next_time_ = time <= time_max_ns_ ? time : std::numeric_limits<int64_t>::max();
  }
  return row;
}

void FaultStream::attribute(const Place& place, const schema::FaultAttribution& attribution) {
  place.batch->attributions[place.index] = attribution;
}

}  // namespace heapledger::analyzer
