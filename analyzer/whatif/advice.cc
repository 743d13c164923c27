// SPDX-License-Identifier: Apache-2.0
#include "analyzer/whatif/advice.h"

#include <fmt/format.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdlib>
#include <numeric>

namespace heapledger::analyzer {

namespace {

// Runs of a program differ by more than less.
constexpr double kNoise = 0.01;
// Predictions of one recording have less noise: what differs by less of the run is alike.
constexpr double kAlike = 0.002;
constexpr Goal kGoals[] = {Goal::kTime, Goal::kMemory, Goal::kBoth};
// Of each goal, so many settings are tried with the threads' calls in other orders.
constexpr size_t kCandidates = 4;
// Runs of slightly other sizes: how many, and from which ratio of costs on they are two modes.
constexpr size_t kJitters = 7;
constexpr double kTwoModes = 1.5;

// Settings that do as well are told apart by their simplicity.
bool is_simpler(const SweepRow& a, const SweepRow& b) {
  return a.choice.tunables.size() < b.choice.tunables.size();
}

// The row with the least value; among those within the noise of it, those with the least `second`,
// as far as its own noise goes; of these the simplest, or else the first of the least.
template <class First, class Second>
const SweepRow& least(const std::vector<SweepRow>& rows, double slack, First first, Second second) {
  double bound = first(rows.front());
  for (const SweepRow& row : rows) bound = std::min(bound, first(row));
  bound += slack;
  double second_least = HUGE_VAL;
  for (const SweepRow& row : rows) {
    if (first(row) <= bound) second_least = std::min(second_least, second(row));
  }
  const double second_bound = second_least * (1 + kNoise);
  const SweepRow* best = nullptr;
  for (const SweepRow& row : rows) {
    if (first(row) > bound || second(row) > second_bound) continue;
    if (best == nullptr || is_simpler(row, *best) ||
        (!is_simpler(*best, row) && second(row) < second(*best))) {
      best = &row;
    }
  }
  return *best;
}

class Adviser {
 public:
  Adviser(schema::Database& db, const TraceInfo& info, const ProcessInfo& process,
          int64_t ns_per_fault, const SweepOptions& options)
      : db_(db), info_(info), process_(process), ns_per_fault_(ns_per_fault), options_(options) {}

  Advice run() {
    advice_.run_ns = process_.end_ns.value_or(info_.end_ns) - process_.start_ns.value_or(0);
    if (std::all_of(options_.axes.begin(), options_.axes.end(),
                    [](const auto& words) { return words.empty(); })) {
      options_.axes = default_axes();
    }
    // The last lanes run slightly other sizes under the recorded settings.
    options_.jitters = kJitters;
    advice_.sweep = sweep(db_, info_, process_.id, ns_per_fault_, options_);
    advice_.rss_bytes_peak = advice_.sweep.rows.front().rss_bytes_peak;
    if (advice_.sweep.threads > 1) {
      sweep_arenas();
      sweep_orders();
    }
    advice_.recorded = figures(advice_.sweep.rows.front());
    advice_.rss_bytes_peak = advice_.recorded.rss_bytes_peak;
    for (const Goal goal : kGoals) choose(goal);
    warn();
    return std::move(advice_);
  }

 private:
  double run_ns() const { return static_cast<double>(std::max<int64_t>(1, advice_.run_ns)); }
  double rss() const { return static_cast<double>(std::max<uint64_t>(1, advice_.rss_bytes_peak)); }
  static double bytes(const SweepRow& row) { return static_cast<double>(row.rss_bytes_peak); }

