// SPDX-License-Identifier: Apache-2.0
#include "tools/heapledger/replay.h"

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "schema/replay_file.h"
#include "tools/heapledger/child.h"
#include "tools/heapledger/command_error.h"
#include "tools/heapledger/command_line.h"
#include "tools/heapledger/companions.h"
#include "tools/heapledger/counted_run.h"
#include "tools/heapledger/descriptor.h"
#include "tools/heapledger/malloc_environment.h"
#include "tools/heapledger/scratch_folder.h"

namespace heapledger::front {

namespace {

using Json = nlohmann::ordered_json;
using Words = std::vector<std::string>;
using schema::ReplayResult;

constexpr int kRunsMax = 1000;

struct Plan {
  std::string trace;
  Words allocators;  // As given; empty: glibc.
  Words sets;        // "mmap_threshold=1048576,top_pad=65536", a line per --set.
  std::string pid;
  int runs = 5;
  bool json = false;
  bool quiet = false;
};

// One allocator under one list of settings.
struct Side {
  std::string label;
  Words environment;
  std::vector<ReplayResult> runs;
  uint64_t syscalls = 0;
};

// Names that the dynamic linker knows the usual allocators by.
std::string library_of(const std::string& allocator) {
  constexpr std::pair<const char*, const char*> kKnown[] = {
      {"jemalloc", "libjemalloc.so.2"},
      {"tcmalloc", "libtcmalloc_minimal.so.4"},
      {"mimalloc", "libmimalloc.so.2"}};
  if (allocator == "glibc") return "";
  if (allocator == "heapledger") return find_shim();
  for (const auto& [name, library] : kKnown) {
    if (allocator == name) return library;
  }
  if (!std::filesystem::exists(allocator)) {
    throw CommandError("--allocator " + allocator,
                       "no such library; it takes glibc, heapledger, jemalloc, tcmalloc, mimalloc "
                       "or a path",
                       kUsage);
  }
  return std::filesystem::absolute(allocator);
}

// "mmap_threshold=1048576,top_pad=65536" as GLIBC_TUNABLES has it.
std::string tunables_of(const std::string& set) {
  std::string tunables;
  for (size_t begin = 0; begin < set.size();) {
    const size_t end = std::min(set.find(',', begin), set.size());
    const std::string word = set.substr(begin, end - begin);
    if (word.find('=') == std::string::npos || word.starts_with("=")) {
      throw CommandError("--set " + set, "it takes NAME=VALUE, with commas between", kUsage);
    }
    tunables += (tunables.empty() ? "" : ":") + std::string("glibc.malloc.") + word;
    begin = end + 1;
  }
  return tunables;
}

class Replayer {
 public:
  explicit Replayer(const Plan& plan) : plan_(plan), folder_("heapledger-replay") {
    Words command = {find_analyzer(), "--as",     "replay", "replay-file",
                     plan.trace,      "--output", file()};
    if (!plan.pid.empty()) command.insert(command.end(), {"--process", plan.pid});
    tell("reading the calls");
    facts_ = Json::parse(output_of(command));
    add_sides();
  }

  void run() {
    own_rss_bytes_ = run_once(plain_side("glibc", ""), {"empty"}).rss_start_bytes;
    // Round by round, so that a machine that grows slower or faster does so for all.
    for (int round = 0; round < plan_.runs; ++round) {
      for (Side& side : sides_) {
        tell(fmt::format("run {} of {}, {}", round + 1, plan_.runs, side.label));
        side.runs.push_back(run_once(side, {}));
      }
    }
    for (Side& side : sides_) {
      tell("counting system calls, " + side.label);
      const Words calls = {find_replayer(), file()};
      const Words none = {find_replayer(), file(), "empty"};
      const uint64_t all = counted(calls, side);
      const uint64_t own = counted(none, side);
      side.syscalls = all - std::min(all, own);
    }
  }

  std::string text() const {
    std::string text = fmt::format(
        "{} calls of {}, on {}, made again; {} runs each, by turns, medians.\n\n"
        "{:<32}{:>11}{:>8}{:>11}{:>10}{:>11}{:>12}\n",
        facts_["operations"].get<uint64_t>(), facts_["exe"].get<std::string>(),
        facts_["threads"] == 1 ? "1 thread"
                               : fmt::format("{} threads", facts_["threads"].get<int>()),
        plan_.runs, "", "wall", "+-", "processor", "syscalls", "faults", "heap RSS");
    for (const Side& side : sides_) {
      const auto wall = values(side, &ReplayResult::wall_ns);
      text += fmt::format("{:<32}{:>8.1f} ms{:>6.0f} %{:>8.1f} ms{:>10}{:>11}{:>8.1f} MiB\n",
                          side.label, median(wall) / 1e6,
                          (wall.back() - wall.front()) / 2 / std::max(1.0, median(wall)) * 100,
                          median(values(side, &ReplayResult::cpu_ns)) / 1e6, side.syscalls,
                          static_cast<uint64_t>(median(values(side, &ReplayResult::minor_faults))),
                          rss(side) / (1 << 20));
    }
    for (const std::string& note : notes()) text += "\nnote: " + note;
    return text + (notes().empty() ? "" : "\n");
  }

  Json json() const {
    Json rows = Json::array();
    for (const Side& side : sides_) {
      rows.push_back({{"label", side.label},
                      {"wall_ns", median(values(side, &ReplayResult::wall_ns))},
                      {"cpu_ns", median(values(side, &ReplayResult::cpu_ns))},
                      {"syscalls", side.syscalls},
                      {"faults", median(values(side, &ReplayResult::minor_faults))},
                      {"rss_bytes_peak", rss(side)},
                      {"failed", median(values(side, &ReplayResult::failed))}});
    }
    return {{"operations", facts_["operations"]},
            {"threads", facts_["threads"]},
            {"runs", plan_.runs},
            {"rows", std::move(rows)},
            {"notes", notes()}};
  }

