// SPDX-License-Identifier: Apache-2.0
#include "tools/heapledger/verify.h"

#include <fmt/format.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "tools/heapledger/child.h"
#include "tools/heapledger/command_error.h"
#include "tools/heapledger/command_line.h"
#include "tools/heapledger/companions.h"
#include "tools/heapledger/counted_run.h"
#include "tools/heapledger/descriptor.h"
#include "tools/heapledger/malloc_environment.h"
#include "tools/heapledger/signals.h"

namespace heapledger::front {

namespace {

using Json = nlohmann::ordered_json;
using Words = std::vector<std::string>;

constexpr int kRunsMax = 1000;
// The price of a page fault is taken from the runs under the current settings where the heap's
// calls and faults are so much of their time in the kernel, and within these bounds of the
// recording's estimate.
constexpr double kKernelShareMin = 0.5;
constexpr double kPriceLow = 0.5, kPriceHigh = 4;
// Of a program that waits less often than that per second of its processor time, what the clock
// shows beyond it is others' doing.
constexpr double kWaitsMax = 100;

struct Plan {
  std::string trace;
  std::string goal = "both";
  int runs = 5;
  bool json = false;
  bool quiet = false;
};

struct Spread {
  double median = 0;
  double low = 0, high = 0;

  static Spread of(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const size_t middle = values.size() / 2;
    const double median =
        values.size() % 2 != 0 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
    return {median, values.front(), values.back()};
  }
};

struct Side {
  std::string label;
  Words environment;
  std::vector<PlainRun> runs;
  std::vector<CountedRun> counted;
  CountedRun traced;

  template <class Field>
  Spread spread(Field field) const {
    std::vector<double> values;
    for (const PlainRun& run : runs) values.push_back(static_cast<double>(run.*field));
    return Spread::of(std::move(values));
  }
  Spread calls() const {
    std::vector<double> values;
    for (const CountedRun& run : counted) values.push_back(static_cast<double>(run.total()));
    return Spread::of(std::move(values));
  }
  // The last run made the calls that the one before did.
  bool repeats() const {
    return counted.size() > 1 && counted.back().calls == counted[counted.size() - 2].calls;
  }
};

// One line: a figure of both sides, and what the advised side's should be. Faults and RSS are
// predicted as they are; times and system calls, of which others have a part, by their change.
struct Figure {
  const char* name;
  const char* key;
  enum Kind { kTime, kCount, kBytes } kind;
  Spread now, advised;
  double predicted;

  // Of the prediction against what was measured. What is left of a time may be next to nothing: its
  // error is a share of the time now, of which most is predicted to go.
  double error() const {
    const double whole = kind == kTime ? now.median : advised.median;
    return whole == 0 ? 0 : (predicted - advised.median) / whole;
  }
};

std::string amount(Figure::Kind kind, double value) {
  if (kind == Figure::kTime) {
    return value >= 1e9   ? fmt::format("{:.2f} s", value / 1e9)
           : value >= 1e6 ? fmt::format("{:.1f} ms", value / 1e6)
                          : fmt::format("{:.0f} us", value / 1e3);
  }
  if (kind == Figure::kBytes) return fmt::format("{:.1f} MiB", value / (1 << 20));
  return fmt::format("{:.0f}", value);
}

// A program that fails may not have done the work; its runs say nothing.
void check(const std::string& program, int status, const std::string& label) {
  if (WIFSIGNALED(status)) {
    throw CommandError(program, fmt::format("killed by signal {} ({}) under {}", WTERMSIG(status),
                                            strsignal(WTERMSIG(status)), label));
  }
  if (WEXITSTATUS(status) != 0) {
    throw CommandError(program,
                       fmt::format("ended with status {} under {}", WEXITSTATUS(status), label));
  }
}

class Verification {
 public:
  Verification(const Plan& plan, Words program, const Json& advice, const Json& choice)
      : plan_(plan),
        program_(std::move(program)),
        advice_(advice),
        choice_(choice),
        now_{label(advice["settings"]), malloc_environment(advice["settings"]), {}, {}, {}},
        advised_{label(choice["tunables"]), malloc_environment(choice["tunables"]), {}, {}, {}} {}

