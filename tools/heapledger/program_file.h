// SPDX-License-Identifier: Apache-2.0
// What can be known of a program before it runs: which file the name stands for, and whether the
// shim can be loaded into it. A script stands for its interpreter.
#pragma once

#include <optional>
#include <string>

namespace heapledger::front {

// The file execvp would run for this name. Throws CommandError with status 127 (not found) or 126
// (found, but not executable), as shells end.
std::string find_program(const std::string& name);

// Why the calls of a program cannot be recorded.
struct Obstacle {
  std::string reason;  // As in table `process`, column `reason`.
  std::string advice;  // What the user can do about it.
};

// Looks at the ELF file (or at the interpreter, where it is a script). Nothing where the shim can
// be loaded, or where the file is unreadable and only trying can tell.
std::optional<Obstacle> recording_obstacle(const std::string& path);

}  // namespace heapledger::front
