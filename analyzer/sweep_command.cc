// SPDX-License-Identifier: Apache-2.0
#include "analyzer/sweep_command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <tuple>

#include "analyzer/finalize/fault_cost.h"
#include "analyzer/render/units.h"
#include "analyzer/whatif/model.h"
#include "analyzer/whatif/sweep.h"
#include "schema/error.h"

namespace heapledger::analyzer {

namespace {

using Json = nlohmann::ordered_json;

int64_t whole(double value) { return static_cast<int64_t>(value + 0.5); }

class SweepReport {
 public:
  SweepReport(Trace& trace, const ProcessInfo& process, const SweepResult& result)
      : result_(result), is_best_(result.rows.size()) {
    // All that do as well as one on the front.
    for (const size_t best : pareto_front(result.rows)) {
      for (size_t i = 0; i < result.rows.size(); ++i) {
        is_best_[i] = is_best_[i] ||
                      (result.rows[i].cost_ns() <= result.rows[best].cost_ns() &&
                       result.rows[i].resident_bytes_peak <= result.rows[best].resident_bytes_peak);
      }
    }
    // As far as it was recorded; with other settings, shorter or longer by what they cost.
    recorded_ns_ = process.end_ns.value_or(trace.info.end_ns) - process.start_ns.value_or(0);
  }

  Document document() const {
    Document document;
    document.sections.push_back({"", headline(), std::nullopt});
    document.add_table(table("Best: less time only for more memory", true));
    document.add_table(best_in_full());
    document.add_table(table("All settings by cost", false));
    if (has_orders()) document.add_table(luck_table());
    Json rows = Json::array();
    for (size_t i = 0; i < result_.rows.size(); ++i) rows.push_back(row_json(i));
    document.json["rows"] = std::move(rows);
    document.json["operations"] = result_.operations;
    document.json["ns_per_fault"] = result_.ns_per_fault;
    document.json["other_faults"] = result_.other_faults;
    document.json["other_rss_bytes"] = result_.other_rss_bytes;
    document.json["syscall_cost"] = cost_json();
    document.notes = sweep_notes(result_);
    return document;
  }

 private:
  std::vector<std::string> headline() const {
    return {fmt::format("{} calls of malloc and its kin through glibc's allocator, modelled, under "
                        "{} settings.",
                        human_count(static_cast<int64_t>(result_.operations)), result_.rows.size()),
            fmt::format("Costs: system calls as recorded, {} per page fault (estimate).",
                        human_ns(result_.ns_per_fault))};
  }

  // Settings that make no difference to each other are one row, named after the simplest.
  struct Group {
    size_t row;
    size_t size;
  };
  std::vector<Group> groups() const {
    std::vector<Group> groups;
    std::map<std::tuple<uint64_t, double, uint64_t, uint64_t>, size_t> known;
    for (size_t i = 0; i < result_.rows.size(); ++i) {
      const SweepRow& row = result_.rows[i];
      const auto [place, is_new] = known.emplace(
          std::tuple(row.call_count(), row.syscall_ns, row.faults, row.resident_bytes_peak),
          groups.size());
      if (is_new) {
        groups.push_back({i, 1});
        continue;
      }
      Group& group = groups[place->second];
      ++group.size;
      const auto settings = [this](size_t of) { return result_.rows[of].choice.tunables.size(); };
      if (group.row != 0 && settings(i) < settings(group.row)) group.row = i;
    }
    std::stable_sort(groups.begin(), groups.end(), [this](const Group& a, const Group& b) {
      return result_.rows[a.row].cost_ns() < result_.rows[b.row].cost_ns();
    });
    return groups;
  }

  Table table(const char* title, bool best_only) const {
    Table table("", title,
                {{"settings", "settings", Unit::kText},
                 {"same", "alike", Unit::kCount},
                 {"syscalls", "syscalls", Unit::kCount},
                 {"syscall_ns", "", Unit::kNs},
                 {"faults", "faults", Unit::kCount},
                 {"fault_ns", "", Unit::kNs},
                 {"cost_ns", "cost", Unit::kNs},
                 {"", "x", Unit::kFactor},
                 {"resident", "resident", Unit::kBytes},
                 {"", "x", Unit::kFactor}});
    const double cost = least([](const SweepRow& row) { return row.cost_ns(); });
    const double resident =
        least([](const SweepRow& row) { return static_cast<double>(row.resident_bytes_peak); });
    for (const Group& group : groups()) {
      // The recorded settings stand beside the best ones.
      if (best_only && group.row != 0 && !is_best(group.row)) continue;
      const SweepRow& row = result_.rows[group.row];
      table.add({row.choice.label, integer_cell(group.size - 1), integer_cell(row.call_count()),
                 whole(row.syscall_ns), integer_cell(row.faults), whole(row.fault_ns),
                 whole(row.cost_ns()), factor(row.cost_ns(), cost),
                 integer_cell(row.resident_bytes_peak),
                 factor(static_cast<double>(row.resident_bytes_peak), resident)});
    }
    if (best_only) table.limited = false;
    return table;
  }

