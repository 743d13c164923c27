// SPDX-License-Identifier: Apache-2.0
// plain_run PROGRAM [ARGUMENTS...]: runs the program as `heapledger verify` counts, under ptrace,
// with nothing of ours in it, and prints a line of JSON: its minor page faults and its peak RSS by
// the page tables. Its input is empty, its output dropped. Exit status 1 where it failed.
//
// For tools/bench/prediction and replay_check. The kernel's own figure, VmHWM, is of counters that
// lag by up to 32 pages per kind of memory and processor: too coarse for a program of 2 MiB.
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/heapledger/child.h"
#include "tools/heapledger/command_error.h"

int main(int argc, char** argv) {
  const std::vector<std::string> command(argv + 1, argv + argc);
  if (command.empty()) return heapledger::front::kUsage;
  std::vector<std::string> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) environment.emplace_back(*entry);
  using heapledger::front::CommandError;
  try {
    const auto run = heapledger::front::run_counted(command, environment);
    if (!WIFEXITED(run.status) || WEXITSTATUS(run.status) != 0) {
      throw CommandError(command[0], fmt::format("it failed: wait status {}", run.status));
    }
    fmt::print("{{\"faults\": {}, \"rss_bytes_peak\": {}}}\n", run.minor_faults,
               run.rss_peak_bytes);
  } catch (const CommandError& error) {
    fmt::print(stderr, "plain_run: {}\n", error.what());
    return 1;
  }
  return 0;
}
