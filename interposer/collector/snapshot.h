// SPDX-License-Identifier: Apache-2.0
// Snapshots: what the kernel says of a process's memory at a moment, and when to take them.
//
// When: at the start; after 10 ms and then at intervals that grow by half, up to a fiftieth of the
// process's age (or at a fixed interval that was asked for); when the RSS passes its old peak by
// 5 %; when the process asks (a mark, exit). What nobody asked for is put off while snapshots have
// taken more than 2 % of the time: the program waits for its mmap lock while smaps is read.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <vector>

#include "interposer/collector/page_scan.h"
#include "interposer/collector/proc_files.h"
#include "interposer/collector/smaps.h"

namespace heapledger::collector {

enum class SnapshotReason : uint8_t { kStart, kSchedule, kPeak, kMark, kExit };
const char* snapshot_reason_name(SnapshotReason reason);

struct Snapshot {
  int64_t raw_ns = 0;
  int64_t end_raw_ns = 0;
  SnapshotReason reason = SnapshotReason::kSchedule;
  uint64_t rss_bytes = 0;
  uint64_t pss_bytes = 0;
  uint64_t swap_bytes = 0;
  uint64_t rss_peak_bytes = 0;
  std::vector<MemoryRegion> regions;
  std::vector<Residency> residency;
  std::vector<ThreadSeen> threads;
};

// False: the process is gone, ended or executed another program meanwhile, or may not be looked at.
bool take_snapshot(pid_t pid, SnapshotReason reason, Snapshot& snapshot);

// When the next snapshot of one process is due. Times are CLOCK_MONOTONIC_RAW nanoseconds.
class SnapshotSchedule {
 public:
  SnapshotSchedule(int64_t start_ns, std::chrono::nanoseconds fixed_interval);

  bool is_due(int64_t now_ns) const { return now_ns >= next_ns_; }
  // Has the RSS grown past the largest that was recorded? Remembers it if so.
  bool is_new_peak(uint64_t rss_bytes);
  // A snapshot was taken; plans the next.
  void taken(int64_t begin_ns, int64_t end_ns);
  // May one be taken that nobody asked for?
  bool has_budget(int64_t now_ns) const;

 private:
  int64_t start_ns_;
  int64_t fixed_ns_;  // 0: growing.
  int64_t step_ns_;
  int64_t next_ns_;
  int64_t spent_ns_ = 0;
  uint64_t peak_bytes_ = 0;
};

}  // namespace heapledger::collector
