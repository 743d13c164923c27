// SPDX-License-Identifier: Apache-2.0
// What a replay reads: one process's streams of events, each with its next row in hand. Part of
// replay.h, for those that play calls (replay_calls.h). Thread safety: none.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "analyzer/replay/replay.h"

namespace heapledger::analyzer {

struct SnapshotEntry {
  int64_t id;
  int64_t begin_ns, end_ns;
};

struct ThreadEnd {
  int64_t time_ns;
  uint32_t thread;
};

struct Replay::Streams {
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

  Streams(schema::Database& db, const TraceInfo& info, int64_t process, int64_t time_max_ns,
          const ReplayOptions& options, bool own);

  // Of a row further on in the same run: where the block it ends or begins starts.
  uint64_t address_ahead(size_t rows) const {
    const size_t row = run.begin + rows < run.end ? run.begin + rows : run.end - 1;
    const uint64_t old = run.batch->old_address[row];
    return old != 0 ? old : run.batch->address[row];
  }
  // The columns are more streams than a processor follows, and another one wrote them. Inlined
  // early: to the compiler a function that only prefetches does nothing, and goes.
  [[gnu::always_inline]] void prefetch_rows() const {
    constexpr size_t kRowsAhead = 64;
    constexpr size_t kRowsPerLine = 8;
    const size_t row = run.begin + kRowsAhead;
    if (row % kRowsPerLine != 0 || row >= run.end) return;
    const schema::CallBatch& batch = *run.batch;
    for (const auto* column : {&batch.id, &batch.address, &batch.size, &batch.usable,
                               &batch.ended_id, &batch.old_address}) {
      __builtin_prefetch(column->data() + row);
    }
    __builtin_prefetch(batch.time_ns.data() + row);
    if (!batch.alignment.empty()) __builtin_prefetch(batch.alignment.data() + row);
    if (row % (2 * kRowsPerLine) != 0) return;
    __builtin_prefetch(batch.thread.data() + row);
    __builtin_prefetch(batch.stack.data() + row);
    __builtin_prefetch(batch.kind.data() + row);
    __builtin_prefetch(batch.flags.data() + row);
  }
  void seek_call() {
    const bool found = run.begin < run.end || calls.next_run(run);
    call_time = found ? run.batch->time_ns[run.begin] : kNever;
  }
  void next_syscall() { syscall_time = syscalls.next(syscall) ? syscall.time_ns : kNever; }
  // When the next snapshot begins or, once it has, ends.
  int64_t snapshot_time() const {
    if (snapshot == snapshots.size()) return kNever;
    return in_snapshot ? snapshots[snapshot].end_ns : snapshots[snapshot].begin_ns;
  }
  int64_t fork_time() const { return fork < forks.size() ? forks[fork] : kNever; }
  int64_t moment_time() const { return moment < moments.size() ? moments[moment] : kNever; }
  int64_t thread_end_time() const {
    return thread_end < thread_ends.size() ? thread_ends[thread_end].time_ns : kNever;
  }

  schema::CallReader calls;
  schema::CallRun run;
  int64_t call_time = kNever;
  SyscallReader syscalls;
  SyscallRow syscall;
  int64_t syscall_time = kNever;
  FaultStream faults;
  std::vector<SnapshotEntry> snapshots;
  size_t snapshot = 0;
  bool in_snapshot = false;
  std::vector<int64_t> forks;
  size_t fork = 0;
  std::vector<ThreadEnd> thread_ends;
  size_t thread_end = 0;
  std::vector<int64_t> moments;
  size_t moment = 0;
};

}  // namespace heapledger::analyzer
