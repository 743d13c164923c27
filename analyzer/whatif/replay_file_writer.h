// SPDX-License-Identifier: Apache-2.0
// Writes a recorded process's calls for the replayer (schema/replay_file.h).
// Thread safety: none. Memory: the operations of all threads that overlap, some 32 bytes each; they
// are gathered in memory per thread. Cost: about 100 ns per operation.
#pragma once

#include <cstdint>
#include <string>

#include "analyzer/trace_info.h"
#include "schema/trace_db.h"

namespace heapledger::analyzer {

struct ReplayFileFacts {
  uint64_t operations = 0;
  uint32_t threads = 0;
  uint64_t unmatched_ends = 0;
  bool touches_known = false;
};

// Throws Error.
ReplayFileFacts write_replay_file(schema::Database& db, const TraceInfo& info, int64_t process,
                                  const std::string& path);

}  // namespace heapledger::analyzer