  // What the best ones' cost is made of, and what they hold from the system.
  Table best_in_full() const {
    std::vector<Column> columns = {{"settings", "settings", Unit::kText}};
    for (size_t i = 0; i < heap::kCallNames; ++i) {
      const char* name = heap::call_name(static_cast<heap::CallName>(i));
      // One thread's heap needs few of them: room for the settings' names.
      const bool is_made = std::any_of(result_.rows.begin(), result_.rows.end(),
                                       [i](const SweepRow& row) { return row.calls[i] != 0; });
      columns.push_back({name, is_made ? name : "", Unit::kCount});
    }
    columns.push_back({"held", "held", Unit::kBytes});
    columns.push_back({"held_mean", "mean", Unit::kBytes});
    columns.push_back({"resident_mean", "", Unit::kBytes});
    columns.push_back({"external", "external", Unit::kRatio});
    Table table("", "The same: their calls, and what they hold", std::move(columns));
    for (const Group& group : groups()) {
      if (group.row != 0 && !is_best(group.row)) continue;
      const SweepRow& row = result_.rows[group.row];
      std::vector<Cell> cells = {row.choice.label};
      for (const uint64_t calls : row.calls) cells.push_back(integer_cell(calls));
      cells.push_back(integer_cell(row.held_bytes_peak));
      cells.push_back(whole(row.held_bytes_mean));
      cells.push_back(whole(row.resident_bytes_mean));
      cells.push_back(row.external);
      table.add(std::move(cells));
    }
    table.limited = false;
    return table;
  }

  bool has_orders() const { return !result_.rows.front().orders.empty(); }

  // Of a process with several threads: what their calls in other orders would have made of it.
  Table luck_table() const {
    constexpr double kSame = 1.05;
    const size_t orders = result_.rows.front().orders.size() + 1;
    Table table("",
                fmt::format("Luck: from the least to the most in {} orders that the threads' calls "
                            "could have come in",
                            orders),
                {{"settings", "settings", Unit::kText},
                 {"syscalls_least", "syscalls", Unit::kCount},
                 {"syscalls_most", "to", Unit::kCount},
                 {"cost_ns_least", "cost", Unit::kNs},
                 {"cost_ns_most", "to", Unit::kNs},
                 {"rss_least", "peak RSS", Unit::kBytes},
                 {"rss_most", "to", Unit::kBytes}});
    for (const Group& group : groups()) {
      const SweepRow& row = result_.rows[group.row];
      if (row.orders.empty()) continue;
      const auto calls = row.range([](const SweepRow& of) { return of.call_count(); });
      const auto cost = row.range([](const SweepRow& of) { return of.cost_ns(); });
      const auto rss = row.range([](const SweepRow& of) { return of.rss_bytes_peak; });
      if (cost.second < kSame * cost.first &&
          static_cast<double>(rss.second) < kSame * static_cast<double>(rss.first)) {
        continue;
      }
      table.add({row.choice.label, integer_cell(calls.first), integer_cell(calls.second),
                 whole(cost.first), whole(cost.second), integer_cell(rss.first),
                 integer_cell(rss.second)});
    }
    table.empty_text = "no setting's cost or peak RSS differs by 5 %";
    table.limited = false;
    return table;
  }

  template <class Value>
  double least(Value value) const {
    double least = value(result_.rows.front());
    for (const SweepRow& row : result_.rows) least = std::min(least, value(row));
    return least;
  }
  static Cell factor(double value, double best) { return best > 0 ? Cell(value / best) : Cell(); }
  bool is_best(size_t row) const { return is_best_[row]; }

  Json settings_of(const SettingChoice& choice) const {
    const heap::Settings& settings = choice.settings;
    Json json = {{"mmap_threshold", static_cast<int64_t>(settings.mmap_threshold)},
                 {"mmap_threshold_dynamic", settings.threshold_is_dynamic},
                 {"trim_threshold", static_cast<int64_t>(settings.trim_threshold)},
                 {"top_pad", static_cast<int64_t>(settings.top_pad)},
                 {"mmap_max", settings.mmap_max},
                 {"arena_max", static_cast<int64_t>(settings.arena_max)},
                 {"tcache_count", static_cast<int64_t>(settings.cache_count)},
                 {"glibc", fmt::format("{}.{:02}", settings.glibc_version / 100,
                                       settings.glibc_version % 100)}};
    return json;
  }

  Json row_json(size_t number) const {
    const SweepRow& row = result_.rows[number];
    Json json;
    json["label"] = row.choice.label;
    json["settings"] = settings_of(row.choice);
    json["tunables"] = row.choice.tunables_text();
    for (size_t i = 0; i < heap::kCallNames; ++i) {
      json[heap::call_name(static_cast<heap::CallName>(i))] = row.calls[i];
    }
    json["syscall_ns"] = whole(row.syscall_ns);
    json["faults"] = row.faults;
    json["fault_ns"] = whole(row.fault_ns);
    json["held_bytes_peak"] = row.held_bytes_peak;
    json["held_bytes_mean"] = whole(row.held_bytes_mean);
    json["resident_bytes_peak"] = row.resident_bytes_peak;
    json["resident_bytes_mean"] = whole(row.resident_bytes_mean);
    json["rss_bytes_peak"] = row.rss_bytes_peak;
    json["external"] = row.external;
    json["wall_ns"] =
        std::max<int64_t>(0, recorded_ns_ + whole(row.cost_ns() - result_.rows.front().cost_ns()));
    json["is_best"] = is_best(number);
    add_ranges(row, json);
    return json;
  }

