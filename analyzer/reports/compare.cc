// SPDX-License-Identifier: Apache-2.0
// Recordings of the same work under different settings, side by side, each figure beside how many
// times the best one it is.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <limits>

#include "analyzer/render/units.h"
#include "analyzer/reports/all.h"
#include "analyzer/reports/compare_sites.h"
#include "analyzer/reports/fault_counts.h"
#include "analyzer/reports/saturating.h"
#include "analyzer/reports/settings.h"
#include "schema/error.h"
#include "schema/event.h"

namespace heapledger::analyzer {

namespace {

constexpr int64_t kMmapMaxDefault = 65536;

// Longer labels would be cut in the tables; a letter stands for them.
constexpr size_t kLabelWidthMax = 26;

struct Side {
  std::string label;       // What sets it apart.
  std::string short_name;  // The label, or a letter.
  Settings settings;
  std::array<int64_t, std::size(schema::kSyscallNames)> counts{};
  int64_t syscalls = 0, syscall_ns = 0, faults = 0, fault_ns = 0;
  int64_t held_bytes_peak = 0, rss_bytes_peak = 0, wall_ns = 0;
  int64_t live_bytes_peak = 0;  // Of its sites.
  double external = 0;

  int64_t cost_ns() const { return sum_of(syscall_ns, fault_ns); }
};

Side measure(Trace& trace) {
  ReportOptions options;
  const ReportInput input{{&trace, 1}, options};
  const ProcessInfo& main = main_process(input);
  const std::string where = process_condition(input);
  Side side;
  side.settings = settings_of(main);
  for (size_t i = 0; i < side.counts.size(); ++i) {
    side.counts[i] = trace.db
                         .query_int(fmt::format("SELECT count(*) FROM syscall WHERE {} AND origin ="
                                                " 'allocator' AND name = '{}'",
                                                where, schema::kSyscallNames[i]))
                         .value_or(0);
    side.syscalls += side.counts[i];
  }
  side.syscall_ns = trace.db
                        .query_int(
                            "SELECT sum(duration_ns) FROM syscall WHERE origin ="
                            " 'allocator' AND " +
                            where)
                        .value_or(0);
  const FaultTotals faults = fault_totals(input);
  side.faults = faults.minor + faults.major;
  side.fault_ns = faults.ns_estimate;
  schema::Statement peak = trace.db.prepare(
      "SELECT held_bytes, external FROM fragmentation WHERE process = ? AND at = 'peak'");
  peak.bind(1, main.id);
  if (peak.step()) {
    side.held_bytes_peak = peak.column_int(0);
    side.external = peak.column_double(1);
  }
  side.live_bytes_peak =
      trace.db.query_int("SELECT sum(live_bytes_peak) FROM site WHERE " + where).value_or(0);
  for (const ProcessInfo* process : selected_processes(input)) {
    side.rss_bytes_peak = std::max(side.rss_bytes_peak, process->rss_peak_bytes.value_or(0));
  }
  const ProcessInfo& first = trace.info.processes.front();
  side.wall_ns =
      difference_of(first.end_ns.value_or(trace.info.end_ns), first.start_ns.value_or(0));
  return side;
}

// The one in the middle; of an even number the lower, which is one that was measured.
template <class Value>
Value median(std::span<const Side> runs, Value Side::*field) {
  std::vector<Value> values;
  for (const Side& run : runs) values.push_back(run.*field);
  const auto middle = values.begin() + static_cast<ptrdiff_t>((values.size() - 1) / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

Side medians(std::span<const Side> runs) {
  Side side = runs.front();
  for (auto field : {&Side::syscalls, &Side::syscall_ns, &Side::faults, &Side::fault_ns,
                     &Side::held_bytes_peak, &Side::rss_bytes_peak, &Side::wall_ns}) {
    side.*field = median(runs, field);
  }
  side.external = median(runs, &Side::external);
  for (size_t call = 0; call < side.counts.size(); ++call) {
    std::vector<int64_t> counts;
    for (const Side& run : runs) counts.push_back(run.counts[call]);
    std::sort(counts.begin(), counts.end());
    side.counts[call] = counts[(counts.size() - 1) / 2];
  }
  return side;
}

// Runs of one setting become one side.
std::vector<Side> fold_runs(const std::vector<Side>& all, size_t runs) {
  if (all.size() % runs != 0) {
    throw schema::Error(fmt::format("--runs {}", runs),
                        fmt::format("{} traces are no whole number of them", all.size()));
  }
  std::vector<Side> sides;
  for (size_t i = 0; i < all.size(); i += runs) {
    sides.push_back(medians(std::span(all).subspan(i, runs)));
  }
  return sides;
}

// "128K", as an option takes it, where it is whole.
std::string option_size(int64_t bytes) {
  constexpr const char* kUnits[] = {"", "K", "M", "G"};
  size_t unit = 0;
  while (unit + 1 < std::size(kUnits) && bytes != 0 && bytes % 1024 == 0) {
    bytes /= 1024;
    ++unit;
  }
  return fmt::format("{}{}", bytes, kUnits[unit]);
}

// One setting for a narrow column, "mmap 128K"; a threshold that is fixed needs no word.
std::string short_text(const std::string& name, std::optional<int64_t> value) {
  if (name == "mmap_threshold_dynamic") return value == 0 ? "" : " dynamic";
  const std::string text = setting_text(name, value);
  const std::string shown = text.substr(text.find('=') + 1);
  if (shown.ends_with("-only")) return ", " + shown;
  const bool is_size = value && text.ends_with("B");
  const std::string word = name.ends_with("_threshold") ? name.substr(0, 4) : name;
  return ", " + word + " " + (is_size ? option_size(*value) : shown);
}

// The settings that differ, in the order of interest. Without mappings at all (mmap_max=0) the
// threshold means nothing: that is brk-only, by its usual name.
std::vector<std::string> differing_settings(const std::vector<Side>& sides) {
  std::vector<std::string> differing;
  for (const char* name : {"mmap_threshold", "mmap_threshold_dynamic", "mmap_max", "trim_threshold",
                           "top_pad", "arena_max"}) {
    const auto first = sides.front().settings.at(name);
    if (std::any_of(sides.begin(), sides.end(),
                    [&](const Side& side) { return side.settings.at(name) != first; })) {
      differing.push_back(name);
    }
  }
  return differing;
}

std::string label_of(const Side& side, const std::vector<std::string>& differing) {
  const bool brk_only = side.settings.at("mmap_max") == 0;
  std::string label = brk_only ? ", brk-only" : "";
  for (const std::string& name : differing) {
    // 65,536 mappings are no limit in practice, and 0 is said already.
    if (name == "mmap_max" && (brk_only || side.settings.at(name) == kMmapMaxDefault)) continue;
    if (name.starts_with("mmap_threshold") && brk_only) continue;
    label += short_text(name, side.settings.at(name));
  }
  return label.empty() ? label : label.substr(label[0] == ',' ? 2 : 1);
}

// Where two sides have the same settings, the file's name is added.
void set_labels(std::span<Trace> traces, size_t runs, std::vector<Side>& sides) {
  const std::vector<std::string> differing = differing_settings(sides);
  if (!differing.empty()) {
    for (Side& side : sides) side.label = label_of(side, differing);
  }
  std::vector<std::string> labels;
  for (const Side& side : sides) labels.push_back(side.label);
  for (size_t i = 0; i < sides.size(); ++i) {
    if (std::count(labels.begin(), labels.end(), labels[i]) == 1) continue;
    const std::string file = std::filesystem::path(traces[i * runs].path).filename().string();
    sides[i].label = labels[i].empty() ? file : labels[i] + " (" + file + ")";
  }
}

class FactorColumn {
 public:
  FactorColumn(const std::vector<Side>& sides, int64_t Side::*value) : value_(value) {
    for (const Side& side : sides) best_ = std::min(best_, side.*value);
  }
  Cell of(const Side& side) const {
    // Against nothing at all there is no factor; one of something is shown as it is.
    if (side.*value_ == best_) return 1.0;
    if (best_ <= 0) return {};
    return static_cast<double>(side.*value_) / static_cast<double>(best_);
  }

 private:
  int64_t Side::*value_;
  int64_t best_ = std::numeric_limits<int64_t>::max();
};

Table cost_table(const std::vector<Side>& sides) {
  Table table("", "Time and what it went into (x: times the best)",
              {{"settings", "settings", Unit::kText},
               {"wall_ns", "wall", Unit::kNs},
               {"", "x", Unit::kFactor},
               {"syscalls", "syscalls", Unit::kCount},
               {"syscall_ns", "in syscalls", Unit::kNs},
               {"", "x", Unit::kFactor},
               {"faults", "faults", Unit::kCount},
               {"fault_ns", "est.", Unit::kNs},
               {"", "x", Unit::kFactor}});
  const FactorColumn wall(sides, &Side::wall_ns);
  const FactorColumn syscall(sides, &Side::syscall_ns);
  const FactorColumn fault(sides, &Side::faults);
  for (const Side& side : sides) {
    table.add({side.short_name, side.wall_ns, wall.of(side), side.syscalls, side.syscall_ns,
               syscall.of(side), side.faults, side.fault_ns, fault.of(side)});
  }
  table.limited = false;
  return table;
}

Table memory_table(const std::vector<Side>& sides) {
  Table table("", "Memory",
              {{"settings", "settings", Unit::kText},
               {"held_bytes_peak", "held peak", Unit::kBytes},
               {"", "x", Unit::kFactor},
               {"rss_bytes_peak", "RSS peak", Unit::kBytes},
               {"", "x", Unit::kFactor},
               {"external", "external", Unit::kRatio}});
  const FactorColumn held(sides, &Side::held_bytes_peak);
  const FactorColumn rss(sides, &Side::rss_bytes_peak);
  for (const Side& side : sides) {
    table.add({side.short_name, side.held_bytes_peak, held.of(side), side.rss_bytes_peak,
               rss.of(side), side.external});
  }
  table.limited = false;
  return table;
}

Table call_table(const std::vector<Side>& sides) {
  std::vector<Column> columns = {{"settings", "settings", Unit::kText}};
  for (const char* name : schema::kSyscallNames) columns.push_back({name, name, Unit::kCount});
  Table table("", "System calls of the allocator", std::move(columns));
  for (const Side& side : sides) {
    Row row{side.short_name};
    for (const int64_t count : side.counts) row.push_back(count);
    table.add(std::move(row));
  }
  table.limited = false;
  return table;
}

// Says what the letters mean, if there are any.
std::vector<std::string> set_short_names(std::vector<Side>& sides) {
  const bool fits = std::all_of(sides.begin(), sides.end(), [](const Side& side) {
    return side.label.size() <= kLabelWidthMax;
  });
  std::vector<std::string> legend;
  for (size_t i = 0; i < sides.size(); ++i) {
    // A to Z, then AA: traces are many where a shell expands a pattern.
    std::string letters;
    for (size_t n = i + 1; n > 0; n = (n - 1) / 26) {
      letters.insert(letters.begin(), static_cast<char>('A' + (n - 1) % 26));
    }
    sides[i].short_name = fits ? sides[i].label : letters;
    if (!fits) legend.push_back(fmt::format("  {}  {}", letters, sides[i].label));
  }
  return legend;
}

nlohmann::ordered_json side_json(const Side& side, const std::string& path) {
  nlohmann::ordered_json row;
  row["trace"] = path;
  row["label"] = side.label;
  row["settings"] = settings_json(side.settings);
  for (size_t i = 0; i < side.counts.size(); ++i) row[schema::kSyscallNames[i]] = side.counts[i];
  row["syscall_ns"] = side.syscall_ns;
  row["faults"] = side.faults;
  row["fault_ns"] = side.fault_ns;
  row["held_bytes_peak"] = side.held_bytes_peak;
  row["rss_bytes_peak"] = side.rss_bytes_peak;
  row["external"] = side.external;
  row["wall_ns"] = side.wall_ns;
  return row;
}

// The costliest setting against the cheapest; of each, its first run.
void add_sites(const ReportInput& input, const std::vector<Side>& all,
               const std::vector<Side>& sides, Document& document) {
  if (sides.size() < 2) return;
  const auto costs_less = [](const Side& a, const Side& b) { return a.cost_ns() < b.cost_ns(); };
  const auto [least, most] = std::minmax_element(sides.begin(), sides.end(), costs_less);
  const auto of = [&](std::vector<Side>::const_iterator side) {
    const size_t run = static_cast<size_t>(side - sides.begin()) * input.options.runs;
    return CostSide{&input.traces[run], side->short_name, all[run].cost_ns(),
                    all[run].live_bytes_peak};
  };
  document.json["sites_of"] = {{"more", most->label}, {"less", least->label}};
  document.add_table(site_cost_table(of(most), of(least)));
}

// A recording without addresses has its faults in the sums, but on no stack.
void note_faults_without_stacks(const ReportInput& input, Document& document) {
  for (const Trace& trace : input.traces) {
    if (trace.info.faults_have_addresses()) continue;
    document.notes.push_back(
        trace.path +
        ": recorded without page faults' addresses: they are counted, but are on no stack");
  }
}

}  // namespace

Document run_compare(const ReportInput& input) {
  std::vector<Side> all;
  for (Trace& trace : input.traces) all.push_back(measure(trace));
  const size_t runs = input.options.runs;
  std::vector<Side> sides = fold_runs(all, runs);
  set_labels(input.traces, runs, sides);
  Document document;
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (size_t i = 0; i < sides.size(); ++i) {
    rows.push_back(side_json(sides[i], input.traces[i * runs].path));
  }
  document.json["rows"] = std::move(rows);
  std::vector<std::string> legend = set_short_names(sides);
  if (!legend.empty()) document.sections.push_back({"Settings", std::move(legend), std::nullopt});
  document.add_table(cost_table(sides));
  document.add_table(memory_table(sides));
  document.add_table(call_table(sides));
  add_sites(input, all, sides, document);
  note_faults_without_stacks(input, document);
  add_notes(input, document);
  return document;
}

}  // namespace heapledger::analyzer
