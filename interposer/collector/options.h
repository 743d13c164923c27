// SPDX-License-Identifier: Apache-2.0
// What the collector was asked to do: its environment (HEAPLEDGER_<OPTION>) and two arguments.
//
// A value that makes no sense is ignored here: `heapledger record` checks options before it sets
// them, and under a bare preload a recording with a default is better than none.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "schema/shared_region.h"

namespace heapledger::collector {

struct Options {
  int control_fd = -1;          // --control-fd N; -1: nobody listens.
  bool probe_syscalls = false;  // --probe-syscalls: only say whether they can be seen.
  bool plain = false;           // --plain: "ready NAME" and "error TEXT" instead of JSON.
  std::string output;           // HEAPLEDGER_OUTPUT; empty: heapledger.PROGRAM.PID.db.
  bool overwrite = false;       // HEAPLEDGER_FORCE
  uint32_t stack_depth = 128;   // HEAPLEDGER_STACK_DEPTH; 0 with HEAPLEDGER_NO_STACKS.
  bool free_stacks = false;     // HEAPLEDGER_FREE_STACKS
  bool verify_stacks = false;   // HEAPLEDGER_VERIFY_STACKS
  schema::FaultSource fault_source = schema::FaultSource::kAuto;  // HEAPLEDGER_FAULT_SOURCE,
                                                                  // HEAPLEDGER_NO_FAULTS
  bool kernel_syscalls = false;                                   // HEAPLEDGER_SYSCALLS is kernel
  bool follow = true;                                             // not HEAPLEDGER_NO_FOLLOW
  std::chrono::milliseconds snapshot_interval{0};  // HEAPLEDGER_SNAPSHOT_INTERVAL; 0: the schedule.
  uint64_t trace_bytes_max = 0;                    // HEAPLEDGER_MAX_SIZE; 0: no bound.
  std::optional<uint64_t> spool_limit;             // HEAPLEDGER_SPOOL_LIMIT, bytes
  size_t backlog_bytes = 32U << 20;  // HEAPLEDGER_BACKLOG, for tests: what is more is spooled.
  std::string dump;  // HEAPLEDGER_DUMP, for developers: a file that gets the ring stream.
  std::string json;  // All HEAPLEDGER_ options as a JSON object, for meta.
};

// Reads the arguments and the environment.
Options read_options(int argc, char** argv);

}  // namespace heapledger::collector