  void run() {
    // Round by round, so that a machine that grows slower or faster does so for both.
    for (int round = 0; round < plan_.runs; ++round) {
      for (Side* side : {&now_, &advised_}) {
        tell(fmt::format("run {} of {}, {}", round + 1, plan_.runs, side->label));
        const bool first = round == 0 && side == &now_;
        side->runs.push_back(run_plain(program_, side->environment, {false, first}));
        check(program_[0], side->runs.back().status, side->label);
      }
    }
    count_undisturbed();
    for (Side* side : {&now_, &advised_}) {
      tell((is_traced() ? "counting system calls, " : "looking at RSS, ") + side->label);
      side->traced = run_traced(program_, side->environment);
      check(program_[0], side->traced.status, side->label);
      if (is_traced()) side->counted = {side->traced};
    }
  }

  std::vector<Figure> figures() const {
    const auto number = [this](const Json& from, const char* key) {
      return from[key].template get<double>();
    };
    const auto once = [](uint64_t value) {
      return Spread{static_cast<double>(value), static_cast<double>(value),
                    static_cast<double>(value)};
    };
    const auto of_runs = [&](const char* name, const char* key, Figure::Kind kind, auto field) {
      return Figure{name, key, kind, now_.spread(field), advised_.spread(field), 0};
    };
    const double gain_ns = number(advice_, "syscall_ns") - number(choice_, "syscall_ns") +
                           (number(advice_, "faults") - number(choice_, "faults")) * ns_per_fault();
    const auto time_of = [&](const char* name, const char* key, auto field, double gain) {
      Figure figure = of_runs(name, key, Figure::kTime, field);
      figure.predicted = std::max(0.0, figure.now.median - gain);
      return figure;
    };
    const Figure wall =
        time_of("wall time", "wall_ns", &PlainRun::wall_ns, gain_ns * clock_per_processor());
    const Figure cpu = time_of("processor time", "cpu_ns", &PlainRun::cpu_ns, gain_ns);
    const Figure kernel = time_of("of it in kernel", "kernel_ns", &PlainRun::kernel_ns, gain_ns);
    Figure faults = of_runs("page faults", "faults", Figure::kCount, &PlainRun::minor_faults);
    faults.predicted = number(choice_, "faults");
    const Spread calls = now_.calls();
    std::vector<Figure> figures = {
        wall,
        cpu,
        kernel,
        faults,
        {"system calls", "syscalls", Figure::kCount, calls, advised_.calls(),
         calls.median + number(choice_, "syscalls") - number(advice_, "syscalls")}};
    if (now_.traced.rss_peak_bytes != 0 && advised_.traced.rss_peak_bytes != 0) {
      figures.push_back({"peak RSS", "rss_bytes_peak", Figure::kBytes,
                         once(now_.traced.rss_peak_bytes), once(advised_.traced.rss_peak_bytes),
                         number(choice_, "rss_bytes_peak")});
    }
    return figures;
  }

  std::string text() const {
    std::string text = fmt::format(
        "now:     {}\nadvised: {}\n{} runs each, by turns, medians; without heapledger.\n{}\n\n"
        "{:<16}{:>12}{:>8}{:>12}{:>8}{:>14}{:>10}\n",
        now_.label, advised_.label, plan_.runs, counting_text(), "", "now", "+-", "advised", "+-",
        "predicted", "error");
    for (const Figure& figure : figures()) {
      text += fmt::format("{:<16}{:>12}{:>8}{:>12}{:>8}{:>14}{:>10}\n", figure.name,
                          amount(figure.kind, figure.now.median), noise(figure.now),
                          amount(figure.kind, figure.advised.median), noise(figure.advised),
                          amount(figure.kind, figure.predicted),
                          fmt::format("{:+.1f} %", figure.error() * 100));
    }
    text += "\n" + price_text() + "\n" + verdict() + "\n";
    for (const std::string& doubt : doubts()) text += "note: " + doubt + "\n";
    return text;
  }

