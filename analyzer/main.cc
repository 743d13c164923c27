// SPDX-License-Identifier: Apache-2.0
// heapledger-analyzer: reports over a trace. `heapledger REPORT ...` runs this program.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string_view>

#include "analyzer/advise_command.h"
#include "analyzer/export/export.h"
#include "analyzer/model_command.h"
#include "analyzer/render/render.h"
#include "analyzer/replay_file_command.h"
#include "analyzer/reports/check.h"
#include "analyzer/reports/map_picture.h"
#include "analyzer/reports/moments.h"
#include "analyzer/reports/open_trace.h"
#include "analyzer/reports/report.h"
#include "analyzer/sql_command.h"
#include "analyzer/sweep_command.h"
#include "analyzer/symbols/symbol_files.h"
#include "schema/error.h"

namespace heapledger::analyzer {
namespace {

constexpr int kFailure = 1;
constexpr int kUsage = 2;
constexpr int kLimitPassed = 3;
constexpr size_t kSweepRows = 20;

struct Arguments {
  std::vector<std::string> traces;
  std::string trace;  // Of sql, finalize and model.
  ReportOptions report;
  bool json = false, csv = false, header = false;
  bool map = false;  // Of fragmentation.
  std::string sql;
  std::string layout = "glibc";         // Of model.
  std::array<std::string, kAxes> axes;  // Of sweep.
  std::string output;                   // Of replay-file and export.
  std::string caller;                   // Whose errors these are; empty: the subcommand's.
  std::string format, value = "peak";   // Of export.
  std::vector<std::string> limits;      // Of check.
  std::string baseline;
  std::string sysroot;  // Of finalize.
};

void add_report(CLI::App& app, const Report& report, Arguments& arguments) {
  CLI::App* command = app.add_subcommand(report.name, report.help);
  command->add_option("TRACE", arguments.traces, "trace file, as `heapledger record` made it")
      ->required()
      ->expected(report.trace_count_min(), report.trace_count_max());
  CLI::Option* json = command->add_flag("--json", arguments.json, "JSON: bytes and nanoseconds");
  command->add_flag("--csv", arguments.csv, "CSV")->excludes(json);
  command->add_option("--top", arguments.report.top,
                      fmt::format("rows to show (default: {} as text, else all)", report.top));
  if (report.has_moment) {
    command
        ->add_option("--at", arguments.report.at,
                     "peak, exit, fragmented, or seconds since the start (default: peak and exit)")
        ->check([](const std::string& at) {
          try {
            parse_moments(at);
          } catch (const schema::Error& error) {
            return std::string(error.what());
          }
          return std::string();
        });
  }
  if (report.many_traces && report.trace_count_max() > 2) {
    command
        ->add_option("--runs", arguments.report.runs,
                     "so many traces in a row are one row, with their medians")
        ->check(CLI::PositiveNumber);
  }
  if (report.many_traces) return;
  command->add_option("--process", arguments.report.process, "only the process of this pid");
  command->add_option("--site", arguments.report.site, "only rows whose stack contains this text");
  if (report.name == std::string_view("fragmentation")) {
    command->add_flag("--map", arguments.map,
                      "a picture of the heap: addresses across, time downwards");
  }
  if (report.name == std::string_view("leaks")) {
    command->add_option("--suppressions", arguments.report.suppressions,
                        "file of known leaks, as LeakSanitizer reads it (leak:PATTERN)");
  }
}

void add_sweep(CLI::App& app, Arguments& arguments) {
  CLI::App* command = app.add_subcommand(
      "sweep", "what other settings would have cost: the recorded calls through glibc's allocator");
  command->add_option("TRACE", arguments.trace, "trace file")->required();
  for (size_t i = 0; i < kAxes; ++i) {
    const auto axis = static_cast<Axis>(i);
    command
        ->add_option(axis_option(axis), arguments.axes[i],
                     fmt::format("values to try, with commas between: {}", axis_words(axis)))
        ->check([axis](const std::string& list) {
          try {
            parse_axis(axis, list);
          } catch (const schema::Error& error) {
            return std::string(error.what());
          }
          return std::string();
        });
  }
  CLI::Option* json = command->add_flag("--json", arguments.json, "JSON: bytes and nanoseconds");
  command->add_flag("--csv", arguments.csv, "CSV")->excludes(json);
  command->add_option("--top", arguments.report.top,
                      fmt::format("rows to show (default: {} as text, else all)", kSweepRows));
  command->add_option("--process", arguments.report.process, "the process of this pid");
}

// `top`: rows as text where --top does not say.
void print(Document document, size_t top, const Arguments& arguments) {
  Limits limits{arguments.report.top, arguments.report.site};
  if (!limits.top && !arguments.json && !arguments.csv) limits.top = top;
  document.limit(limits);
  const std::string text = arguments.json  ? render_json(document)
                           : arguments.csv ? render_csv(document)
                                           : render_text(document);
  std::fwrite(text.data(), 1, text.size(), stdout);
}

int run_report(const Report& report, const Arguments& arguments) {
  std::vector<Trace> traces;
  for (const std::string& path : arguments.traces) traces.push_back(open_for_report(path));
  const ReportInput input{traces, arguments.report};
  Document document = report.run(input);
  if (arguments.map) add_heap_map(input, document);
  print(std::move(document), report.top, arguments);
  return 0;
}

void add_export(CLI::App& app, Arguments& arguments) {
  CLI::App* command = app.add_subcommand("export", "the trace for other tools: folded or pprof");
  command->add_option("TRACE", arguments.trace, "trace file")->required();
  command->add_option("--format", arguments.format, "folded (flame graphs) or pprof")
      ->required()
      ->check(CLI::IsMember({"folded", "pprof"}));
  std::vector<std::string> names;
  for (const ExportValue& value : kExportValues) names.emplace_back(value.name);
  command->add_option("--value", arguments.value, "what folded counts (default: peak)")
      ->check(CLI::IsMember(names));
  command->add_option("-o,--output", arguments.output, "file to write; - is standard output")
      ->required();
  command->add_option("--process", arguments.report.process, "only the process of this pid");
}

int run_export(const Arguments& arguments) {
  Trace trace = open_for_report(arguments.trace);
  const ReportInput input{{&trace, 1}, arguments.report};
  write_export(arguments.output, arguments.format == "pprof"
                                     ? export_pprof(input)
                                     : export_folded(input, export_value_index(arguments.value)));
  return 0;
}

void add_check(CLI::App& app, Arguments& arguments) {
  CLI::App* command =
      app.add_subcommand("check", "limits for CI: exit 3 and a line for each that is passed");
  command->add_option("TRACE", arguments.trace, "trace file")->required();
  command
      ->add_option("--max", arguments.limits,
                   "NAME=NUMBER: a number of summary --json, as live_bytes_end=1M or "
                   "faults.minor=2000; NAME=+5% or +4M: growth against the baseline")
      ->required()
      ->expected(1, 1000);
  command->add_option("--baseline", arguments.baseline, "trace to measure growth against");
  command->add_option("--process", arguments.report.process, "only the process of this pid");
}

int run_check(const Arguments& arguments) {
  std::vector<CheckLimit> limits;
  for (const std::string& text : arguments.limits) limits.push_back(parse_limit(text));
  const Report& summary = *find_report("summary");
  const auto numbers = [&](const std::string& path) {
    Trace trace = open_for_report(path);
    return summary.run({{&trace, 1}, arguments.report}).json;
  };
  const nlohmann::ordered_json now = numbers(arguments.trace);
  nlohmann::ordered_json before;
  if (!arguments.baseline.empty()) before = numbers(arguments.baseline);
  const std::vector<std::string> passed =
      check_limits(limits, now, arguments.baseline.empty() ? nullptr : &before);
  for (const std::string& line : passed) fmt::print("{}\n", line);
  return passed.empty() ? 0 : kLimitPassed;
}

int run_sweep_command(const Arguments& arguments) {
  Trace trace = open_for_report(arguments.trace);
  print(run_sweep(trace, arguments.axes, arguments.report), kSweepRows, arguments);
  return 0;
}

int run_command(const CLI::App& app, const Arguments& arguments) {
  const std::string name = app.get_subcommands().front()->get_name();
  if (const Report* report = find_report(name)) return run_report(*report, arguments);
  if (name == "sql") {
    const SqlFormat format = arguments.json  ? SqlFormat::kJson
                             : arguments.csv ? SqlFormat::kCsv
                                             : SqlFormat::kList;
    run_sql(arguments.trace, arguments.sql, format, arguments.header, stdout);
    return 0;
  }
  if (name == "advise") {
    Trace trace = open_for_report(arguments.trace);
    print(run_advise(trace, arguments.report), 0, arguments);
    return 0;
  }
  if (name == "replay-file") {
    run_replay_file(arguments.trace, arguments.output, arguments.report.process, stdout);
    return 0;
  }
  if (name == "sweep") return run_sweep_command(arguments);
  if (name == "export") return run_export(arguments);
  if (name == "check") return run_check(arguments);
  if (name == "model") {
    run_model(arguments.trace, arguments.layout, arguments.report.process, stdout);
    return 0;
  }
  finalize_file(arguments.trace, {.sysroot = arguments.sysroot});
  return 0;
}

int run(int argc, char** argv) {
  CLI::App app("heapledger-analyzer: reports over a heapledger trace");
  app.require_subcommand(1);
  Arguments arguments;
  app.add_option("--as", arguments.caller, "the command that errors are said to be of")->group("");
  for (const Report& report : reports()) add_report(app, report, arguments);
  add_sweep(app, arguments);
  add_export(app, arguments);
  add_check(app, arguments);
  CLI::App* advise =
      app.add_subcommand("advise", "the settings worth having, with what each gains and costs");
  advise->add_option("TRACE", arguments.trace, "trace file")->required();
  advise->add_flag("--json", arguments.json, "JSON: bytes and nanoseconds");
  advise->add_option("--process", arguments.report.process, "the process of this pid");
  CLI::App* sql = app.add_subcommand(
      "sql", "a query over the trace's tables, with `event` and `fault`; read-only");
  sql->add_option("TRACE", arguments.trace, "trace file")->required();
  sql->add_option("QUERY", arguments.sql, "SQL; see schema.sql for the tables")->required();
  CLI::Option* json = sql->add_flag("--json", arguments.json, "an array of objects");
  sql->add_flag("--csv", arguments.csv, "CSV with a header")->excludes(json);
  sql->add_flag("--header", arguments.header, "names of the columns first");
  CLI::App* finalize = app.add_subcommand(
      "finalize", "fill the trace's aggregate tables (every report does it where needed)");
  finalize->add_option("TRACE", arguments.trace, "trace file")->required();
  CLI::App* replay =
      app.add_subcommand("replay-file", "the calls for heapledger-replayer")->group("");
  replay->add_option("TRACE", arguments.trace, "trace file")->required();
  replay->add_option("--output", arguments.output, "file to write")->required();
  replay->add_option("--process", arguments.report.process, "the process of this pid");
  finalize->add_option("--sysroot", arguments.sysroot,
                       "folder to look for the program's files in; names what has no name yet");
  CLI::App* model = app.add_subcommand("model", "a model's system calls, for tools")->group("");
  model->add_option("TRACE", arguments.trace, "trace file")->required();
  model->add_option("--layout", arguments.layout, "glibc or header16")
      ->check(CLI::IsMember({"glibc", "header16"}));
  model->add_option("--process", arguments.report.process, "row of table process");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help
    const auto commands = app.get_subcommands();
    fmt::print(stderr, "heapledger: {}{}\n",
               commands.empty() ? "" : commands.front()->get_name() + ": ", error.what());
    return kUsage;
  }
  try {
    const int status = run_command(app, arguments);
    if (std::fflush(stdout) != 0) {
      throw std::runtime_error(fmt::format("cannot write the report: {}", std::strerror(errno)));
    }
    return status;
  } catch (const std::exception& error) {
    std::fflush(stdout);
    fmt::print(
        stderr, "heapledger: {}: {}\n",
        arguments.caller.empty() ? app.get_subcommands().front()->get_name() : arguments.caller,
        error.what());
    return kFailure;
  }
}

}  // namespace
}  // namespace heapledger::analyzer

int main(int argc, char** argv) {
  using heapledger::analyzer::kServersVariable;
  // libdw would ask the network for debug information; we do, with a limit.
  if (const char* servers = std::getenv("DEBUGINFOD_URLS")) setenv(kServersVariable, servers, 1);
  unsetenv("DEBUGINFOD_URLS");
  try {
    return heapledger::analyzer::run(argc, argv);
  } catch (const std::exception& error) {  // Of memory, or of the option parser's own set-up.
    std::fprintf(stderr, "heapledger: %s\n", error.what());
    return heapledger::analyzer::kFailure;
  }
}
