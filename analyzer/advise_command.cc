// SPDX-License-Identifier: Apache-2.0
#include "analyzer/advise_command.h"

#include <fmt/format.h>

#include "analyzer/finalize/fault_cost.h"
#include "analyzer/render/units.h"
#include "analyzer/sweep_command.h"
#include "analyzer/whatif/advice.h"
#include "schema/error.h"

namespace heapledger::analyzer {

namespace {

using Json = nlohmann::ordered_json;

std::string part(double value, double whole) {
  return fmt::format("{:.1f} %", whole > 0 ? 100 * value / whole : 0.0);
}

// "352 ms less (33.1 % of the run)"
std::string change_text(double gain, const std::string& amount, const std::string& share) {
  return fmt::format("{} {} ({})", amount, gain >= 0 ? "less" : "more", share);
}

std::string cost_text(const SweepRow& row) {
  return fmt::format("{} in {}, about {} in {}", human_ns(static_cast<int64_t>(row.syscall_ns)),
                     counted(static_cast<int64_t>(row.call_count()), "system call"),
                     human_ns(static_cast<int64_t>(row.fault_ns)),
                     counted(static_cast<int64_t>(row.faults), "page fault"));
}

class AdviceText {
 public:
  explicit AdviceText(const Advice& advice) : advice_(advice) {}

  Document document() const {
    Document document;
    document.sections.push_back({"", now(), std::nullopt});
    Json choices = Json::array();
    for (size_t i = 0; i < advice_.choices.size(); ++i) {
      document.sections.push_back({heading(advice_.choices[i]), lines(i), std::nullopt});
      choices.push_back(json(advice_.choices[i]));
    }
    document.json["settings"] = advice_.recorded.choice.tunables_text();
    document.json["run_ns"] = advice_.run_ns;
    document.json["ns_per_fault"] = advice_.sweep.ns_per_fault;
    document.json["syscall_ns"] = static_cast<int64_t>(advice_.recorded.syscall_ns);
    document.json["fault_ns"] = static_cast<int64_t>(advice_.recorded.fault_ns);
    document.json["faults"] = advice_.recorded.faults + advice_.sweep.other_faults;
    document.json["syscalls"] = advice_.recorded.call_count();
    document.json["rss_bytes_peak"] = advice_.rss_bytes_peak;
    document.json["choices"] = std::move(choices);
    document.json["warnings"] = advice_.warnings;
    document.notes = advice_.warnings;
    return document;
  }

 private:
  std::vector<std::string> now() const {
    const SweepRow& row = advice_.recorded;
    return {
        fmt::format("Now ({}): {}", row.choice.label, cost_text(row)),
        fmt::format("of {} recorded; peak RSS {} of which {} are heap.", human_ns(advice_.run_ns),
                    human_bytes(static_cast<int64_t>(advice_.rss_bytes_peak)),
                    human_bytes(static_cast<int64_t>(row.resident_bytes_peak)))};
  }

  static std::string heading(const Choice& choice) {
    const char* for_what = choice.goal == Goal::kTime     ? "For time"
                           : choice.goal == Goal::kMemory ? "For memory"
                                                          : "For both";
    return fmt::format("{}: {}", for_what,
                       choice.is_worth_it ? choice.row.choice.label : "leave it as it is");
  }

  std::vector<std::string> lines(size_t number) const {
    const Choice& choice = advice_.choices[number];
    if (!choice.is_worth_it) {
      return {"no setting that was tried gains more than runs differ by (1 %)"};
    }
    for (size_t i = 0; i < number; ++i) {
      const Choice& other = advice_.choices[i];
      if (other.is_worth_it && other.row.choice.label == choice.row.choice.label) {
        return {fmt::format("the same as for {}", goal_name(other.goal))};
      }
    }
    const auto run = static_cast<double>(advice_.run_ns);
    const auto rss = static_cast<double>(advice_.rss_bytes_peak);
    const double gain_ns = choice.gain_ns;
    const auto gain_bytes = static_cast<double>(choice.gain_bytes);
    std::vector<std::string> lines = {
        fmt::format("time {}, peak RSS {}",
                    change_text(gain_ns, human_ns(static_cast<int64_t>(std::abs(gain_ns))),
                                part(std::abs(gain_ns), run) + " of the run"),
                    change_text(gain_bytes, human_bytes(std::abs(choice.gain_bytes)),
                                part(std::abs(gain_bytes), rss))),
        "then " + cost_text(choice.row),
        choice.row.choice.tunables.empty() ? "unset them all: glibc's defaults"
                                           : "GLIBC_TUNABLES=" + choice.row.choice.tunables_text()};
    for (std::string& call : mallopt_calls(choice.row.choice)) lines.push_back(std::move(call));
    return lines;
  }

  Json json(const Choice& choice) const {
    Json json;
    json["goal"] = goal_name(choice.goal);
    json["worth_it"] = choice.is_worth_it;
    json["label"] = choice.row.choice.label;
    json["tunables"] = choice.row.choice.tunables_text();
    json["mallopt"] = mallopt_calls(choice.row.choice);
    json["gain_ns"] = static_cast<int64_t>(choice.gain_ns);
    json["gain_bytes"] = choice.gain_bytes;
    json["syscalls"] = choice.row.call_count();
    json["syscall_ns"] = static_cast<int64_t>(choice.row.syscall_ns);
    json["faults"] = choice.row.faults + advice_.sweep.other_faults;
    json["fault_ns"] = static_cast<int64_t>(choice.row.fault_ns);
    json["rss_bytes_peak"] = choice.row.rss_bytes_peak;
    add_ranges(choice.row, json);
    return json;
  }

  const Advice& advice_;
};

}  // namespace

Document run_advise(Trace& trace, const ReportOptions& options) {
  const ReportInput input{{&trace, 1}, options};
  const ProcessInfo& process = main_process(input);
  SweepProgress progress("advise");
  SweepOptions sweep_options;
  sweep_options.progress = [&](double done) { progress.tell(done); };
  const Advice advice =
      advise(trace.db, trace.info, process, fault_cost_ns(trace.db), sweep_options);
  if (advice.sweep.operations == 0) {
    throw schema::Error(trace.path, "it has no recorded calls to advise on");
  }
  Document document = AdviceText(advice).document();
  for (std::string& note : sweep_notes(advice.sweep)) document.notes.push_back(std::move(note));
  // Why the recording may not be the whole truth: for whoever uses the figures elsewhere, too.
  Document trace_notes;
  add_notes(input, trace_notes);
  std::vector<std::string> doubts = trace_notes.notes;
  if (!advice.sweep.touches_known) doubts.push_back(touches_unknown_note());
  doubts.insert(doubts.end(), advice.luck.begin(), advice.luck.end());
  document.json["doubts"] = doubts;
  for (std::string& note : trace_notes.notes) document.notes.push_back(std::move(note));
  return document;
}

}  // namespace heapledger::analyzer
