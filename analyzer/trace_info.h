// SPDX-License-Identifier: Apache-2.0
// What a trace says about itself and its processes: the small tables, read once.
// Thread safety: plain values.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "schema/trace_db.h"

namespace heapledger::analyzer {

struct ProcessInfo {
  int64_t id = 0;
  int64_t pid = 0;
  std::optional<int64_t> parent;
  bool forked = false;
  bool recorded = false;
  std::string exe, command, reason, ended_by;
  std::optional<int64_t> start_ns, end_ns, exit_status, signal;
  std::optional<int64_t> mmap_threshold, mmap_threshold_dynamic, trim_threshold, top_pad, mmap_max,
      arena_max, tcache_count, heap_start;
  int64_t events = 0, events_lost = 0, incomplete_stacks = 0, stall_ns = 0;
  std::optional<int64_t> stacks_compared, stacks_mismatched, stacks_incomparable;
  std::optional<int64_t> rusage_start_minor, rusage_start_major, rusage_minor, rusage_major;
  std::optional<int64_t> perf_minor, perf_major, perf_lost, rss_peak_bytes;
};

struct TraceInfo {
  std::vector<ProcessInfo> processes;             // By id.
  std::map<int64_t, std::vector<int64_t>> forks;  // Their times, by parent; sorted.
  std::string fault_source;                       // perf | perf-user | getrusage | none
  std::string syscall_source;                     // wrappers | kernel
  std::string state;                              // recording | complete
  std::string command;
  int64_t end_ns = 0;  // Last moment of the recording that is known.
  uint64_t page_bytes = 4096;

  // The process of this row; throws Error where there is none.
  const ProcessInfo& process(int64_t id) const;
  bool faults_have_addresses() const { return fault_source.starts_with("perf"); }
  // Every memory system call is in the trace, not only the allocator's and those of libc's
  // wrappers.
  bool syscalls_are_all() const { return syscall_source == "kernel"; }
};

TraceInfo load_trace_info(schema::Database& db);

}  // namespace heapledger::analyzer
