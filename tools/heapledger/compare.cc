// SPDX-License-Identifier: Apache-2.0
#include "tools/heapledger/compare.h"

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <optional>

#include "tools/heapledger/child.h"
#include "tools/heapledger/command_error.h"
#include "tools/heapledger/command_line.h"
#include "tools/heapledger/companions.h"
#include "tools/heapledger/descriptor.h"
#include "tools/heapledger/record_options.h"
#include "tools/heapledger/scratch_folder.h"
#include "tools/heapledger/signals.h"

namespace heapledger::front {

namespace {

namespace fs = std::filesystem;
using Arguments = std::vector<std::string>;

constexpr int kRunsMax = 1000;
constexpr size_t kCombinationsMax = 1000;
constexpr const char* kDefaultThresholds = "default,128K,32M,brk-only,mmap-only";

// One setting on a command line: "--mmap-threshold", "128K"; a value of "default" leaves it alone.
struct Setting {
  std::string flag;
  std::string value;
};
using Settings = std::vector<Setting>;

// What was asked for.
struct Plan {
  std::vector<std::pair<const RecordOption*, std::string>> lists;  // Comma-separated values.
  OptionValues common;                                             // Options of every recording.
  int runs = 1;
  std::string keep;  // Folder for the traces; empty: a temporary one.
  bool json = false;
  bool csv = false;
  bool quiet = false;
};

std::string name_of(const Settings& settings) {
  std::string name;
  for (const Setting& setting : settings) {
    name += (name.empty() ? "" : " ") + setting.flag.substr(2) + "=" + setting.value;
  }
  return name;
}

void add_options(CLI::App& app, Plan& plan) {
  for (const RecordOption& option : kRecordOptions) {
    const RecordOption* row = &option;
    if (option.reader == OptionReader::kProgram) {
      app.add_option_function<std::string>(
             option.flags,
             [&plan, row](const std::string& text) { plan.lists.emplace_back(row, text); },
             std::string(option.help))
          ->type_name("LIST");
    } else if (option.reader == OptionReader::kCollector && option.value == OptionValue::kNone) {
      app.add_flag_callback(
          option.flags, [&plan, row] { plan.common[row->flags] = ""; }, option.help);
    } else if (option.reader == OptionReader::kCollector && option.value != OptionValue::kFile) {
      app.add_option_function<std::string>(
          option.flags,
          [&plan, row](const std::string& text) {
            plan.common[row->flags] = checked_value(*row, text);
          },
          option.help);
    }
  }
  app.add_option("--runs", plan.runs, "record each setting so many times; medians are shown")
      ->check(CLI::Range(1, kRunsMax));
  app.add_option("--keep", plan.keep, "leave the traces in this folder")->type_name("DIR");
  app.add_flag("--json", plan.json, "for programs");
  app.add_flag("--csv", plan.csv, "for spreadsheets");
  app.add_flag("--quiet", plan.quiet, "no line per recording on stderr");
}

std::vector<std::string> split_list(const RecordOption& option, const std::string& text) {
  std::vector<std::string> values;
  for (size_t start = 0; start <= text.size();) {
    const size_t end = std::min(text.find(',', start), text.size());
    const std::string value = text.substr(start, end - start);
    if (value != "default") checked_value(option, value);
    values.push_back(value);
    start = end + 1;
  }
  return values;
}

// Every combination of the lists' values, the first list slowest.
std::vector<Settings> combinations(const Plan& plan) {
  std::vector<Settings> result = {{}};
  for (const auto& [option, text] : plan.lists) {
    std::vector<Settings> longer;
    for (const Settings& settings : result) {
      for (const std::string& value : split_list(*option, text)) {
        longer.push_back(settings);
        longer.back().push_back({option->flags, value});
      }
    }
    if (longer.size() > kCombinationsMax) {
      throw CommandError("settings", "more than 1000 combinations", kUsage);
    }
    result = std::move(longer);
  }
  return result;
}

// The folder of the traces; removed at the end unless it is the user's.
class TraceFolder {
 public:
  explicit TraceFolder(const std::string& keep) : path_(keep) {
    if (keep.empty()) {
      path_ = scratch_.emplace("heapledger-compare").path();
      return;
    }
    std::error_code error;
    fs::create_directories(keep, error);
    if (error) throw CommandError(keep, error.message());
  }

  std::string file(size_t number, int run) const {
    return fmt::format("{}/setting-{:02}-run-{:02}.db", path_, number, run);
  }

