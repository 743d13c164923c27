// SPDX-License-Identifier: Apache-2.0
// One process's recorded calls, run through the model of glibc's allocator under many settings at
// once: what each would have cost in system calls and page faults, and held in memory.
//
// One reading feeds all models, chunk by chunk, on all cores. Models that do not fit into memory
// together take turns: the calls are read again for each group.
// Thread safety: sweep() starts threads of its own; nothing else is shared. Cost: 50-200 ns per
// operation and setting, divided by the cores.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "analyzer/trace_info.h"
#include "analyzer/whatif/call_cost.h"
#include "analyzer/whatif/setting_grid.h"
#include "analyzer/whatif/touch_plan.h"

namespace heapledger::analyzer {

struct SweepRow {
  SettingChoice choice;
  std::array<uint64_t, heap::kCallNames> calls{};  // By CallName.
  double syscall_ns = 0;
  uint64_t faults = 0;  // Of heap pages.
  double fault_ns = 0;
  uint64_t held_bytes_peak = 0;
  double held_bytes_mean = 0;
  uint64_t resident_bytes_peak = 0;  // Of the heap.
  double resident_bytes_mean = 0;
  uint64_t rss_bytes_peak = 0;  // Of the process: of heap and what else there is at a time.
  double external = 0;          // 1 - requested live bytes / held bytes, at the peak of held.
  // The same with the threads' calls in other orders (SweepOptions::orders).
  std::vector<SweepRow> orders;

  uint64_t call_count() const;
  double cost_ns() const { return syscall_ns + fault_ns; }
  // The least and the most of a value in all orders, the recorded one among them.
  template <class Value>
  auto range(Value value) const {
    auto range = std::pair(value(*this), value(*this));
    for (const SweepRow& other : orders) {
      range.first = std::min(range.first, value(other));
      range.second = std::max(range.second, value(other));
    }
    return range;
  }
  // The order whose cost is in the middle.
  const SweepRow& typical() const;
};

struct SweepResult {
  std::vector<SweepRow> rows;      // The recorded settings first.
  std::vector<SweepRow> jittered;  // Under the recorded settings, with SweepOptions::jitters.
  CallCost call_cost;
  int64_t ns_per_fault = 0;
  uint64_t operations = 0;
  size_t threads = 0;           // That called malloc.
  uint64_t unmatched_ends = 0;  // Ends of blocks that never began.
  bool touches_known = false;   // False: every block is taken to be touched in full.
  uint64_t fresh_pages = 0, recycled_pages = 0;  // See TouchPlan.
  // What the process had besides heap, without the recorder's.
  uint64_t other_faults = 0;
  uint64_t other_rss_bytes = 0;  // At the largest recorded RSS.
};

struct SweepOptions {
  AxisWords axes;
  size_t threads = 0;  // 0: one per core.
  size_t jitters = 0;  // So many more runs, with sizes from 32 KiB on changed by up to 3 %.
  // So many more runs of each setting, with the threads' calls in orders that might as well have
  // come (interleaving.h). Of use where there are several threads.
  size_t orders = 0;
  // Of an earlier sweep whose rows these are to stand beside; measured anew, costs would differ.
  std::optional<CallCost> call_cost;
  std::vector<SettingChoice> choices;         // Not empty: these instead of the axes.
  std::function<void(double part)> progress;  // 0..1, now and then, from the calling thread.
};

// `ns_per_fault`: what a minor fault costs. Throws Error.
SweepResult sweep(schema::Database& db, const TraceInfo& info, int64_t process,
                  int64_t ns_per_fault, const SweepOptions& options);

// Of a process with several threads: adds SweepRow::orders to the rows. Where they are many, only
// to the recorded settings' and to those that no other one beats.
void add_orders(schema::Database& db, const TraceInfo& info, int64_t process,
                const SweepOptions& options, SweepResult& result);

// Which rows no other row beats in both cost and peak of resident bytes, by cost.
std::vector<size_t> pareto_front(const std::vector<SweepRow>& rows);

}  // namespace heapledger::analyzer