  Json cost_json() const {
    Json json = Json::object();
    for (size_t kind = 0; kind < CallCost::kKinds; ++kind) {
      const auto of = static_cast<CallCost::Kind>(kind);
      const CallCost::Line& line = result_.call_cost.line(of);
      json[CallCost::name(of)] = {{"base_ns", line.base_ns},
                                  {"ns_per_page", line.ns_per_page},
                                  {"recorded_calls", line.samples}};
    }
    return json;
  }

  const SweepResult& result_;
  std::vector<bool> is_best_;  // Per row.
  int64_t recorded_ns_ = 0;
};

}  // namespace

void add_ranges(const SweepRow& row, Json& json) {
  if (row.orders.empty()) return;
  const auto add = [&](const char* key, auto value) {
    const auto [least, most] = row.range(value);
    json[key] = {least, most};
  };
  add("syscalls_range", [](const SweepRow& of) { return of.call_count(); });
  add("faults_range", [](const SweepRow& of) { return of.faults; });
  add("cost_ns_range", [](const SweepRow& of) { return whole(of.cost_ns()); });
  add("rss_bytes_peak_range", [](const SweepRow& of) { return of.rss_bytes_peak; });
}

std::string touches_unknown_note() {
  return "recorded without page faults' addresses: every block is taken to be touched in full, "
         "faults outside the heap are not known";
}

std::vector<std::string> sweep_notes(const SweepResult& result) {
  std::vector<std::string> notes;
  if (!result.touches_known) {
    notes.push_back(touches_unknown_note());
  } else if (const uint64_t known = result.fresh_pages + result.recycled_pages; known != 0) {
    notes.push_back(fmt::format(
        "of blocks from {} on, {} of the pages were fresh when allocated, their touches are "
        "recorded; of the others the share touched by the same stack's fresh blocks is assumed",
        human_bytes(static_cast<int64_t>(kWideBytes)),
        human_ratio(static_cast<double>(result.fresh_pages) / static_cast<double>(known))));
  }
  std::string measured;
  for (size_t kind = 0; kind < CallCost::kKinds; ++kind) {
    const auto of = static_cast<CallCost::Kind>(kind);
    if (result.call_cost.line(of).samples == 0) {
      measured += fmt::format("{}{}", measured.empty() ? "" : ", ", CallCost::name(of));
    }
  }
  if (!measured.empty()) {
    notes.push_back("too few were recorded, so their cost was measured here: " + measured);
  }
  if (result.unmatched_ends != 0) {
    notes.push_back(fmt::format("{} frees of blocks whose allocation was not recorded are left out",
                                result.unmatched_ends));
  }
  return notes;
}

SweepProgress::SweepProgress(const char* command)
    : command_(command), shown_(isatty(STDERR_FILENO) != 0) {}

SweepProgress::~SweepProgress() {
  if (told_) fmt::print(stderr, "\r{:20}\r", "");
}

void SweepProgress::tell(double part) {
  const auto now = std::chrono::steady_clock::now();
  if (!shown_ || now - last_ < std::chrono::milliseconds(200)) return;
  last_ = now;
  told_ = true;
  fmt::print(stderr, "\r{}: {:3.0f} %", command_, part * 100);
  std::fflush(stderr);
}

Document run_sweep(Trace& trace, const std::array<std::string, kAxes>& lists,
                   const ReportOptions& options) {
  SweepOptions sweep_options;
  const bool any =
      std::any_of(lists.begin(), lists.end(), [](const auto& list) { return !list.empty(); });
  if (!any) sweep_options.axes = default_axes();
  for (size_t i = 0; i < kAxes; ++i) {
    if (!lists[i].empty()) sweep_options.axes[i] = parse_axis(static_cast<Axis>(i), lists[i]);
  }
  const ReportInput input{{&trace, 1}, options};
  const ProcessInfo& process = main_process(input);
  const int64_t ns_per_fault = fault_cost_ns(trace.db);
  SweepProgress progress("sweep");
  sweep_options.progress = [&](double part) { progress.tell(part); };
  SweepResult result = sweep(trace.db, trace.info, process.id, ns_per_fault, sweep_options);
  add_orders(trace.db, trace.info, process.id, sweep_options, result);
  if (result.operations == 0) {
    throw schema::Error(trace.path, "it has no recorded calls to sweep");
  }
  Document document = SweepReport(trace, process, result).document();
  add_notes(input, document);
  return document;
}

}  // namespace heapledger::analyzer