 private:
  std::string path_;
  std::optional<ScratchFolder> scratch_;
};

Arguments record_command(const Plan& plan, const Settings& settings, const std::string& trace,
                         const Arguments& program) {
  Arguments command = {own_path(), "record", "--quiet", "--wait", "--force", "-o", trace};
  for (const Setting& setting : settings) {
    if (setting.value != "default") command.insert(command.end(), {setting.flag, setting.value});
  }
  for (const auto& [flag, value] : plan.common) {
    command.push_back(flag);
    if (!value.empty()) command.push_back(value);
  }
  command.push_back("--");
  command.insert(command.end(), program.begin(), program.end());
  return command;
}

// A signal that ended one recording ends the comparison.
struct Killed {
  int signal;
};

Arguments record_all(const Plan& plan, const TraceFolder& folder, const Arguments& program) {
  const std::vector<Settings> all = combinations(plan);
  Arguments traces(all.size() * static_cast<size_t>(plan.runs));
  size_t recorded = 0;
  // Round by round, so that a machine that grows slower or faster does so for all settings.
  for (int run = 1; run <= plan.runs; ++run) {
    for (size_t i = 0; i < all.size(); ++i) {
      const std::string trace = folder.file(i + 1, run);
      const bool first = recorded == 0;
      if (!plan.quiet) {
        write_all(STDERR_FILENO, fmt::format("heapledger: compare: recording {} of {}: {}\n",
                                             recorded + 1, traces.size(), name_of(all[i])));
      }
      const int status = run_and_wait(record_command(plan, all[i], trace, program), {false, first});
      if (WIFSIGNALED(status)) throw Killed{WTERMSIG(status)};
      if (!fs::exists(trace)) {
        // Its message is on stderr already where this was the first; the status is its own.
        throw CommandError(program[0], "not recorded under " + name_of(all[i]),
                           WEXITSTATUS(status));
      }
      if (WEXITSTATUS(status) != 0) {
        write_all(STDERR_FILENO,
                  fmt::format("heapledger: compare: {}: ended with status {} under {}\n",
                              program[0], WEXITSTATUS(status), name_of(all[i])));
      }
      // The runs of one setting stand together, whatever the order of recording.
      traces[i * static_cast<size_t>(plan.runs) + static_cast<size_t>(run - 1)] = trace;
      ++recorded;
    }
  }
  return traces;
}

int record_and_compare(const Plan& plan, const Arguments& program) {
  const TraceFolder folder(plan.keep);
  const Arguments traces = record_all(plan, folder, program);
  Arguments command = {find_analyzer(), "compare"};
  command.insert(command.end(), traces.begin(), traces.end());
  command.insert(command.end(), {"--runs", std::to_string(plan.runs)});
  if (plan.json) command.push_back("--json");
  if (plan.csv) command.push_back("--csv");
  const int status = run_and_wait(command, {true, true});
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

int compare_traces(const Arguments& arguments) {
  const std::string path = find_analyzer();
  std::vector<char*> argv = {const_cast<char*>(path.c_str()), const_cast<char*>("compare")};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  execv(path.c_str(), argv.data());
  throw system_error(path);
}

}  // namespace

int run_compare(const Arguments& arguments) {
  Plan plan;
  CLI::App app("Settings side by side: of traces, or of a program recorded under each in turn.",
               "heapledger compare");
  set_usage(app,
            "Usage: heapledger compare TRACE TRACE...\n"
            "       heapledger compare [OPTIONS] -- PROGRAM [ARGUMENTS...]");
  app.footer(
      "A LIST is values with commas: 128K,32M,brk-only,mmap-only; default leaves a setting alone.\n"
      "Every combination is recorded; without a list, --mmap-threshold " +
      std::string(kDefaultThresholds) +
      ".\nThe program's output is dropped (its stderr shown on the first run); its input is "
      "empty,\n"
      "or read anew by every run where it is a file.");
  add_options(app, plan);
  const CommandLine line = split_command(app, arguments);
  const bool asks_for_help =
      std::find(line.options.begin(), line.options.end(), "--help") != line.options.end();
  if (!line.separated && !asks_for_help) {
    // Without `--` the words are traces, unless a list says that they are a program.
    bool has_list = false;
    for (const RecordOption& option : kRecordOptions) {
      for (const std::string& word : line.options) {
        has_list |= option.reader == OptionReader::kProgram && word.starts_with(option.flags);
      }
    }
    if (!has_list) return compare_traces(arguments);
  }
  if (!parse_options(app, line.options)) return 0;
  if (line.program.empty()) throw CommandError("PROGRAM", "missing; try --help", kUsage);
  if (plan.lists.empty()) {
    for (const RecordOption& option : kRecordOptions) {
      if (option.value == OptionValue::kThreshold)
        plan.lists.emplace_back(&option, kDefaultThresholds);
    }
  }
  try {
    return record_and_compare(plan, line.program);
  } catch (const Killed& killed) {
    return die_like_program(killed.signal);
  }
}

}  // namespace heapledger::front
