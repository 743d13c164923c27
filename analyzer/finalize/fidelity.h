// SPDX-License-Identifier: Apache-2.0
// What glibc's own layout would have made of the recorded calls: table `fidelity`; and, at the
// moments of the ledger, what it would have held and where this allocator keeps its free chunks.
//
// The models need nothing of the other results, only the calls: they run on a thread of their own,
// with a connection of their own, while the final pass replays. Until they are joined, the pass
// must not need the file's exclusive lock (see finalize()).
// Thread safety: the object belongs to its caller's thread. Cost: about 100 ns per call, beside the
// replay.
#pragma once

#include <cstdint>
#include <exception>
#include <map>
#include <thread>
#include <utility>
#include <vector>

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

// Of all recorded processes. Damaged batches are left out.
FidelityResults compute_fidelity(schema::Database& db, const TraceInfo& info,
                                 const ModelTimes& times);
// One process, up to a moment, by itself.
ModelMoment model_at(schema::Database& db, const TraceInfo& info, int64_t process, int64_t time_ns);

class FidelityPass {
 public:
  // Starts. Where `db` is in no file that could be opened again, the models run in finish().
  FidelityPass(schema::Database& db, const TraceInfo& info, ModelTimes times);
  ~FidelityPass();
  FidelityPass(const FidelityPass&) = delete;
  FidelityPass& operator=(const FidelityPass&) = delete;

  // Waits, and writes the table. Rethrows what the thread threw.
  void finish();
  // After finish(); null where there is none.
  ModelMoment* moment(int64_t process, int64_t time_ns);

 private:
  schema::Database& db_;
  const TraceInfo& info_;
  std::thread thread_;
  ModelTimes times_;
  FidelityResults results_;
  std::exception_ptr error_;
};

}  // namespace heapledger::analyzer
