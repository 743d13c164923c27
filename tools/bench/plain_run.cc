// SPDX-License-Identifier: Apache-2.0
// plain_run [--undisturbed] PROGRAM [ARGUMENTS...]: runs the program with nothing of ours in it and
// prints a line of JSON. Its input is empty, its output dropped. Exit status 1 where it failed.
//
// As `heapledger verify` looks, under ptrace: its minor page faults and its peak RSS by the page
// tables. The kernel's own figure, VmHWM, is of counters that lag by up to 32 pages per kind of
// memory and processor: too coarse for a program of 2 MiB.
// --undisturbed: its faults and its memory system calls, which the kernel's tracepoints count, as
// `heapledger verify` counts them. Exit status 3, with the reason, where there are none.
//
// For tools/bench/prediction and replay_check.
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/heapledger/command_error.h"
#include "tools/heapledger/counted_run.h"

namespace {

using heapledger::front::CommandError;
using heapledger::front::CountedRun;
using Words = std::vector<std::string>;

constexpr int kNoTracepoints = 3;

void check(const Words& command, int status) {
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return;
  throw CommandError(command[0], fmt::format("it failed: wait status {}", status));
}

Words environment() {
  Words words;
  for (char** entry = environ; *entry != nullptr; ++entry) words.emplace_back(*entry);
  return words;
}

void under_ptrace(const Words& command) {
  const CountedRun run = heapledger::front::run_traced(command, environment());
  check(command, run.status);
  fmt::print("{{\"faults\": {}, \"rss_bytes_peak\": {}}}\n", run.minor_faults, run.rss_peak_bytes);
}

int undisturbed(const Words& command) {
  std::string why;
  const auto run = heapledger::front::run_undisturbed(command, environment(), why);
  if (!run) {
    fmt::print(stderr, "plain_run: no tracepoints: {}\n", why);
    return kNoTracepoints;
  }
  check(command, run->status);
  std::string text;
  for (size_t i = 0; i < run->calls.size(); ++i) {
    text += fmt::format(", \"{}\": {}", CountedRun::kNames[i], run->calls[i]);
  }
  fmt::print("{{\"faults\": {}{}}}\n", run->minor_faults, text);
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
