// SPDX-License-Identifier: Apache-2.0
// Page faults as the kernel sees them: perf software events, one record for every fault.
//
// A task that is attached brings all its later threads and children with it (inherit). Inherited
// events cannot write into a buffer of their own unless it belongs to one processor, so there is a
// buffer per processor, and both events (minor and major) of all attached tasks write into it; a
// record's id says which it was (for inherited events the kernel puts the parent's id there). The
// minor event also tells of forks, exits and execs (task, comm).
//
// Who may: root and CAP_PERFMON everything; others at perf_event_paranoid <= 2 what the program
// itself touches, without the kernel's own touches on its behalf (kPerfUser); above that nothing.
// The buffers are locked memory: unprivileged, /proc/sys/kernel/perf_event_mlock_kb bounds them.
//
// Thread safety: attach() before or while another thread drains; drain() by one thread.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "interposer/collector/perf_ring.h"
#include "interposer/collector/unique_fd.h"

namespace heapledger::collector {

enum class FaultMode { kNone, kGetrusage, kPerfUser, kPerf };
const char* fault_mode_name(FaultMode mode);  // As in meta.fault_source.

class PerfFaults {
 public:
  using When = PerfWhen;

  PerfFaults();
  ~PerfFaults();

  // False: children are not followed, only threads. Before the first attach.
  void set_follow(bool follow) { follow_ = follow; }

  // Attaches to a thread. False: perf is refused; why() says what the kernel said.
  bool attach(pid_t tid, When when);
  // Attaches to every thread of a process.
  bool attach_process(pid_t pid);

  bool active() const { return ready_.load(std::memory_order_acquire); }
  FaultMode mode() const { return mode_; }  // kNone until attached.
  const std::string& why() const { return why_; }
  uint64_t buffer_bytes() const { return buffer_bytes_; }  // Per processor.

  void drain(RawBytes& raw, std::vector<PerfPiece>& pieces);
  // Decodes a piece; records come in the order of the buffer. Bytes that make no sense end it.
  void decode(const std::byte* data, size_t bytes, std::vector<PerfRecord>& records) const;
  // What the kernel dropped, by its own count, up to now.
  uint64_t lost_total() const;

 private:
  struct Buffer;
  bool open_buffers(pid_t tid, When when, bool exclude_kernel);
  bool open_pair(Buffer& buffer, pid_t tid, When when, bool exclude_kernel);
  bool map_buffers(std::vector<std::unique_ptr<Buffer>>& buffers);

  std::vector<std::unique_ptr<Buffer>> buffers_;  // Fixed once ready_.
  std::atomic<bool> ready_{false};
  mutable std::mutex mutex_;  // Guards the lists below against attach() while decoding.
  std::vector<uint64_t> major_ids_;
  std::vector<UniqueFd> others_;  // Events that write into the buffers of the first.
  bool follow_ = true;
  FaultMode mode_ = FaultMode::kNone;
  std::string why_;
  uint64_t buffer_bytes_ = 0;
};

}  // namespace heapledger::collector