  // What the number of arenas does depends on the thresholds: it is tried with the best ones.
  void sweep_arenas() {
    const std::vector<SweepRow>& rows = advice_.sweep.rows;
    SweepOptions options = options_;
    options.jitters = 0;
    options.call_cost = advice_.sweep.call_cost;
    options.axes[static_cast<size_t>(Axis::kArenaMax)] = {"auto", "1", "2", "4", "8"};
    std::array<std::vector<std::string>, 3> words;
    for (const SweepRow* row :
         {&rows.front(), &least(rows, kNoise * run_ns(), &Adviser::cost, &Adviser::bytes),
          &least(rows, kNoise * bytes(rows.front()), &Adviser::bytes, &Adviser::cost)}) {
      for (size_t axis = 0; axis < words.size(); ++axis) {
        const std::string& word = row->choice.words[axis];
        if (std::find(words[axis].begin(), words[axis].end(), word) == words[axis].end()) {
          words[axis].push_back(word);
        }
      }
    }
    for (size_t axis = 0; axis < words.size(); ++axis) options.axes[axis] = words[axis];
    SweepResult more = sweep(db_, info_, process_.id, ns_per_fault_, options);
    warn_of_caps(more.rows);
    // The recorded settings are there already.
    for (size_t i = 1; i < more.rows.size(); ++i) {
      advice_.sweep.rows.push_back(std::move(more.rows[i]));
    }
  }

  // Helpful under some thresholds, harmful under others: whoever sets both must know.
  void warn_of_caps(const std::vector<SweepRow>& rows) {
    constexpr auto kArenas = static_cast<size_t>(Axis::kArenaMax);
    const SweepRow* low = nullptr;
    const SweepRow* high = nullptr;
    double low_change = 0, high_change = 0;
    for (const SweepRow& free : rows) {
      if (free.choice.words[kArenas] != "auto") continue;
      auto words = free.choice.words;
      words[kArenas] = "1";
      const auto capped = std::find_if(
          rows.begin(), rows.end(), [&](const SweepRow& row) { return row.choice.words == words; });
      if (capped == rows.end()) continue;
      const double change = (bytes(*capped) - bytes(free)) / bytes(free);
      if (low == nullptr || change < low_change) low = &free, low_change = change;
      if (high == nullptr || change > high_change) high = &free, high_change = change;
    }
    if (high == nullptr || high_change - low_change < kNoise) return;
    advice_.warnings.push_back(fmt::format(
        "what an arena cap does depends on the thresholds: one arena changes the peak RSS by "
        "{:+.1f} % under {}, by {:+.1f} % under {}",
        low_change * 100, low->choice.label, high_change * 100, high->choice.label));
  }

  static double cost(const SweepRow& row) { return row.cost_ns(); }

  // Keeps the rows that may be chosen, and tries their threads' calls in other orders.
  void sweep_orders() {
    std::vector<SweepRow>& rows = advice_.sweep.rows;
    std::vector<size_t> kept = {0};
    for (const Goal goal : kGoals) {
      std::vector<size_t> best(rows.size());
      std::iota(best.begin(), best.end(), size_t{0});
      std::stable_sort(best.begin(), best.end(), [&](size_t a, size_t b) {
        return value(goal, rows[a], rows[a]) < value(goal, rows[b], rows[b]);
      });
      best.resize(std::min(best.size(), kCandidates));
      // Whatever is as good as the last of them and simpler could be chosen, too.
      best.push_back(number_of(least_of(goal, rows)));
      for (const size_t row : best) {
        if (std::find(kept.begin(), kept.end(), row) == kept.end()) kept.push_back(row);
      }
    }
    std::vector<SweepRow> candidates;
    for (const size_t row : kept) candidates.push_back(rows[row]);
    rows = std::move(candidates);
    add_orders(db_, info_, process_.id, options_, advice_.sweep);
  }

  size_t number_of(const SweepRow& row) const {
    return static_cast<size_t>(&row - advice_.sweep.rows.data());
  }

  // With figures as of the order in the middle.
  static SweepRow figures(const SweepRow& row) {
    const SweepRow& typical = row.typical();
    SweepRow result = typical;
    result.orders = row.orders;
    if (&typical != &row) {
      SweepRow& place = result.orders[static_cast<size_t>(&typical - row.orders.data())];
      place = row;
      place.orders.clear();
    }
    return result;
  }

