// SPDX-License-Identifier: Apache-2.0
// Packs the calls and stacks of a small recording anew, harder than there was time for while the
// program ran. A recording of some million calls is mostly them; in a larger one nobody should wait
// for it, and what comes with the calls (names, sites) weighs less there.
//
// Thread safety: the work is done by a thread of its own while the pass goes on; it touches no
// database. Damaged batches stay as they are.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "schema/trace_db.h"
#include "schema/worker.h"

namespace heapledger::analyzer {

class RepackPass {
 public:
  static constexpr int64_t kEventsMax = 4'000'000;

  explicit RepackPass(schema::Database& db, int64_t events_max = kEventsMax);
  // Writes what became smaller; once is enough.
  void finish();

 private:
  struct Batch {
    std::string table;
    int64_t id;
    std::vector<uint8_t> blob;  // Then the new one; empty: it stays as it is.
  };

  schema::Database& db_;
  std::vector<Batch> batches_;
  schema::Worker worker_;
};

}  // namespace heapledger::analyzer