  Json json() const {
    Json rows = Json::array();
    for (const Figure& figure : figures()) {
      Json row = {{"name", figure.key},
                  {"now", figure.now.median},
                  {"now_low", figure.now.low},
                  {"now_high", figure.now.high},
                  {"advised", figure.advised.median},
                  {"advised_low", figure.advised.low},
                  {"advised_high", figure.advised.high},
                  {"predicted", figure.predicted},
                  {"error", figure.error()}};
      rows.push_back(std::move(row));
    }
    return {{"runs", plan_.runs},
            {"calls_counted_by", is_traced() ? "ptrace" : "tracepoints"},
            {"calls_counted_runs", now_.counted.size()},
            {"now", now_.label},
            {"advised", advised_.label},
            {"rows", std::move(rows)},
            {"ns_per_fault", ns_per_fault()},
            {"ns_per_fault_recorded", advice_["ns_per_fault"]},
            {"doubts", doubts()},
            {"verdict", verdict()}};
  }

 private:
  static std::string label(const std::string& tunables) {
    return tunables.empty() ? "glibc's defaults" : "GLIBC_TUNABLES=" + tunables;
  }
  static std::string noise(const Spread& spread) {
    if (spread.low == spread.high || spread.median == 0) return "";
    return fmt::format("{:.0f} %", (spread.high - spread.low) / 2 / spread.median * 100);
  }
  void tell(const std::string& what) const {
    if (!plan_.quiet) write_all(STDERR_FILENO, "heapledger: verify: " + what + "\n");
  }
  Words doubts() const { return advice_["doubts"].get<Words>(); }

  // By turns, until both sides repeat themselves: threads meet anew each time.
  void count_undisturbed() {
    for (int round = 0; round < std::max(2, plan_.runs); ++round) {
      for (Side* side : {&now_, &advised_}) {
        tell("counting system calls, " + side->label);
        const auto run = run_undisturbed(program_, side->environment, why_traced_);
        if (!run) return;
        check(program_[0], run->status, side->label);
        side->counted.push_back(*run);
      }
      if (now_.repeats() && advised_.repeats()) return;
    }
  }
  bool is_traced() const { return !why_traced_.empty(); }
  std::string counting_text() const {
    if (is_traced()) {
      return fmt::format("System calls and peak RSS under ptrace, 1 run each (no tracepoints: {}).",
                         why_traced_);
    }
    return fmt::format(
        "System calls by the kernel's tracepoints, {} runs each; peak RSS under "
        "ptrace, 1 run each.",
        now_.counted.size());
  }

