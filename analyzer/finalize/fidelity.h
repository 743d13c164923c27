// SPDX-License-Identifier: Apache-2.0
// What glibc's own layout would have made of the recorded calls: table `fidelity`; and, at the
// moments of the ledger, what it would have held and where this allocator keeps its free chunks.
//
// The models run on a thread of their own, with a connection of their own, while the final pass
// replays. The calls of a process that neither was forked nor forks a recorded child come from its
// replay (OpFeed); families read theirs by themselves, since the models play a child in the middle
// of its parent. Until the thread is joined, the pass must not need the file's exclusive lock (see
// finalize()).
// Invariant: the thread comes to the fed processes in the order in which the pass replays them.
// Thread safety: the object belongs to its caller's thread. Cost: about 100 ns per call, beside the
// replay.
#pragma once

#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "analyzer/finalize/op_feed.h"
#include "analyzer/trace_info.h"
#include "analyzer/whatif/model.h"

namespace heapledger::analyzer {

struct Fidelity {
  int64_t process = 0;
  ModelCounts counts;
};

// The models at a moment of a process.
struct ModelMoment {
  int64_t process = 0;
  int64_t time_ns = 0;
  uint64_t glibc_held_bytes = 0;
  std::vector<FreePiece> free;  // Of this allocator's layout, in recorded addresses.
};

struct FidelityResults {
  std::vector<Fidelity> processes;                             // By row.
  std::map<std::pair<int64_t, int64_t>, ModelMoment> moments;  // By process and time.
};
// Process -> times, ascending.
using ModelTimes = std::map<int64_t, std::vector<int64_t>>;

// Recorded processes in the order of their beginnings: the pass's.
std::vector<const ProcessInfo*> recorded_by_start(const TraceInfo& info);

// Of all recorded processes. Damaged batches are left out. With a queue, the operations of
// processes by themselves come through it.
FidelityResults compute_fidelity(schema::Database& db, const TraceInfo& info,
                                 const ModelTimes& times, OpQueue* queue = nullptr);
// One process, up to a moment, by itself.
ModelMoment model_at(schema::Database& db, const TraceInfo& info, int64_t process, int64_t time_ns);

class FidelityPass {
 public:
  // Starts. Where `db` is in no file that could be opened again, the models run in finish().
  FidelityPass(schema::Database& db, const TraceInfo& info, ModelTimes times);
  ~FidelityPass();
  FidelityPass(const FidelityPass&) = delete;
  FidelityPass& operator=(const FidelityPass&) = delete;

  // For the replay of a process, which must come to its end; null where the models need none. Each
  // process once, in the pass's order.
  std::unique_ptr<OpFeed> feed(const ProcessInfo& process);
  // Waits, and writes the table. Rethrows what the thread threw.
  void finish();
  // After finish(); null where there is none.
  ModelMoment* moment(int64_t process, int64_t time_ns);

 private:
  schema::Database& db_;
  const TraceInfo& info_;
  ModelTimes times_;
  std::set<int64_t> forking_;  // Processes with a forked child that is recorded.
  OpQueue queue_;
  std::thread thread_;
  FidelityResults results_;
  std::exception_ptr error_;
};

}  // namespace heapledger::analyzer
