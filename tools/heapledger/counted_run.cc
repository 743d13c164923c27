// SPDX-License-Identifier: Apache-2.0
#include "tools/heapledger/counted_run.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/perf_event.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <numeric>

#include "interposer/collector/tracepoints.h"
#include "tools/heapledger/child_setup.h"
#include "tools/heapledger/command_error.h"
#include "tools/heapledger/descriptor.h"

namespace heapledger::front {

namespace {

using Words = std::vector<std::string>;

// Of a process and its threads, from its next exec on. `exclude_kernel` is about where the counted
// thing comes from: a system call comes from the program, and so do its faults but for those that
// the kernel meets while it copies for it.
perf_event_attr attributes(uint32_t type, uint64_t config, bool excludes_kernel) {
  perf_event_attr attr{};
  attr.size = sizeof attr;
  attr.type = type;
  attr.config = config;
  attr.disabled = 1;
  attr.enable_on_exec = 1;
  attr.inherit = 1;
  attr.inherit_thread = 1;
  attr.exclude_kernel = excludes_kernel ? 1 : 0;
  attr.exclude_hv = 1;
  return attr;
}

Descriptor open_counter(perf_event_attr attr, pid_t pid) {
  return Descriptor(
      static_cast<int>(syscall(SYS_perf_event_open, &attr, pid, -1, -1, PERF_FLAG_FD_CLOEXEC)));
}

class Counters {
 public:
  // False: `why`.
  bool open(pid_t pid, std::string& why) {
    static_assert(collector::kMemoryCalls == CountedRun::kNames.size());
    const auto tracepoints = collector::find_tracepoints(why);
    if (!tracepoints) return false;
    for (size_t i = 0; i < calls_.size(); ++i) {
      calls_[i] =
          open_counter(attributes(PERF_TYPE_TRACEPOINT, (*tracepoints)[i].enter.id, true), pid);
      if (!calls_[i].is_open()) {
        why = fmt::format("perf_event_open: {}", std::strerror(errno));
        return false;
      }
    }
    for (const bool excludes_kernel : {false, true}) {
      faults_ = open_counter(
          attributes(PERF_TYPE_SOFTWARE, PERF_COUNT_SW_PAGE_FAULTS_MIN, excludes_kernel), pid);
      if (faults_.is_open()) break;
    }
    return true;
  }

  CountedRun read(int status) const {
    CountedRun run;
    run.status = status;
    for (size_t i = 0; i < calls_.size(); ++i) run.calls[i] = value(calls_[i]);
    run.minor_faults = faults_.is_open() ? value(faults_) : 0;
    return run;
  }

 private:
  static uint64_t value(const Descriptor& counter) {
    uint64_t count = 0;
    if (::read(counter.number(), &count, sizeof count) != sizeof count) {
      throw system_error("perf counter");
    }
    return count;
  }

  std::array<Descriptor, CountedRun::kNames.size()> calls_;
  Descriptor faults_;
};

}  // namespace

uint64_t CountedRun::total() const {
  return std::accumulate(calls.begin(), calls.end(), uint64_t{0});
}

// The child waits for its counters; it ends where the pipe ends without a word.
std::optional<CountedRun> run_undisturbed(const Words& command, const Words& environment,
                                          std::string& why) {
  why.clear();
  const TerminalSignals signals;
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw system_error("pipe");
  const Descriptor go(ends[0]);
  Descriptor start(ends[1]);
  const pid_t pid = fork();
  if (pid < 0) throw system_error("fork");
  if (pid == 0) {
    start.reset();
    char word = 0;
    if (read(go.number(), &word, 1) != 1) _exit(kFailure);
    signals.give_back();
    set_streams({});
    execvpe(command[0].c_str(), pointers(command).data(), pointers(environment).data());
    _exit(kNotFound);
  }
  Counters counters;
  const bool counts = counters.open(pid, why) && write(start.number(), "g", 1) == 1;
  start.reset();
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (!counts) return std::nullopt;
  return counters.read(status);
}

}  // namespace heapledger::front