  // What a goal wants little of: shares of the run and of the RSS.
  double value(Goal goal, const SweepRow& of_time, const SweepRow& of_memory) const {
    const double time = of_time.cost_ns() / run_ns();
    const double memory = bytes(of_memory) / rss();
    return goal == Goal::kTime ? time : goal == Goal::kMemory ? memory : time + memory;
  }
  // The worst of all orders.
  double worst(Goal goal, const SweepRow& row) const {
    const double time = row.range(&Adviser::cost).second / run_ns();
    const double memory = row.range(&Adviser::bytes).second / rss();
    return goal == Goal::kTime ? time : goal == Goal::kMemory ? memory : time + memory;
  }

  const SweepRow& least_of(Goal goal, const std::vector<SweepRow>& rows) const {
    const Goal second = goal == Goal::kTime ? Goal::kMemory : Goal::kTime;
    return least(
        rows, kAlike, [&](const SweepRow& row) { return worst(goal, row); },
        [&](const SweepRow& row) { return worst(second, row); });
  }

  void choose(Goal goal) {
    const std::vector<SweepRow>& rows = advice_.sweep.rows;
    const SweepRow& best = least_of(goal, rows);
    const SweepRow& now = advice_.recorded;
    const SweepRow typical = figures(best);
    Choice choice{
        goal, typical, now.cost_ns() - typical.cost_ns(),
        static_cast<int64_t>(now.rss_bytes_peak) - static_cast<int64_t>(typical.rss_bytes_peak),
        false};
    // What it gains however its threads' calls come.
    choice.is_worth_it = value(goal, now, now) - worst(goal, best) >= kNoise;
    note_passed_over(goal, best, choice.is_worth_it);
    advice_.choices.push_back(std::move(choice));
  }

  // What would be better if its luck held.
  void note_passed_over(Goal goal, const SweepRow& best, bool is_worth_it) {
    const SweepRow& now = advice_.recorded;
    const double chosen =
        is_worth_it ? value(goal, best.typical(), best.typical()) : value(goal, now, now);
    const SweepRow* lucky = nullptr;
    double lucky_value = chosen - kNoise;
    for (const SweepRow& row : advice_.sweep.rows) {
      const double usual = value(goal, row.typical(), row.typical());
      if (&row == &best || row.orders.empty() || usual >= lucky_value) continue;
      lucky = &row;
      lucky_value = usual;
    }
    if (lucky == nullptr) return;
    say_luck(
        fmt::format("{} would do better for {} in the middle of several orders, but is not "
                    "advised: it hangs on luck; {}",
                    lucky->choice.label, goal_name(goal), range_text(*lucky)));
  }

  void say_luck(std::string words) {
    std::vector<std::string>& said = advice_.luck;
    if (std::find(said.begin(), said.end(), words) == said.end()) said.push_back(std::move(words));
  }

  static std::string range_text(const SweepRow& row) {
    const auto calls = row.range([](const SweepRow& of) { return of.call_count(); });
    const auto costs = row.range(&Adviser::cost);
    return fmt::format(
        "in {} orders of its threads' calls it makes {} to {} system calls, which with page faults "
        "cost {:.1f} to {:.1f} ms",
        row.orders.size() + 1, calls.first, calls.second, costs.first / 1e6, costs.second / 1e6);
  }

  // Whose costs differ as two modes do, by which thread comes first.
  void warn_of_luck() {
    const auto tell = [this](const SweepRow& row, const char* which) {
      const auto [low, high] = row.range(&Adviser::cost);
      if (high < kTwoModes * low || high - low < kNoise * run_ns()) return;
      say_luck(fmt::format("what {} ({}) costs hangs on which thread comes first: {}", which,
                           row.choice.label, range_text(row)));
    };
    tell(advice_.recorded, "it has now");
    for (const Choice& choice : advice_.choices) {
      if (choice.is_worth_it) tell(choice.row, "is advised");
    }
    advice_.warnings.insert(advice_.warnings.end(), advice_.luck.begin(), advice_.luck.end());
  }

