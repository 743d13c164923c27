// SPDX-License-Identifier: Apache-2.0
// plain_run [--undisturbed] PROGRAM [ARGUMENTS...]: runs the program with nothing of ours in it and
// prints a line of JSON. Its input is empty, its output dropped. Exit status 1 where it failed.
//
// As `heapledger verify` counts, under ptrace: its minor page faults and its peak RSS by the page
// tables. The kernel's own figure, VmHWM, is of counters that lag by up to 32 pages per kind of
// memory and processor: too coarse for a program of 2 MiB.
// --undisturbed: its faults and its memory system calls, which the kernel's tracepoints count. What
// stops at each call meets the other threads at other moments: python3's, with one arena, made
// a third of their calls under strace -k. Exit status 3, with the reason, where there are none.
//
// For tools/bench/prediction and replay_check.
#include <fmt/format.h>
#include <linux/perf_event.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "interposer/collector/tracepoints.h"
#include "interposer/collector/unique_fd.h"
#include "tools/heapledger/child.h"
#include "tools/heapledger/command_error.h"

namespace {

using heapledger::collector::kMemoryCalls;
using heapledger::collector::UniqueFd;
using heapledger::front::CommandError;
using Words = std::vector<std::string>;

constexpr int kNoTracepoints = 3;

void check(const Words& command, int status) {
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return;
  throw CommandError(command[0], fmt::format("it failed: wait status {}", status));
}

void under_ptrace(const Words& command) {
  Words environment;
  for (char** entry = environ; *entry != nullptr; ++entry) environment.emplace_back(*entry);
  const auto run = heapledger::front::run_counted(command, environment);
  check(command, run.status);
  fmt::print("{{\"faults\": {}, \"rss_bytes_peak\": {}}}\n", run.minor_faults, run.rss_peak_bytes);
}

// Counts in the process `pid`, its threads and what it forks, from its next exec on.
UniqueFd open_counter(uint32_t tracepoint, pid_t pid) {
  perf_event_attr attr{};
  attr.size = sizeof attr;
  attr.type = PERF_TYPE_TRACEPOINT;
  attr.config = tracepoint;
  attr.disabled = 1;
  attr.enable_on_exec = 1;
  attr.inherit = 1;
  return UniqueFd(
      static_cast<int>(syscall(SYS_perf_event_open, &attr, pid, -1, -1, PERF_FLAG_FD_CLOEXEC)));
}

int undisturbed(const Words& command) {
  std::string why;
  const auto tracepoints = heapledger::collector::find_tracepoints(why);
  int go[2];
  if (pipe(go) != 0) throw CommandError("pipe", std::strerror(errno));
  const pid_t pid = fork();
  if (pid < 0) throw CommandError("fork", std::strerror(errno));
  if (pid == 0) {
    close(go[1]);
    char word = 0;
    if (read(go[0], &word, 1) != 1) _exit(kNoTracepoints);
    close(go[0]);
    if (freopen("/dev/null", "r", stdin) == nullptr || freopen("/dev/null", "w", stdout) == nullptr)
      _exit(1);
    std::vector<char*> words;
    for (const std::string& argument : command)
      words.push_back(const_cast<char*>(argument.c_str()));
    words.push_back(nullptr);
    execvp(words[0], words.data());
    _exit(heapledger::front::kNotFound);
  }
  close(go[0]);
  std::array<UniqueFd, kMemoryCalls> counters;
  for (size_t i = 0; tracepoints && i < kMemoryCalls && why.empty(); ++i) {
    counters[i] = open_counter((*tracepoints)[i].enter.id, pid);
    if (!counters[i]) why = fmt::format("perf_event_open: {}", std::strerror(errno));
  }
  const bool goes = why.empty() && write(go[1], "g", 1) == 1;
  close(go[1]);
  int status = 0;
  rusage usage{};
  while (wait4(pid, &status, 0, &usage) < 0 && errno == EINTR) {
  }
  if (!goes) {
    fmt::print(stderr, "plain_run: no tracepoints: {}\n", why);
    return kNoTracepoints;
  }
  check(command, status);
  std::string text;
  for (size_t i = 0; i < kMemoryCalls; ++i) {
    uint64_t count = 0;
    if (read(counters[i].get(), &count, sizeof count) != sizeof count) {
      throw CommandError("perf counter", std::strerror(errno));
    }
    text += fmt::format(", \"{}\": {}", heapledger::schema::kSyscallNames[i], count);
  }
  fmt::print("{{\"faults\": {}{}}}\n", usage.ru_minflt, text);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Words command(argv + 1, argv + argc);
  const bool is_undisturbed = !command.empty() && command[0] == "--undisturbed";
  if (is_undisturbed) command.erase(command.begin());
  if (command.empty()) return heapledger::front::kUsage;
  try {
    if (is_undisturbed) return undisturbed(command);
    under_ptrace(command);
  } catch (const CommandError& error) {
    fmt::print(stderr, "plain_run: {}\n", error.what());
    return 1;
  }
  return 0;
}