  // The estimate is of a page touched for the first time, alone. What one costs this program, with
  // what its neighbours on the machine take, the runs under the current settings tell, if they
  // spend their time in the kernel on the heap.
  double ns_per_fault() const {
    const auto estimate = advice_["ns_per_fault"].get<double>();
    const auto syscall_ns = advice_["syscall_ns"].get<double>();
    const double heap_ns = syscall_ns + advice_["fault_ns"].get<double>();
    const double kernel_ns = now_.spread(&PlainRun::kernel_ns).median;
    const double faults = now_.spread(&PlainRun::minor_faults).median;
    if (faults == 0 || heap_ns < kKernelShareMin * kernel_ns) return estimate;
    return std::clamp((kernel_ns - syscall_ns) / faults, kPriceLow * estimate,
                      kPriceHigh * estimate);
  }
  // How much the clock goes on per processor time: 1, unless others keep the program from it.
  double clock_per_processor() const {
    const double cpu_ns = now_.spread(&PlainRun::cpu_ns).median;
    const double waits = now_.spread(&PlainRun::waits).median;
    if (cpu_ns == 0 || waits > kWaitsMax * cpu_ns / 1e9 + 1) return 1;
    return std::max(1.0, now_.spread(&PlainRun::wall_ns).median / cpu_ns);
  }
  std::string price_text() const {
    const auto estimate = advice_["ns_per_fault"].get<double>();
    const double used = ns_per_fault();
    if (used == estimate) {
      return fmt::format(
          "Times are predicted with {:.2f} us per page fault, an estimate; their errors are shares "
          "of the\ntime now.",
          estimate / 1e3);
    }
    return fmt::format(
        "Times are predicted with {:.2f} us per page fault, what the runs under the current "
        "settings spent\nin the kernel (estimate of the recording: {:.2f} us); their errors are "
        "shares of the time now.",
        used / 1e3, estimate / 1e3);
  }
  // A difference counts where the two ranges of times do not meet.
  std::string verdict() const {
    const Spread now = now_.spread(&PlainRun::wall_ns);
    const Spread advised = advised_.spread(&PlainRun::wall_ns);
    const double factor = now.median / std::max(1.0, advised.median);
    if (advised.high < now.low) {
      return fmt::format("The advised settings are faster: {:.2f} times.", factor);
    }
    if (advised.low > now.high) {
      return fmt::format("The advised settings are slower: {:.2f} times.", 1 / factor);
    }
    return "The times do not differ by more than the runs do among themselves.";
  }

  const Plan& plan_;
  Words program_;
  const Json& advice_;
  const Json& choice_;
  Side now_;
  Side advised_;
  std::string why_traced_;  // Not empty: tracepoints may not be used.
};

int verify(const Plan& plan, const Words& program) {
  const Json advice =
      Json::parse(output_of({find_analyzer(), "--as", "verify", "advise", "--json", plan.trace}));
  const Json& choices = advice["choices"];
  const auto choice = std::find_if(choices.begin(), choices.end(),
                                   [&](const Json& row) { return row["goal"] == plan.goal; });
  if (choice == choices.end()) throw CommandError(plan.trace, "no advice for " + plan.goal);
  if (!(*choice)["worth_it"].get<bool>()) {
    fmt::print("No setting is advised for {}: there is nothing to verify.\n", plan.goal);
    return 0;
  }
  Verification verification(plan, program, advice, *choice);
  verification.run();
  fmt::print("{}", plan.json ? verification.json().dump(2) + "\n" : verification.text());
  return 0;
}

}  // namespace

int run_verify(const Words& arguments) {
  Plan plan;
  CLI::App app("Run PROGRAM under the recorded and the advised settings, on the system's malloc.",
               "heapledger verify");
  set_usage(app, "Usage: heapledger verify [OPTIONS] TRACE -- PROGRAM [ARGUMENTS...]");
  app.footer(
      "The program's output is dropped (its stderr shown on the first run); its input is empty, "
      "or\nread anew by every run where it is a file. Times and faults are of runs with nobody "
      "beside them;\nsystem calls of further ones, counted by the kernel's tracepoints, until two "
      "agree; peak RSS (by\nthe page tables) of one more under ptrace, which counts the calls as "
      "well where tracepoints may not\nbe used (heapledger doctor says why).");
  app.add_option("TRACE", plan.trace, "a recording of the same work")->required();
  app.add_option("--goal", plan.goal, "which advice: time, memory or both (default: both)")
      ->check(CLI::IsMember({"time", "memory", "both"}));
  app.add_option("--runs", plan.runs, "timed runs of each (default: 5)")
      ->check(CLI::Range(1, kRunsMax));
  app.add_flag("--json", plan.json, "for programs");
  app.add_flag("--quiet", plan.quiet, "no line per run on stderr");
  const auto cut = std::find(arguments.begin(), arguments.end(), "--");
  if (!parse_options(app, Words(arguments.begin(), cut))) return 0;
  if (cut == arguments.end() || cut + 1 == arguments.end()) {
    throw CommandError("PROGRAM", "missing after --; try --help", kUsage);
  }
  return verify(plan, Words(cut + 1, arguments.end()));
}

}  // namespace heapledger::front
