// SPDX-License-Identifier: Apache-2.0
// Who is who: from pids, at times, to rows of table `process`.
//
// News of a process comes from up to five sides, in no fixed order: `record` (launch), the
// process's Hello, a forked child's process slot, the kernel's fork, exec and exit records, exec
// events of the shim, and the end of a watched pid. Each function takes one kind of news and works
// whichever came first:
//   - an exec seen by the kernel makes a process without a row; the Hello that follows fills it. A
//     Hello that came first is matched by the exec record whose time lies before it.
//   - a fork seen by the kernel makes a process without a row; the claim of a slot fills it, or an
//     exec turns it into a new image (vfork, posix_spawn).
//   - a process of another pid namespace names itself as we do not know it. If it has ended before
//     /proc could tell (SlotPids), its slot has a pid below zero, and is matched with the kernel's
//     record of its fork by parent and time.
//   - what has no Hello when it ends gets a row with recorded = 0 and the reason.
//
// Times are trace nanoseconds. Thread safety: none (writer thread).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "interposer/collector/message.h"
#include "interposer/collector/process.h"

namespace heapledger::collector {

class ProcessTable {
 public:
  // `watch` is called for every pid that appears: it must lead to one gone() for that pid.
  ProcessTable(FrameTable& frames, std::function<void(pid_t)> watch);

  void set_follow(bool follow) { follow_ = follow; }

  Process& launched(const Launched& news, int64_t time_ns);
  Process& joined(const ImageJoined& news, int64_t time_ns);
  // The fork's claim; `pid` in our namespace, `parent` the process of its parent slot (or null).
  Process& forked(RegionPtr region, uint32_t slot, pid_t pid, Process* parent, int64_t time_ns);
  // The fork found no slot: it is not recorded, for this reason.
  Process& refused(pid_t pid, Process* parent, std::string reason, int64_t time_ns);
  // The image that this pid runs, or ran last, called and was not taken in.
  Process& unrecorded(const Unrecorded& news, int64_t time_ns);
  void kernel_fork(const PerfRecord& record, int64_t time_ns);
  void kernel_exec(const PerfRecord& record, int64_t time_ns);
  void kernel_exit(const PerfRecord& record, int64_t time_ns);
  // The shim's exec event: `by` runs or made the process `pid` that is about to run a file.
  void exec_announced(pid_t pid, Process& by, std::string path, std::string command,
                      int64_t time_ns);
  void exec_failed(pid_t pid);
  // A watched pid has ended. Null: nothing was known of it.
  Process* gone(pid_t pid, const ExitInfo& exit, int64_t time_ns);
  // The recording ends: what has no row gets one.
  void settle_all();

  Process* current(pid_t pid) const;
  // The process that had this pid at this time; made, unrecorded, if there is none.
  Process& at(pid_t pid, int64_t time_ns);
  std::deque<Process>& all() { return all_; }
  uint32_t rows() const { return next_id_ - 1; }
  uint32_t& next_thread_id() { return next_thread_id_; }

 private:
  struct Announced {
    Process* by;
    std::string path;
    std::string command;
    int64_t time_ns;
  };
  Process* first_image(pid_t pid) const;
  Process* other_half(pid_t parent_pid, int64_t time_ns, bool by_kernel);
  Process* image_awaiting_exec(pid_t pid, int64_t exec_ns) const;
  Process& make(pid_t pid, Process* parent, int64_t time_ns);
  void give_row(Process& process);
  void settle(Process& process);  // Unrecorded for good: finds the reason.
  Process& run_image(pid_t pid, Process* before, int64_t time_ns);
  void end_by_exec(Process& process, int64_t time_ns);
  void name_image(Process& process, pid_t pid);
  void take_announced(pid_t pid, int64_t time_ns);

  FrameTable& frames_;
  std::function<void(pid_t)> watch_;
  std::deque<Process> all_;
  std::unordered_map<pid_t, std::vector<Process*>> by_pid_;  // Oldest first.
  std::unordered_map<pid_t, Announced> announced_;
  bool follow_ = true;
  uint32_t next_id_ = 1;
  uint32_t next_thread_id_ = 1;
};

}  // namespace heapledger::collector
