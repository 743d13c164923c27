// SPDX-License-Identifier: Apache-2.0
// What goes wrong in a command, as the user reads it: `heapledger: <command>: <what>: <why>`, one
// line, and the status the command ends with. Thrown anywhere below main, printed only there; one
// without words has been said already.
#pragma once

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>

namespace heapledger::front {

inline constexpr int kFailure = 1;          // The command could not do its work.
inline constexpr int kUsage = 2;            // It was called wrongly.
inline constexpr int kCannotExecute = 126;  // As shells say it of a program.
inline constexpr int kNotFound = 127;

class CommandError : public std::runtime_error {
 public:
  CommandError(const std::string& what, const std::string& why, int exit_status = kFailure)
      : std::runtime_error(why.empty() ? what : what + ": " + why), exit_status_(exit_status) {}

  int exit_status() const { return exit_status_; }

 private:
  int exit_status_;
};

// For a failed system call: the reason is errno's.
inline CommandError system_error(const std::string& what, int error = errno) {
  return CommandError(what, std::strerror(error));
}

}  // namespace heapledger::front
