// SPDX-License-Identifier: Apache-2.0
// `heapledger COMMAND ...`: one table row is one command. Commands that only read a trace are the
// analyzer's; this program becomes it.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "heapledger_version.h"
#include "tools/heapledger/command_error.h"
#include "tools/heapledger/command_line.h"
#include "tools/heapledger/companions.h"
#include "tools/heapledger/compare.h"
#include "tools/heapledger/descriptor.h"
#include "tools/heapledger/doctor.h"
#include "tools/heapledger/mark.h"
#include "tools/heapledger/record.h"
#include "tools/heapledger/replay.h"
#include "tools/heapledger/verify.h"

namespace heapledger::front {

namespace {

using Arguments = std::vector<std::string>;  // Without the command's own name.

int run_record(const Arguments& arguments) {
  CLI::App app(
      "Run PROGRAM and write every allocation, memory system call and page fault to a trace.",
      "heapledger record");
  set_usage(app, "Usage: heapledger record [OPTIONS] [--] PROGRAM [ARGUMENTS...]");
  OptionValues options;
  add_record_options(app, options);
  const CommandLine line = split_command(app, arguments);
  if (!parse_options(app, line.options)) return 0;
  check_values(options);
  if (line.program.empty()) throw CommandError("PROGRAM", "missing; try --help", kUsage);
  return record(options, line.program);
}

struct Command {
  const char* name;
  const char* help;
  int (*run)(const Arguments&);  // Null: the analyzer's.
};

constexpr Command kCommands[] = {
    {"record", "run a program and record it", &run_record},
    {"mark", "a mark in a running recording, set from outside", &run_mark},
    {"summary", "totals, peaks, findings: start here", nullptr},
    {"ledger", "RSS as a balance: every resident byte on a line, and the residual", nullptr},
    {"fragmentation", "held but not used: where, and which blocks hold it", nullptr},
    {"syscalls", "brk, mmap, munmap, mremap, madvise: cause, cost, call stack", nullptr},
    {"faults", "page faults by the stack that allocated and the code that touched", nullptr},
    {"leaks", "blocks never freed, by call stack", nullptr},
    {"peak", "what was live at the peak, by call stack", nullptr},
    {"hotspots", "who allocates most: calls, bytes, temporary blocks", nullptr},
    {"temporary", "blocks freed before their thread allocated again", nullptr},
    {"lifetimes", "how long blocks live", nullptr},
    {"sizes", "allocations by requested size", nullptr},
    {"threads", "who allocates and who frees", nullptr},
    {"timeline", "live, held and resident bytes over time, with the marks", nullptr},
    {"layout", "the segments of the address space: size, resident, swapped", nullptr},
    {"compare", "settings side by side, from traces or recorded in turn", &run_compare},
    {"sweep", "what other settings would have cost, from one recording", nullptr},
    {"advise", "the settings worth having, with what each gains and costs", nullptr},
    {"verify", "the advice put to the test: the program under both settings, unrecorded",
     &run_verify},
    {"replay", "the recorded calls made again under other allocators or settings", &run_replay},
    {"diff", "what changed between two recordings, by call stack", nullptr},
    {"check", "limits for CI: exit 3 where one is passed", nullptr},
    {"export", "the trace for other tools: folded (flame graphs), pprof", nullptr},
    {"sql", "a read-only query on the trace", nullptr},
    {"doctor", "what this machine allows, and how to allow more", &run_doctor},
};

void print_help() {
  std::string text =
      "Usage: heapledger COMMAND [OPTIONS] ...\n\n"
      "Where a program's memory goes, what malloc costs it, and which settings would cost less.\n\n"
      "Commands:\n";
  for (const Command& command : kCommands) {
    text += fmt::format("  {:<15}{}\n", command.name, command.help);
  }
  text +=
      "\nStart with: heapledger record PROGRAM ARGUMENTS..., then: heapledger summary TRACE\n"
      "heapledger COMMAND --help says more. Also: --version.\n";
  fmt::print("{}", text);
}

int run_analyzer(const std::string& name, const Arguments& arguments) {
  const std::string path = find_analyzer();
  std::vector<char*> argv = {const_cast<char*>(path.c_str()), const_cast<char*>(name.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  execv(path.c_str(), argv.data());
  throw system_error(path);
}

// Runs a command and words its errors as the user reads them.
int run(const Command& command, const Arguments& arguments) {
  try {
    return command.run != nullptr ? command.run(arguments) : run_analyzer(command.name, arguments);
  } catch (const CommandError& error) {
    const bool is_said = *error.what() == '\0';
    if (!is_said) {
      write_all(STDERR_FILENO, fmt::format("heapledger: {}: {}\n", command.name, error.what()));
    }
    return error.exit_status();
  } catch (const std::exception& error) {
    write_all(STDERR_FILENO, fmt::format("heapledger: {}: {}\n", command.name, error.what()));
    return kFailure;
  }
}

// A standard stream that is closed gets /dev/null, close-on-exec: no descriptor of ours may land
// there and take what is meant for people, and the program still finds it closed.
void occupy_standard_streams() {
  int fd = 0;
  do {
    fd = open("/dev/null", O_RDWR | O_CLOEXEC);
  } while (fd >= 0 && fd <= STDERR_FILENO);
  if (fd >= 0) close(fd);
}

}  // namespace

}  // namespace heapledger::front

int main(int argc, char** argv) {
  using namespace heapledger::front;
  occupy_standard_streams();
  const std::string name = argc > 1 ? argv[1] : "";
  if (name == "--help" || name == "-h" || name == "help") {
    print_help();
    return 0;
  }
  if (name == "--version") {
    fmt::print("heapledger {}\n", HEAPLEDGER_VERSION);
    return 0;
  }
  for (const Command& command : kCommands) {
    if (name == command.name) return run(command, Arguments(argv + 2, argv + argc));
  }
  const std::string what = name.empty()     ? "COMMAND: missing"
                           : name[0] == '-' ? name + ": no such option"
                                            : name + ": no such command";
  write_all(STDERR_FILENO, "heapledger: " + what + "; try --help\n");
  return kUsage;
}