 private:
  std::string file() const { return folder_.path() + "/calls"; }

  void add_sides() {
    const Words allocators = plan_.allocators.empty() ? Words{"glibc"} : plan_.allocators;
    for (const std::string& allocator : allocators) {
      const std::string library = library_of(allocator);
      const std::string name = std::filesystem::path(allocator).filename();
      // Without --set the settings that were recorded.
      Words sets = plan_.sets;
      if (sets.empty()) {
        add_side(name, library, facts_["tunables"]);
        continue;
      }
      for (const std::string& set : sets) add_side(name + " " + set, library, tunables_of(set));
    }
  }

  // Under the system's malloc.
  static Side plain_side(std::string label, const std::string& tunables) {
    Side side{std::move(label), malloc_environment(tunables), {}, 0};
    std::erase_if(side.environment,
                  [](const std::string& word) { return word.starts_with("LD_PRELOAD="); });
    return side;
  }

  void add_side(std::string label, const std::string& library, const std::string& tunables) {
    Side side = plain_side(std::move(label), tunables);
    if (!library.empty()) side.environment.push_back("LD_PRELOAD=" + library);
    side.environment.emplace_back("HEAPLEDGER_RECORD=off");
    sides_.push_back(std::move(side));
  }

  ReplayResult run_once(const Side& side, const Words& arguments) const {
    std::string output;
    ChildOutput streams;
    streams.show_stderr = true;
    streams.text = &output;
    Words command = {find_replayer(), file()};
    command.insert(command.end(), arguments.begin(), arguments.end());
    const PlainRun run = run_plain(command, side.environment, streams);
    ReplayResult result;
    if (!WIFEXITED(run.status) || WEXITSTATUS(run.status) != 0 || output.size() != sizeof result) {
      throw CommandError(side.label, "the replay did not come to its end");
    }
    std::memcpy(&result, output.data(), sizeof result);
    return result;
  }

  static uint64_t counted(const Words& command, const Side& side) {
    std::string why;
    const auto undisturbed = run_undisturbed(command, side.environment, why);
    const CountedRun run = undisturbed ? *undisturbed : run_traced(command, side.environment);
    if (!WIFEXITED(run.status) || WEXITSTATUS(run.status) != 0) {
      throw CommandError(side.label, "the replay did not come to its end where it was counted");
    }
    return run.total();
  }

  // Sorted.
  static std::vector<double> values(const Side& side, uint64_t ReplayResult::*field) {
    std::vector<double> values;
    for (const ReplayResult& run : side.runs) values.push_back(static_cast<double>(run.*field));
    std::sort(values.begin(), values.end());
    return values;
  }
  static double median(const std::vector<double>& sorted) { return sorted[sorted.size() / 2]; }
  // What the calls and their allocator added to what the replayer has by itself.
  double rss(const Side& side) const {
    const double peak = median(values(side, &ReplayResult::rss_peak_bytes));
    return std::max(0.0, peak - static_cast<double>(own_rss_bytes_));
  }

  Words notes() const {
    Words notes = facts_["notes"].get<Words>();
    if (!facts_["touches_known"].get<bool>()) {
      notes.emplace_back("recorded without page faults' addresses: every block is touched in full");
    }
    for (const Side& side : sides_) {
      const double failed = median(values(side, &ReplayResult::failed));
      if (failed != 0) {
        notes.push_back(fmt::format("{}: {:.0f} calls got no memory", side.label, failed));
      }
    }
    return notes;
  }

  void tell(const std::string& what) const {
    if (!plan_.quiet) write_all(STDERR_FILENO, "heapledger: replay: " + what + "\n");
  }

  const Plan& plan_;
  ScratchFolder folder_;
  Json facts_;
  std::vector<Side> sides_;
  uint64_t own_rss_bytes_ = 0;  // Of the replayer, before its first call, without any library.
};

}  // namespace

int run_replay(const Words& arguments) {
  Plan plan;
  CLI::App app("Make the recorded calls again, for real, under other allocators and settings.",
               "heapledger replay");
  set_usage(app, "Usage: heapledger replay [OPTIONS] TRACE");
  app.footer(
      "The calls keep their threads and the order of what happens to each block; the pages that "
      "the "
      "program\ntouched are touched. Heap RSS is what the calls and the allocator add to the "
      "replayer's own memory.");
  app.add_option("TRACE", plan.trace, "trace file")->required();
  app.add_option("--allocator", plan.allocators,
                 "glibc, heapledger, jemalloc, tcmalloc, mimalloc, or a library's path; again for "
                 "another (default: glibc)")
      ->take_all();
  app.add_option("--set", plan.sets,
                 "malloc's tunables, NAME=VALUE with commas between; again for another list "
                 "(default: as recorded)")
      ->take_all();
  app.add_option("--runs", plan.runs, "timed runs of each (default: 5)")
      ->check(CLI::Range(1, kRunsMax));
  app.add_option("--process", plan.pid, "the process of this pid (default: that held most)");
  app.add_flag("--json", plan.json, "for programs");
  app.add_flag("--quiet", plan.quiet, "no line per run on stderr");
  if (!parse_options(app, arguments)) return 0;
  Replayer replayer(plan);
  replayer.run();
  fmt::print("{}", plan.json ? replayer.json().dump(2) + "\n" : replayer.text());
  return 0;
}

}  // namespace heapledger::front
