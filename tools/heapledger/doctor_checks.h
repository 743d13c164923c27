// SPDX-License-Identifier: Apache-2.0
// What `doctor` tries, one function per line of its report. Each does the thing itself (opens the
// counter, loads the library, records a program) instead of guessing from versions.
#pragma once

#include <string>
#include <vector>

namespace heapledger::front {

enum class CheckState { kOk, kLimited, kNo };

struct Check {
  std::string name;
  CheckState state = CheckState::kOk;
  std::string detail;   // What was found and what it means.
  std::string command;  // The one command that would allow more; empty where none would.
};

// All of them, in the order of the report. The one named "recording" decides the exit status.
std::vector<Check> run_checks();

}  // namespace heapledger::front
