// SPDX-License-Identifier: Apache-2.0
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <set>
#include <sstream>

#include "tools/heapledger/child_setup.h"
#include "tools/heapledger/command_error.h"
#include "tools/heapledger/counted_run.h"

namespace heapledger::front {

namespace {

using Words = std::vector<std::string>;

size_t memory_call(uint64_t number) {
  switch (number) {
    case SYS_brk:
      return 0;
    case SYS_mmap:
      return 1;
    case SYS_munmap:
      return 2;
    case SYS_mremap:
      return 3;
    case SYS_madvise:
      return 4;
    case SYS_mprotect:
      return 5;
    default:
      return CountedRun::kNames.size();
  }
}

// Of /proc/PID/statm, in bytes. Kernels 6.2 to 6.16 add up less than all (a counter per processor
// is folded in from 32 pages on), older ones leave out up to 64 pages of each thread.
uint64_t rss_about(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/statm");
  uint64_t size = 0;
  uint64_t resident = 0;
  file >> size >> resident;
  return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// By the page tables, as they are; 0: not to be had.
uint64_t rss_exactly(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/smaps_rollup");
  std::string line;
  while (std::getline(file, line)) {
    if (line.starts_with("Rss:")) return std::strtoull(line.c_str() + 4, nullptr, 10) * 1024;
  }
  return 0;
}

// RSS is at its peak before a call that may give memory back, or at the end. The kernel's own
// figures of a peak (VmHWM, ru_maxrss) are of such moments, too, but of its approximate counters:
// of a program of 2 MiB they may leave out a tenth.
class RssPeak {
 public:
  void look(pid_t pid) {
    const uint64_t about = rss_about(pid);
    if (about <= about_) return;
    about_ = about;
    const uint64_t exact = rss_exactly(pid);
    bytes_ = std::max(bytes_, exact != 0 ? exact : about);
  }
  uint64_t bytes() const { return bytes_; }

 private:
  uint64_t about_ = 0;  // The highest so far: only beyond it the page tables are walked.
  uint64_t bytes_ = 0;
};

// Field 10 of /proc/PID/stat; the name before may hold spaces.
uint64_t minor_faults_of(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(file, text);
  std::istringstream fields(text.substr(std::min(text.size(), text.rfind(')') + 1)));
  std::string skipped;
  for (int field = 3; field < 10; ++field) fields >> skipped;
  uint64_t faults = 0;
  fields >> faults;
  return faults;
}

// Follows one process and its threads to their end; processes that it forks are let go.
class Counter {
 public:
  explicit Counter(pid_t pid) : pid_(pid) {}

  CountedRun run() {
    constexpr long kOptions = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEEXIT | PTRACE_O_TRACECLONE |
                              PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC |
                              PTRACE_O_EXITKILL;
    int status = 0;
    if (waitpid(pid_, &status, 0) != pid_ || !WIFSTOPPED(status)) return run_;
    if (ptrace(PTRACE_SETOPTIONS, pid_, nullptr, kOptions) != 0) throw system_error("ptrace");
    ptrace(PTRACE_SYSCALL, pid_, nullptr, nullptr);
    for (;;) {
      rusage usage{};
      const pid_t tid = wait4(-1, &status, __WALL, &usage);
      if (tid < 0 && errno == EINTR) continue;
      if (tid < 0) break;
      if (WIFSTOPPED(status)) {
        stopped(tid, status);
      } else if (tid == pid_) {
        run_.status = status;
        run_.minor_faults = static_cast<uint64_t>(usage.ru_minflt) - faults_before_;
        break;
      }
    }
    run_.rss_peak_bytes = rss_peak_.bytes();
    return run_;
  }

 private:
  void stopped(pid_t tid, int status) {
    const int event = status >> 16;
    int signal = WSTOPSIG(status);
    if (signal == (SIGTRAP | 0x80)) {
      if (has_begun_) count(tid);
      signal = 0;
    } else if (event != 0) {
      on_event(tid, event);
      signal = 0;
    } else if (signal == SIGSTOP && fresh_.erase(tid) == 0 && begins_stopped(tid)) {
      return;
    } else if (signal == SIGSTOP) {
      signal = 0;  // How a thread begins under ptrace.
    }
    ptrace(PTRACE_SYSCALL, tid, nullptr, signal);
  }

  // A thread may stop before its parent tells of it; a forked process is let go either way.
  bool begins_stopped(pid_t tid) {
    if (known_.contains(tid) || tid == pid_) return false;
    if (access(("/proc/" + std::to_string(pid_) + "/task/" + std::to_string(tid)).c_str(), F_OK) ==
        0) {
      known_.insert(tid);
      return false;
    }
    ptrace(PTRACE_DETACH, tid, nullptr, nullptr);
    return true;
  }

  void on_event(pid_t tid, int event) {
    unsigned long message = 0;
    ptrace(PTRACE_GETEVENTMSG, tid, nullptr, &message);
    if (event == PTRACE_EVENT_EXEC) {
      if (!has_begun_) faults_before_ = minor_faults_of(pid_);
      has_begun_ = true;
      rss_peak_ = {};
    }
    if (event == PTRACE_EVENT_CLONE && known_.insert(static_cast<pid_t>(message)).second) {
      fresh_.insert(static_cast<pid_t>(message));
    }
    // While the last thread stops here, the memory is still there.
    if (event == PTRACE_EVENT_EXIT && has_begun_) rss_peak_.look(tid);
  }

  void count(pid_t tid) {
    __ptrace_syscall_info info{};
    if (ptrace(PTRACE_GET_SYSCALL_INFO, tid, sizeof info, &info) <= 0) return;
    if (info.op != PTRACE_SYSCALL_INFO_ENTRY) return;
    const size_t call = memory_call(info.entry.nr);
    if (call >= run_.calls.size()) return;
    ++run_.calls[call];
    rss_peak_.look(tid);
  }

  pid_t pid_;
  bool has_begun_ = false;  // It runs the program.
  CountedRun run_;
  RssPeak rss_peak_;
  uint64_t faults_before_ = 0;  // Of ours, forked, until it became the program.
  std::set<pid_t> known_;       // Threads that were told of or seen.
  std::set<pid_t> fresh_;       // Told of, but not seen stopped.
};

}  // namespace

CountedRun run_traced(const Words& command, const Words& environment) {
  const TerminalSignals signals;
  const pid_t pid = fork();
  if (pid < 0) throw system_error("fork");
  if (pid == 0) {
    signals.give_back();
    set_streams({});
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(kFailure);
    raise(SIGSTOP);
    execvpe(command[0].c_str(), pointers(command).data(), pointers(environment).data());
    _exit(kNotFound);
  }
  return Counter(pid).run();
}

}  // namespace heapledger::front
