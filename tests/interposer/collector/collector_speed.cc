// SPDX-License-Identifier: Apache-2.0
// Not a test: how fast the collector is, by hand.
//
//     collector_speed calls [COUNT]    one program writes calls as fast as it can
//     collector_speed faults [PAGES]   one program touches fresh pages, with and without the
//     collector
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <string>

#include "tests/interposer/collector/collector_process.h"

namespace {

using namespace heapledger::collector::testing;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double cpu_seconds(const rusage& usage) {
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

struct Result {
  double program_seconds;
  double total_seconds;
  double collector_cpu_seconds;
  nlohmann::json finished;
};

Result record(const std::vector<std::string>& command) {
  Folder folder;
  CollectorProcess collector(Environment{{"HEAPLEDGER_OUTPUT", folder.file("trace.db")}});
  const auto ready = collector.wait_for("ready");
  Result result{};
  const auto start = Clock::now();
  const pid_t child = collector.run(command, ready.at("session"));
  collector.report_end(child);
  result.program_seconds = seconds_since(start);
  result.finished = collector.wait_for("finished", 600);
  result.total_seconds = seconds_since(start);
  rusage before{};
  rusage after{};
  getrusage(RUSAGE_CHILDREN, &before);
  collector.wait_exit();
  getrusage(RUSAGE_CHILDREN, &after);
  result.collector_cpu_seconds = cpu_seconds(after) - cpu_seconds(before);
  return result;
}

void calls(const std::string& count) {
  const Result result = record({HEAPLEDGER_PRODUCER_FILE, "speed", "none", count});
  const double events = result.finished.at("events").get<double>();
  fmt::print(
      "{} calls, {} lost: program {:.2f} s, all {:.2f} s = {:.2f} M/s; collector's CPU {:.1f} "
      "ns/call; {:.2f} bytes/call on disk\n",
      events, result.finished.at("lost").get<int64_t>(), result.program_seconds,
      result.total_seconds, events / result.total_seconds * 1e-6,
      result.collector_cpu_seconds / events * 1e9,
      result.finished.at("bytes").get<double>() / events);
}

void faults(const std::string& pages) {
  const std::vector<std::string> command = {HEAPLEDGER_PRODUCER_FILE, "touch", "/dev/null", pages};
  const auto start = Clock::now();
  const pid_t child = fork();
  if (child == 0) {
    execl(command[0].c_str(), command[0].c_str(), "touch", "/dev/null", pages.c_str(), nullptr);
    _exit(127);
  }
  waitpid(child, nullptr, 0);
  const double alone = seconds_since(start);
  const Result result = record(command);
  const double count = result.finished.at("faults").get<double>();
  fmt::print(
      "{} faults ({}), {} lost: alone {:.3f} s, recorded {:.3f} s = {:.0f} ns/fault more; "
      "collector's CPU {:.0f} ns/fault; {:.2f} bytes/fault on disk\n",
      count, result.finished.at("fault_source").get<std::string>(),
      result.finished.at("lost").get<int64_t>(), alone, result.program_seconds,
      (result.program_seconds - alone) / count * 1e9, result.collector_cpu_seconds / count * 1e9,
      result.finished.at("bytes").get<double>() / count);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "calls";
  if (what == "calls") calls(argc > 2 ? argv[2] : "20000000");
  if (what == "faults") faults(argc > 2 ? argv[2] : "500000");
  return 0;
}
