// SPDX-License-Identifier: Apache-2.0
// What glibc's own layout would have made of the recorded calls: table `fidelity`.
//
// The models need nothing of the other results, only the calls: they run on a thread of their own,
// with a connection of their own, while the final pass replays. Until they are joined, the pass
// must not need the file's exclusive lock (see finalize()).
// Thread safety: the object belongs to its caller's thread. Cost: about 100 ns per call, beside the
// replay.
#pragma once

#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

#include "analyzer/trace_info.h"
#include "analyzer/whatif/model.h"

namespace heapledger::analyzer {

struct Fidelity {
  int64_t process = 0;
  ModelCounts counts;
};

// Of all recorded processes, by row. Damaged batches are left out.
std::vector<Fidelity> compute_fidelity(schema::Database& db, const TraceInfo& info);

class FidelityPass {
 public:
  // Starts. Where `db` is in no file that could be opened again, the models run in finish().
  FidelityPass(schema::Database& db, const TraceInfo& info);
  ~FidelityPass();
  FidelityPass(const FidelityPass&) = delete;
  FidelityPass& operator=(const FidelityPass&) = delete;

  // Waits, and writes the table. Rethrows what the thread threw.
  void finish();

 private:
  schema::Database& db_;
  const TraceInfo& info_;
  std::thread thread_;
  std::vector<Fidelity> results_;
  std::exception_ptr error_;
};

}  // namespace heapledger::analyzer
