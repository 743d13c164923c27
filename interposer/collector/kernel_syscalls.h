// SPDX-License-Identifier: Apache-2.0
// Memory system calls as the kernel sees them: perf events on the tracepoints of their entries and
// exits, one record each, with arguments, result, times, the address of the instruction, and the
// word at the top of the stack: libc's functions for system calls push nothing, so there it is
// their return address.
//
// As with page faults (perf_faults.h) a task that is attached brings its later threads and children
// with it, so there is a buffer per processor, into which the events of all calls write. These
// tracepoints hand perf the program's registers, not the kernel's: they may be had without the
// right to look into the kernel, wherever page faults may and tracefs can be read.
//
// The records also tell of forks, exits and execs, for the case that PerfFaults does not.
// Thread safety: as PerfFaults.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "interposer/collector/perf_ring.h"
#include "interposer/collector/tracepoints.h"
#include "interposer/collector/unique_fd.h"

namespace heapledger::collector {

// The entry or the exit of a call.
struct KernelRecord {
  int64_t raw_ns = 0;  // CLOCK_MONOTONIC_RAW
  uint64_t ip = 0;     // Behind the program's instruction.
  uint64_t top = 0;    // Of an entry: the word at the top of the stack; 0: not readable.
  uint64_t words[kCallArguments] = {};  // Arguments; at an exit words[0] is the result.
  uint32_t pid = 0;
  uint32_t tid = 0;
  schema::SyscallName name{};
  bool entry = false;
};

class KernelSyscalls {
 public:
  KernelSyscalls();
  ~KernelSyscalls();

  // False: children are not followed, only threads. Before the first attach.
  void set_follow(bool follow) { follow_ = follow; }

  // Attaches to a thread. False: why() says what stands in the way.
  bool attach(pid_t tid, PerfWhen when);
  // Attaches to every thread of a process.
  bool attach_process(pid_t pid);

  bool active() const { return ready_.load(std::memory_order_acquire); }
  // All calls that are entered later than this are seen (CLOCK_MONOTONIC_RAW).
  int64_t since_raw_ns() const { return since_raw_ns_.load(); }
  const std::string& why() const { return why_; }
  uint64_t buffer_bytes() const { return buffer_bytes_; }  // Per processor.

  void drain(RawBytes& raw, std::vector<PerfPiece>& pieces);
  // Decodes a piece, in the order of the buffer: calls, and what becomes of tasks.
  void decode(const std::byte* data, size_t bytes, std::vector<KernelRecord>& records,
              std::vector<PerfRecord>& tasks) const;
  // Records that the kernel dropped, by its own count, up to now.
  uint64_t lost_total() const;

 private:
  struct Buffer;
  bool open_all(pid_t tid, PerfWhen when);
  bool open_on(Buffer& buffer, pid_t tid, PerfWhen when);
  bool map_buffers(std::vector<std::unique_ptr<Buffer>>& buffers);

  Tracepoints points_{};
  bool found_ = false;
  std::vector<std::unique_ptr<Buffer>> buffers_;  // Fixed once ready_.
  std::atomic<bool> ready_{false};
  mutable std::mutex mutex_;      // Guards the next one.
  std::vector<UniqueFd> others_;  // Events of later tasks, writing into the buffers of the first.
  std::atomic<int64_t> since_raw_ns_{0};
  mutable std::atomic<uint64_t> lost_told_{0};  // By records.
  bool follow_ = true;
  std::string why_;
  uint64_t buffer_bytes_ = 0;
};

// Whether this process could attach to itself; else why not.
bool can_see_syscalls(std::string& why);

}  // namespace heapledger::collector
