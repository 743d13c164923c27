// SPDX-License-Identifier: Apache-2.0
#include "analyzer/whatif/sweep.h"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <deque>
#include <exception>
#include <fstream>
#include <memory>
#include <mutex>
#include <numeric>
#include <thread>

#include "analyzer/whatif/model.h"
#include "analyzer/whatif/recorded_ops.h"
#include "analyzer/whatif/sweep_lane.h"
#include "analyzer/whatif/sweep_stream.h"
#include "schema/error.h"

namespace heapledger::analyzer {

namespace {

constexpr size_t kCombinationsMax = 10'000;
// How many other orders of the threads' calls are tried, and under how many settings at most.
constexpr size_t kOrders = 8;
constexpr size_t kOrderedRowsMax = 16;
// Address space, not memory: each model reserves a third of a TiB of 128.
constexpr size_t kModelsAtOnce = 200;

// Threads that run every lane over one chunk at a time, in the lane's order.
class Crew {
 public:
  Crew(std::deque<SweepLane>& lanes, std::deque<SweepStream>& streams, size_t threads)
      : lanes_(lanes), streams_(streams), meet_(static_cast<ptrdiff_t>(threads + 1)) {
    for (size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
  }
  ~Crew() {
    if (works_) meet_.arrive_and_wait();  // The reading of the next chunk threw.
    ends_ = true;
    meet_.arrive_and_wait();
  }

  // Returns at once; the streams' chunks of this number must stay until wait().
  void start(size_t chunk) {
    chunk_ = chunk;
    next_ = 0;
    works_ = true;
    meet_.arrive_and_wait();
  }
  void wait() {
    meet_.arrive_and_wait();
    works_ = false;
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void work() {
    for (;;) {
      meet_.arrive_and_wait();
      if (ends_) return;
      try {
        for (size_t i = next_++; i < lanes_.size(); i = next_++) {
          lanes_[i].run(streams_[lanes_[i].order()].chunk(chunk_));
        }
      } catch (...) {
        const std::scoped_lock lock(error_lock_);
        error_ = std::current_exception();
      }
      meet_.arrive_and_wait();
    }
  }

  std::deque<SweepLane>& lanes_;
  std::deque<SweepStream>& streams_;
  std::barrier<> meet_;
  size_t chunk_ = 0;
  bool ends_ = false;
  bool works_ = false;  // Only for the thread that starts and waits.
  std::atomic<size_t> next_{0};
  std::mutex error_lock_;
  std::exception_ptr error_;
  std::vector<std::jthread> threads_;  // Last: joined first.
};

uint64_t available_bytes() {
  std::ifstream file("/proc/meminfo");
  std::string name;
  uint64_t kib = 0;
  std::string unit;
  while (file >> name >> kib >> unit) {
    if (name == "MemAvailable:") return kib * 1024;
  }
  return uint64_t{1} << 30;
}

// A model stores the pages that the allocator writes headers to: at most what is held.
size_t models_at_once(schema::Database& db, int64_t process, size_t threads) {
  const auto held = static_cast<uint64_t>(
      db.query_int("SELECT max(held_bytes) FROM fragmentation WHERE process = " +
                   std::to_string(process))
          .value_or(0));
  const uint64_t each = std::max<uint64_t>(held, uint64_t{1} << 20);
  return std::clamp<size_t>(available_bytes() / 2 / each, threads, kModelsAtOnce);
}

class Sweep {
 public:
  Sweep(schema::Database& db, const TraceInfo& info, int64_t process, const SweepOptions& options)
      : db_(db),
        info_(info),
        process_(process),
        options_(options),
        threads_(options.threads != 0 ? options.threads
                                      : std::max(1U, std::thread::hardware_concurrency())),
        plan_(TouchPlan::of(db, info, process)) {}

  SweepResult run(int64_t ns_per_fault) {
    SweepResult result;
    result.ns_per_fault = ns_per_fault;
    result.call_cost = options_.call_cost ? *options_.call_cost : CallCost::of(db_, process_);
    result.touches_known = plan_.is_known();
    result.fresh_pages = plan_.fresh_pages();
    result.recycled_pages = plan_.recycled_pages();
    result.other_faults = plan_.other_touches().size();
    other_ = other_rss(db_, process_, RecorderShare::of(db_, process_), plan_.other_touches(),
                       plan_.recorder_pages());
    result.other_rss_bytes = other_.bytes;
    const std::vector<SettingChoice> grid =
        options_.choices.empty()
            ? setting_grid(recorded_settings(db_, info_, process_), options_.axes)
            : options_.choices;
    const std::vector<SweepLane::Plan> plans = lane_plans(grid);
    const size_t group = models_at_once(db_, process_, threads_);
    const size_t groups = (plans.size() + group - 1) / group;
    for (size_t i = 0; i < groups; ++i) {
      const size_t first = plans.size() * i / groups;
      const size_t last = plans.size() * (i + 1) / groups;
      done_before_ = static_cast<double>(first) / static_cast<double>(plans.size());
      part_ = static_cast<double>(last - first) / static_cast<double>(plans.size());
      run_group(std::span(plans).subspan(first, last - first), result);
    }
    const auto jittered = result.rows.begin() + static_cast<ptrdiff_t>(grid.size());
    const auto reordered = jittered + static_cast<ptrdiff_t>(options_.jitters);
    for (auto row = reordered; row != result.rows.end(); ++row) {
      const auto setting = static_cast<size_t>(row - reordered) % grid.size();
      result.rows[setting].orders.push_back(std::move(*row));
    }
    result.jittered.assign(std::make_move_iterator(jittered), std::make_move_iterator(reordered));
    result.rows.erase(jittered, result.rows.end());
    return result;
  }

 private:
  // Each setting as recorded; the first with changed sizes; each in other orders.
  std::vector<SweepLane::Plan> lane_plans(const std::vector<SettingChoice>& grid) {
    std::vector<SweepLane::Plan> plans;
    for (const SettingChoice& choice : grid) plans.push_back({choice, 0, 0});
    for (uint32_t i = 0; i < options_.jitters; ++i) plans.push_back({grid.front(), i + 1, 0});
    for (size_t order = 1; order <= options_.orders; ++order) {
      for (const SettingChoice& choice : grid) plans.push_back({choice, 0, order});
    }
    return plans;
  }

  void run_group(std::span<const SweepLane::Plan> plans, SweepResult& result) {
    const auto cpus = static_cast<size_t>(schema::meta_int(db_, "cpus").value_or(1));
    std::deque<SweepLane> lanes;  // A lane's model refers to it: it may not move.
    for (const SweepLane::Plan& plan : plans) lanes.emplace_back(plan, cpus, result.call_cost);
    // What is damaged is said by the notes on the trace.
    RecordedOps reader(
        db_, info_, process_, [](const schema::Damage&) {}, &plan_);
    if (options_.orders != 0) reader.set_fresh_numbers();
    std::deque<SweepStream> streams;
    for (uint32_t seed = 0; seed <= options_.orders; ++seed)
      streams.emplace_back(seed, other_.steps);
    uint64_t operations = 0;
    {
      Crew crew(lanes, streams, std::min(threads_, lanes.size()));
      size_t now = 0;
      bool more = reader.next_chunk(streams[0].chunk(now).ops);
      while (more) {
        const std::vector<Op>& ops = streams[0].chunk(now).ops;
        for (SweepStream& stream : streams) stream.fill(now, ops);
        crew.start(now);
        operations += ops.size();
        for (const Op& op : ops) result.threads = std::max<size_t>(result.threads, op.thread + 1);
        report(ops.back().time_ns);
        now = 1 - now;
        more = reader.next_chunk(streams[0].chunk(now).ops);
        crew.wait();
      }
    }
    for (SweepLane& lane : lanes) {
      result.rows.push_back(
          lane.finish(result.ns_per_fault, plan_.second_faults(), other_.steps.back().bytes));
    }
    result.operations = operations;
    result.unmatched_ends = reader.unmatched_ends();
  }

  void report(int64_t time_ns) const {
    if (!options_.progress || info_.end_ns <= 0) return;
    const double of_group = static_cast<double>(time_ns) / static_cast<double>(info_.end_ns);
    options_.progress(done_before_ + part_ * std::clamp(of_group, 0.0, 1.0));
  }

  schema::Database& db_;
  const TraceInfo& info_;
  int64_t process_;
  const SweepOptions& options_;
  size_t threads_;
  TouchPlan plan_;
  OtherRss other_;
  double done_before_ = 0, part_ = 1;
};

}  // namespace

const SweepRow& SweepRow::typical() const {
  std::vector<const SweepRow*> rows = {this};
  for (const SweepRow& other : orders) rows.push_back(&other);
  const auto middle = rows.begin() + static_cast<ptrdiff_t>(rows.size() / 2);
  std::nth_element(rows.begin(), middle, rows.end(), [](const SweepRow* a, const SweepRow* b) {
    return a->cost_ns() < b->cost_ns();
  });
  return **middle;
}

uint64_t SweepRow::call_count() const {
  return std::accumulate(calls.begin(), calls.end(), uint64_t{0});
}

SweepResult sweep(schema::Database& db, const TraceInfo& info, int64_t process,
                  int64_t ns_per_fault, const SweepOptions& options) {
  size_t combinations = 1;
  for (const auto& words : options.axes) combinations *= std::max<size_t>(1, words.size());
  if (combinations > kCombinationsMax) {
    throw schema::Error("the lists", "more than 10,000 combinations");
  }
  return Sweep(db, info, process, options).run(ns_per_fault);
}

void add_orders(schema::Database& db, const TraceInfo& info, int64_t process,
                const SweepOptions& options, SweepResult& result) {
  if (result.threads < 2) return;
  std::vector<size_t> rows;
  if (result.rows.size() <= kOrderedRowsMax) {
    rows.resize(result.rows.size());
    std::iota(rows.begin(), rows.end(), size_t{0});
  } else {
    rows = pareto_front(result.rows);
    if (rows.size() >= kOrderedRowsMax) rows.resize(kOrderedRowsMax - 1);
    if (std::find(rows.begin(), rows.end(), 0U) == rows.end()) rows.push_back(0);
  }
  SweepOptions more = options;
  more.axes = {};
  more.jitters = 0;
  more.orders = kOrders;
  more.call_cost = result.call_cost;
  for (const size_t row : rows) more.choices.push_back(result.rows[row].choice);
  SweepResult ordered = sweep(db, info, process, result.ns_per_fault, more);
  for (size_t i = 0; i < rows.size(); ++i) {
    result.rows[rows[i]].orders = std::move(ordered.rows[i].orders);
  }
}

std::vector<size_t> pareto_front(const std::vector<SweepRow>& rows) {
  std::vector<size_t> order(rows.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::pair(rows[a].cost_ns(), rows[a].resident_bytes_peak) <
           std::pair(rows[b].cost_ns(), rows[b].resident_bytes_peak);
  });
  std::vector<size_t> front;
  uint64_t least = UINT64_MAX;
  for (const size_t row : order) {
    if (rows[row].resident_bytes_peak >= least) continue;
    least = rows[row].resident_bytes_peak;
    front.push_back(row);
  }
  return front;
}

}  // namespace heapledger::analyzer
