// SPDX-License-Identifier: Apache-2.0
// Which settings a recorded program should have: the best for time, for memory, and for both, out
// of a sweep; with what each gains and costs, and what may spoil it.
//
// Time is that of system calls and page faults under the model; memory is the heap's resident peak.
// A gain counts from 1 % of the run or of the RSS on: less is below what runs differ by. Where
// threads' calls could have come in other orders (interleaving.h), a setting is judged by the worst
// of them, and its figures are those of the one in the middle.
// Thread safety: as sweep(). Cost: one to three sweeps.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "analyzer/whatif/sweep.h"

namespace heapledger::analyzer {

enum class Goal : uint8_t { kTime, kMemory, kBoth };
const char* goal_name(Goal goal);  // "time", "memory", "both"

struct Choice {
  Goal goal = Goal::kTime;
  SweepRow row;
  double gain_ns = 0;      // Against the recorded settings; negative: it costs so much.
  int64_t gain_bytes = 0;  // Of peak RSS.
  bool is_worth_it = false;
};

struct Advice {
  SweepRow recorded;
  std::vector<Choice> choices;  // One per goal.
  std::vector<std::string> warnings;
  std::vector<std::string> luck;  // What hangs on the order of the threads' calls; in words.
  SweepResult sweep;              // Of the first grid.
  int64_t run_ns = 0;             // The process's recorded time.
  uint64_t rss_bytes_peak = 0;    // As predicted without the recorder.
};

Advice advise(schema::Database& db, const TraceInfo& info, const ProcessInfo& process,
              int64_t ns_per_fault, const SweepOptions& options);

// The same as calls of mallopt, one a line, for what mallopt can set; empty: nothing to set.
std::vector<std::string> mallopt_calls(const SettingChoice& choice);

}  // namespace heapledger::analyzer
