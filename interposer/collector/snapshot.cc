// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/snapshot.h"

#include <algorithm>

#include "interposer/collector/clock_map.h"

namespace heapledger::collector {
namespace {

constexpr int64_t kFirstNs = 10'000'000;
constexpr int64_t kSpentGraceNs = 10'000'000;  // Spent before the 2 % rule begins to bite.
constexpr int64_t kSpentShare = 50;

}  // namespace

const char* snapshot_reason_name(SnapshotReason reason) {
  switch (reason) {
    case SnapshotReason::kStart:
      return "start";
    case SnapshotReason::kSchedule:
      return "schedule";
    case SnapshotReason::kPeak:
      return "peak";
    case SnapshotReason::kMark:
      return "mark";
    case SnapshotReason::kExit:
      break;
  }
  return "exit";
}

bool take_snapshot(pid_t pid, SnapshotReason reason, Snapshot& snapshot) {
  snapshot.raw_ns = raw_now_ns();
  snapshot.reason = reason;
  const MappingsFile file(pid, "smaps");
  const auto smaps = file.read();
  if (!smaps || smaps->empty()) return false;  // A zombie's is empty.
  snapshot.regions = parse_smaps(*smaps);
  PageScanner scanner(pid);
  for (const MemoryRegion& region : snapshot.regions) {
    snapshot.rss_bytes += region.rss_bytes;
    snapshot.pss_bytes += region.pss_bytes;
    snapshot.swap_bytes += region.swap_bytes;
    Residency residency;
    if (region.may_be_heap() && scanner.is_open() &&
        scanner.scan(region.start, region.end, residency)) {
      snapshot.residency.push_back(std::move(residency));
    }
  }
  snapshot.rss_peak_bytes = proc_rss_peak_bytes(pid);
  snapshot.threads = proc_threads(pid);
  snapshot.end_raw_ns = raw_now_ns();
  return file.is_current();
}

SnapshotSchedule::SnapshotSchedule(int64_t start_ns, std::chrono::nanoseconds fixed_interval)
    : start_ns_(start_ns),
      fixed_ns_(fixed_interval.count()),
      step_ns_(fixed_ns_ != 0 ? fixed_ns_ : kFirstNs),
      next_ns_(start_ns + step_ns_) {}

bool SnapshotSchedule::is_new_peak(uint64_t rss_bytes) {
  if (rss_bytes <= peak_bytes_ + peak_bytes_ / 20) return false;
  peak_bytes_ = rss_bytes;
  return true;
}

void SnapshotSchedule::taken(int64_t begin_ns, int64_t end_ns) {
  spent_ns_ += end_ns - begin_ns;
  if (fixed_ns_ == 0) {
    step_ns_ = std::clamp((end_ns - start_ns_) / 50, kFirstNs, step_ns_ + step_ns_ / 2);
  }
  next_ns_ = end_ns + step_ns_;
}

bool SnapshotSchedule::has_budget(int64_t now_ns) const {
  return spent_ns_ < kSpentGraceNs + (now_ns - start_ns_) / kSpentShare;
}

}  // namespace heapledger::collector