  void warn() {
    const auto sets = [](const SettingChoice& choice, const char* name) {
      return std::any_of(choice.tunables.begin(), choice.tunables.end(),
                         [&](const auto& tunable) { return tunable.first == name; });
    };
    bool ends_dynamic = false;
    bool caps_arenas = false;
    for (const Choice& choice : advice_.choices) {
      if (!choice.is_worth_it) continue;
      ends_dynamic = ends_dynamic || (advice_.recorded.choice.settings.threshold_is_dynamic &&
                                      !choice.row.choice.settings.threshold_is_dynamic);
      caps_arenas = caps_arenas || sets(choice.row.choice, "arena_max");
    }
    if (ends_dynamic) {
      advice_.warnings.push_back(
          "setting any of mmap_threshold, trim_threshold, top_pad and mmap_max fixes all four: the "
          "mmap threshold no longer follows the blocks that are freed");
    }
    if (caps_arenas) {
      advice_.warnings.push_back(
          "with fewer arenas threads wait for each other; the model does not know how long: "
          "verify");
    }
    warn_of_modes();
    warn_of_luck();
    if (advice_.sweep.unmatched_ends != 0) {
      advice_.warnings.push_back("calls are missing from the recording: verify");
    }
  }

  // The dynamic threshold follows the largest mapped block freed so far: what comes first decides
  // what the rest costs.
  void warn_of_modes() {
    const std::vector<SweepRow>& runs = advice_.sweep.jittered;
    if (!advice_.recorded.choice.settings.threshold_is_dynamic || runs.empty()) return;
    const auto [low, high] = std::minmax_element(
        runs.begin(), runs.end(),
        [](const SweepRow& a, const SweepRow& b) { return a.cost_ns() < b.cost_ns(); });
    if (high->cost_ns() < kTwoModes * low->cost_ns() ||
        high->cost_ns() - low->cost_ns() < kNoise * run_ns()) {
      return;
    }
    advice_.warnings.push_back(fmt::format(
        "under the dynamic threshold it has more than one mode: with sizes changed by up to 3 % "
        "system calls and faults cost {:.1f} to {:.1f} ms; a fixed threshold has one",
        low->cost_ns() / 1e6, high->cost_ns() / 1e6));
  }

  schema::Database& db_;
  const TraceInfo& info_;
  const ProcessInfo& process_;
  int64_t ns_per_fault_;
  SweepOptions options_;
  Advice advice_;
};

}  // namespace

const char* goal_name(Goal goal) {
  constexpr const char* kNames[] = {"time", "memory", "both"};
  return kNames[static_cast<size_t>(goal)];
}

Advice advise(schema::Database& db, const TraceInfo& info, const ProcessInfo& process,
              int64_t ns_per_fault, const SweepOptions& options) {
  return Adviser(db, info, process, ns_per_fault, options).run();
}

std::vector<std::string> mallopt_calls(const SettingChoice& choice) {
  constexpr std::pair<const char*, const char*> kParameters[] = {
      {"mmap_threshold", "M_MMAP_THRESHOLD"},
      {"trim_threshold", "M_TRIM_THRESHOLD"},
      {"top_pad", "M_TOP_PAD"},
      {"mmap_max", "M_MMAP_MAX"},
      {"arena_max", "M_ARENA_MAX"}};
  std::vector<std::string> calls;
  for (const auto& [name, value] : choice.tunables) {
    for (const auto& [tunable, parameter] : kParameters) {
      if (name != tunable) continue;
      // Its argument is an int; -1 is the largest size_t.
      const uint64_t number = std::strtoull(value.c_str(), nullptr, 10);
      if (number <= INT_MAX) calls.push_back(fmt::format("mallopt({}, {});", parameter, number));
      if (number == UINT64_MAX) calls.push_back(fmt::format("mallopt({}, -1);", parameter));
    }
  }
  return calls;
}

}  // namespace heapledger::analyzer
