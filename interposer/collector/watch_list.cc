// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/watch_list.h"

#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <optional>

#include "interposer/collector/proc_files.h"

namespace heapledger::collector {
namespace {

// include/uapi/linux/pidfd.h of Linux 6.15, which Debian 12's headers do not have yet.
struct PidfdInfo {
  uint64_t mask;
  uint64_t cgroup_id;
  uint32_t pid, tgid, ppid, ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid;
  int32_t exit_code;
};
static_assert(sizeof(PidfdInfo) == 64);
constexpr uint64_t kInfoExit = 1U << 3;
const unsigned long kGetInfo = _IOWR(0xFF, 11, PidfdInfo);

std::optional<int> reaped_wait_status(int pidfd) {
  PidfdInfo info{};
  info.mask = kInfoExit;
  if (ioctl(pidfd, kGetInfo, &info) != 0 || (info.mask & kInfoExit) == 0) return std::nullopt;
  return info.exit_code;
}

}  // namespace

Watched* WatchList::watch(pid_t pid) {
  if (const auto found = list_.find(pid); found != list_.end()) return &found->second;
  UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd) return nullptr;
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = static_cast<uint64_t>(pid);
  if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, pidfd.get(), &event) != 0) return nullptr;
  Watched& watched = list_[pid];
  watched.pid = pid;
  watched.pidfd = std::move(pidfd);
  return &watched;
}

ExitInfo WatchList::take_exit(pid_t pid) {
  const auto found = list_.find(pid);
  if (found == list_.end()) return {};
  const int pidfd = found->second.pidfd.get();
  // It is a zombie or reaped, and may be reaped between the questions: so the first is asked twice.
  std::optional<int> status = reaped_wait_status(pidfd);
  if (!status) status = zombie_wait_status(pid);
  if (!status) status = reaped_wait_status(pidfd);
  list_.erase(found);  // Closing the pidfd takes it out of the epoll set.
  return {status.has_value(), status.value_or(0)};
}

}  // namespace heapledger::collector
