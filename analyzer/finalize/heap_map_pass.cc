// SPDX-License-Identifier: Apache-2.0
#include "analyzer/finalize/heap_map_pass.h"

#include <algorithm>

namespace heapledger::analyzer {

namespace {

constexpr uint64_t kGrace = 1 << 16;
constexpr uint64_t kForkedGrace = 1 << 12;

}  // namespace

HeapMapPass::HeapMapPass(int64_t start_ns, int64_t end_ns, bool is_forked)
    : grace_(is_forked ? kForkedGrace : kGrace) {
  const int64_t run_ns = std::max<int64_t>(0, end_ns - start_ns);
  for (int64_t i = 1; i < kMomentsMax; ++i) {
    // By parts: a run of hours times 64 would still fit, a damaged one might not.
    const int64_t time_ns = start_ns + run_ns / kMomentsMax * i;
    if (moments_.empty() || time_ns > moments_.back()) moments_.push_back(time_ns);
  }
}

void HeapMapPass::on_moment(const Replay& replay, int64_t time_ns, bool resident_known) {
  const uint64_t price = replay.live().blocks() + HeapMap::kCellsMax / 4;
  if (spent_ + price > grace_ + replay.step()) return;
  spent_ += price;
  map_.add(replay, time_ns, resident_known);
}

void HeapMapPass::finish(const Replay& replay, int64_t time_ns, bool resident_known) {
  map_.add(replay, time_ns, resident_known);
}

void HeapMapPass::write(schema::Database& db, int64_t process) const {
  schema::Statement insert = db.prepare("INSERT OR REPLACE INTO heap_map VALUES (?, ?, ?, ?)");
  const MapMoment* before = nullptr;
  for (const MapMoment& moment : map_.moments()) {
    insert.run_with(process, moment.time_ns, map_.cell_bytes(), encode_map_cells(moment, before));
    before = &moment;
  }
}

}  // namespace heapledger::analyzer
