// SPDX-License-Identifier: Apache-2.0
// Runs of a user's program that are repeated: the same input each time, output dropped or shown,
// and what the run took.
//
// Input: a file is read anew by every run; anything else could be read by one run only, so by none.
// Ctrl-C is the program's to take while one of these waits: they wait on and report how it ended.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tools/heapledger/child_setup.h"

namespace heapledger::front {

// Runs command[0], a path, and returns its wait status.
int run_and_wait(const std::vector<std::string>& command, ChildOutput output);

// The same for a command of ours: what it wrote to stdout. Throws CommandError, with its status,
// where it failed; without words, since it said on stderr why.
std::string output_of(const std::vector<std::string>& command);

struct PlainRun {
  int status = 0;  // As wait() gives it.
  int64_t wall_ns = 0;
  int64_t cpu_ns = 0;
  int64_t kernel_ns = 0;  // Of it.
  uint64_t minor_faults = 0;
  uint64_t waits = 0;  // Voluntary switches: it had nothing to do until something happened.
};
// Runs a program, found by PATH, with `environment` (NAME=value) and nothing of ours. Throws
// CommandError where it cannot be started.
PlainRun run_plain(const std::vector<std::string>& command,
                   const std::vector<std::string>& environment, ChildOutput output);

}  // namespace heapledger::front
