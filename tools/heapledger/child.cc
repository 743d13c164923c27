// SPDX-License-Identifier: Apache-2.0
#include "tools/heapledger/child.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <numeric>
#include <set>
#include <sstream>

#include "tools/heapledger/command_error.h"
#include "tools/heapledger/descriptor.h"

namespace heapledger::front {

namespace {

using Words = std::vector<std::string>;

std::vector<char*> pointers(const Words& words) {
  std::vector<char*> result;
  for (const std::string& word : words) result.push_back(const_cast<char*>(word.c_str()));
  result.push_back(nullptr);
  return result;
}

// Ours ignores what the terminal sends meanwhile; the child has it as it was.
class TerminalSignals {
 public:
  TerminalSignals() {
    struct sigaction ignore {};
    ignore.sa_handler = SIG_IGN;
    sigaction(SIGINT, &ignore, &interrupt_);
    sigaction(SIGQUIT, &ignore, &quit_);
  }
  ~TerminalSignals() { give_back(); }
  TerminalSignals(const TerminalSignals&) = delete;
  TerminalSignals& operator=(const TerminalSignals&) = delete;

  void give_back() const {
    sigaction(SIGINT, &interrupt_, nullptr);
    sigaction(SIGQUIT, &quit_, nullptr);
  }
  // Those that a child must have at their defaults.
  sigset_t defaults() const {
    sigset_t set;
    sigemptyset(&set);
    if (interrupt_.sa_handler == SIG_DFL) sigaddset(&set, SIGINT);
    if (quit_.sa_handler == SIG_DFL) sigaddset(&set, SIGQUIT);
    return set;
  }

 private:
  struct sigaction interrupt_ {
  }, quit_{};
};

bool input_is_file() {
  struct stat input {};
  return fstat(STDIN_FILENO, &input) == 0 && S_ISREG(input.st_mode);
}

// In a child, before exec.
void set_streams(ChildOutput output) {
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (input_is_file()) {
    lseek(STDIN_FILENO, 0, SEEK_SET);
  } else {
    dup2(null, STDIN_FILENO);
  }
  if (!output.show_stdout) dup2(null, STDOUT_FILENO);
  if (!output.show_stderr) dup2(null, STDERR_FILENO);
}

struct Pipe {
  Descriptor read_end, write_end;

  void open() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) throw system_error("pipe");
    read_end = Descriptor(ends[0]);
    write_end = Descriptor(ends[1]);
  }
  void read_all(std::string& text) const {
    char buffer[4096];
    for (;;) {
      const ssize_t got = read(read_end.number(), buffer, sizeof buffer);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return;
      text.append(buffer, static_cast<size_t>(got));
    }
  }
};

int64_t now_ns() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

int64_t ns_of(const timeval& time) {
  return (int64_t{time.tv_sec} * 1'000'000 + time.tv_usec) * 1000;
}

// ---- Under ptrace.

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

uint64_t CountedRun::total() const {
  return std::accumulate(calls.begin(), calls.end(), uint64_t{0});
}

int run_and_wait(const Words& command, ChildOutput output) {
  const TerminalSignals signals;
  const pid_t pid = fork();
  if (pid < 0) throw system_error("fork");
  if (pid == 0) {
    signals.give_back();
    set_streams(output);
    execv(command[0].c_str(), pointers(command).data());
    _exit(kNotFound);
  }
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

std::string output_of(const Words& command) {
  Words environment;
  for (char** entry = environ; *entry != nullptr; ++entry) environment.emplace_back(*entry);
  std::string text;
  ChildOutput output;
  output.show_stderr = true;
  output.text = &text;
  const PlainRun run = run_plain(command, environment, output);
  if (!WIFEXITED(run.status) || WEXITSTATUS(run.status) != 0) {
    throw CommandError(command[1], "it failed, as said above",
                       WIFEXITED(run.status) ? WEXITSTATUS(run.status) : kFailure);
  }
  return text;
}

// Spawned, not forked: a forked child would make page faults of its own before its exec.
PlainRun run_plain(const Words& command, const Words& environment, ChildOutput output) {
  const TerminalSignals signals;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  if (input_is_file()) {
    lseek(STDIN_FILENO, 0, SEEK_SET);
  } else {
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  }
  for (const auto& [fd, is_shown] :
       {std::pair{STDOUT_FILENO, output.show_stdout}, {STDERR_FILENO, output.show_stderr}}) {
    if (fd == STDOUT_FILENO && output.text != nullptr) continue;
    if (!is_shown) posix_spawn_file_actions_addopen(&actions, fd, "/dev/null", O_WRONLY, 0);
  }
  Pipe pipe;
  if (output.text != nullptr) {
    pipe.open();
    posix_spawn_file_actions_adddup2(&actions, pipe.write_end.number(), STDOUT_FILENO);
  }
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  const sigset_t defaults = signals.defaults();
  posix_spawnattr_setsigdefault(&attributes, &defaults);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
  pid_t pid = 0;
  const int64_t start_ns = now_ns();
  const int error = posix_spawnp(&pid, command[0].c_str(), &actions, &attributes,
                                 pointers(command).data(), pointers(environment).data());
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) {
    const CommandError reason = system_error(command[0], error);
    throw CommandError(reason.what(), "", error == ENOENT ? kNotFound : kCannotExecute);
  }
  pipe.write_end.reset();
  if (output.text != nullptr) pipe.read_all(*output.text);
  PlainRun run;
  rusage usage{};
  while (wait4(pid, &run.status, 0, &usage) < 0 && errno == EINTR) {
  }
  run.wall_ns = now_ns() - start_ns;
  run.kernel_ns = ns_of(usage.ru_stime);
  run.cpu_ns = ns_of(usage.ru_utime) + run.kernel_ns;
  run.waits = static_cast<uint64_t>(usage.ru_nvcsw);
  run.minor_faults = static_cast<uint64_t>(usage.ru_minflt);
  return run;
}

CountedRun run_counted(const Words& command, const Words& environment) {
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
