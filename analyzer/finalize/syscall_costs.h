// SPDX-License-Identifier: Apache-2.0
// Table `syscall_cost`: what the memory system calls of a process cost, by call and cause, and by
// stack too, with percentiles.
//
// Thread safety: as its Database. Memory: 16 bytes per call of the process.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "schema/trace_db.h"

namespace heapledger::analyzer {

struct CallCost {
  int64_t count = 0, ns = 0, p50_ns = 0, p99_ns = 0, max_ns = 0;
};

// Of these durations; sorts them. There must be one.
CallCost cost_of(std::vector<int64_t>& durations);

void write_syscall_costs(schema::Database& db, int64_t process);

}  // namespace heapledger::analyzer
