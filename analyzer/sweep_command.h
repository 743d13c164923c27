// SPDX-License-Identifier: Apache-2.0
// `heapledger-analyzer sweep`: what other settings would have cost the recorded program.
#pragma once

#include <array>
#include <chrono>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "analyzer/reports/report.h"
#include "analyzer/whatif/setting_grid.h"
#include "analyzer/whatif/sweep.h"

namespace heapledger::analyzer {

// `lists`: one per axis as given on the command line, empty where it was not. With none at all, the
// default grid. Writes its progress to stderr where that is a terminal. Throws Error.
Document run_sweep(Trace& trace, const std::array<std::string, kAxes>& lists,
                   const ReportOptions& options);

// Said where SweepResult::touches_known is false.
std::string touches_unknown_note();
// What the numbers of a sweep rest on, in words.
std::vector<std::string> sweep_notes(const SweepResult& result);

// Adds what other orders of the threads' calls made of it, if they were tried: "syscalls_range" and
// the like, least and most.
void add_ranges(const SweepRow& row, nlohmann::ordered_json& json);

// "sweep: 43 %" over and over on one line, where stderr is a terminal. Gone when destroyed.
class SweepProgress {
 public:
  explicit SweepProgress(const char* command);
  ~SweepProgress();
  SweepProgress(const SweepProgress&) = delete;
  SweepProgress& operator=(const SweepProgress&) = delete;

  void tell(double part);  // 0..1.

 private:
  const char* command_;
  bool shown_;
  bool told_ = false;
  std::chrono::steady_clock::time_point last_;
};

}  // namespace heapledger::analyzer
