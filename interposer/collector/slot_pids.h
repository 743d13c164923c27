// SPDX-License-Identifier: Apache-2.0
// Which process of ours (by pid in our namespace) holds a process slot: the slot has the pid as the
// process sees it, which differs inside a container or after unshare --pid.
//
// A process lives in another pid namespace than its parent if its parent has no number there
// (getppid() gave 0), or if its parent already does. Such pids are searched by the innermost number
// of NSpid in /proc, among the processes of that namespace.
//
// Thread safety: none; the observer and the writer have one each. Cost: a look-up once known.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <unordered_map>

#include "interposer/collector/region.h"

namespace heapledger::collector {

class SlotPids {
 public:
  // `pid` and `own_pid`: of the image's first process, as we and as it see it.
  SlotPids(const Region& region, pid_t pid, uint32_t own_pid);

  // 0: no process of the image can have this slot. Negative: its own number, as nobody could be
  // found in its namespace.
  pid_t pid_of_slot(uint32_t slot);
  // What the process in `slot` means by this pid or tid: itself, its thread, or another process.
  pid_t pid_named_by(uint32_t slot, uint32_t own_pid);
  pid_t tid_named_by(uint32_t slot, uint32_t own_tid);

 private:
  struct Known {
    pid_t pid = 0;
    bool elsewhere = false;  // In another pid namespace than ours.
  };
  const Known& look(uint32_t slot, int depth = 0);

  const Region* region_;
  pid_t pid_;
  uint32_t own_pid_;
  uint64_t began_;  // The image's first process, in the kernel's clock ticks; 0: unknown.
  std::unordered_map<uint64_t, Known> known_;  // By the process' start_tick: slots are reused.
};

}  // namespace heapledger::collector
