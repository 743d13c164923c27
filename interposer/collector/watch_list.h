// SPDX-License-Identifier: Apache-2.0
// The processes that the observer watches: a pidfd each, so that their end is noticed at once and
// their exit status can be told although they are not our children.
//
// Exit status: PIDFD_GET_INFO tells it after the process was reaped (Linux 6.15), /proc/PID/stat
// while it is a zombie. Older kernels leave it to the process's own slot.
// Thread safety: one thread (observer).
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "interposer/collector/message.h"
#include "interposer/collector/snapshot.h"
#include "interposer/collector/unique_fd.h"

namespace heapledger::collector {

struct Watched {
  pid_t pid = 0;
  UniqueFd pidfd;
  // Of recorded processes: their slot, and what snapshots go by.
  RegionPtr region;
  uint32_t slot = 0;
  std::unique_ptr<SnapshotSchedule> schedule;
};

class WatchList {
 public:
  explicit WatchList(int epoll_fd) : epoll_fd_(epoll_fd) {}

  // Begins to watch; null if the process is gone already (errno ESRCH), or if it cannot be watched
  // now. A pid that is watched is returned as is.
  Watched* watch(pid_t pid);
  // The process has ended: how, if anyone can tell. It is no longer watched.
  ExitInfo take_exit(pid_t pid);
  bool contains(pid_t pid) const { return list_.contains(pid); }

  std::unordered_map<pid_t, Watched>& all() { return list_; }
  bool empty() const { return list_.empty(); }

 private:
  int epoll_fd_;
  std::unordered_map<pid_t, Watched> list_;
};

}  // namespace heapledger::collector
