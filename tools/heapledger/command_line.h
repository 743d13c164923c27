// SPDX-License-Identifier: Apache-2.0
// Command lines of the form OPTIONS [--] PROGRAM ARGUMENTS: our options end where the program's
// name begins, whatever the program's own arguments look like. Errors in ours are one line,
// status 2.
#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace heapledger::front {

struct CommandLine {
  std::vector<std::string> options;
  std::vector<std::string> program;
  bool separated = false;  // By `--`.
};

// Cuts where the first word stands that is neither an option of `app` nor the value of one.
CommandLine split_command(const CLI::App& app, const std::vector<std::string>& arguments);

// The line(s) of --help before the options, where CLI11's own would mislead.
void set_usage(CLI::App& app, const std::string& text);

// Parses; false where --help was asked for, and printed. Throws CommandError (usage).
bool parse_options(CLI::App& app, const std::vector<std::string>& options);

}  // namespace heapledger::front
