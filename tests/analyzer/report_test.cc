// SPDX-License-Identifier: Apache-2.0
// Reports over sample traces: expected text in golden/ (UPDATE_GOLDEN=1 rewrites it), totals that
// add up, promised JSON keys, and what happens to damaged, unfinished and read-only traces.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <functional>
#include <sstream>

#include "analyzer/export/export.h"
#include "analyzer/finalize/finalize.h"
#include "analyzer/render/render.h"
#include "analyzer/reports/check.h"
#include "analyzer/reports/map_picture.h"
#include "analyzer/reports/suppressions.h"
#include "schema/error.h"
#include "tests/analyzer/analyzer_fixture.h"

namespace heapledger::analyzer {
namespace {

Document run(const Report& report, std::span<Trace> traces, const ReportOptions& options = {}) {
  return report.run({traces, options});
}

nlohmann::ordered_json json_of(const char* report, Trace& trace,
                               const ReportOptions& options = {}) {
  Document document = run(*find_report(report), {&trace, 1}, options);
  document.limit({options.top, options.site});
  return nlohmann::ordered_json::parse(render_json(document));
}

struct GoldenCase {
  const char* report;
  const char* trace;
  bool map = false;

  std::string name() const { return fmt::format("{}_{}{}", report, trace, map ? "_map" : ""); }
};

void expect_to_fit(const std::string& text) {
  for (std::istringstream lines(text); !lines.eof();) {
    std::string line;
    std::getline(lines, line);
    EXPECT_LE(line.size(), kTextWidth) << line;
  }
}

class Golden : public AnalyzerTest, public ::testing::WithParamInterface<GoldenCase> {};

// Goal: what people read changes only on purpose. Method: text of each report over a sample trace
// against a file.
TEST_P(Golden, TextIsAsExpected) {
  const char* const sample = GetParam().trace;
  const Report& report = *find_report(GetParam().report);
  std::vector<Trace> traces;
  traces.push_back(open(sample_trace(sample)));
  if (report.many_traces) {
    TraceBuilder other = sample_trace(sample);
    other.set("mmap_threshold", 32 << 20);
    traces.push_back(open(other, "other.db"));
  }
  Document document = run(report, traces);
  const ReportOptions options;
  if (GetParam().map) add_heap_map({traces, options}, document);
  document.limit({report.top, ""});
  const std::string text = render_text(document);
  expect_to_fit(text);
  const std::string path = fmt::format("{}/{}.txt", HL_GOLDEN_DIR, GetParam().name());
  if (std::getenv("UPDATE_GOLDEN") != nullptr) {
    std::ofstream(path) << text;
    return;
  }
  std::ifstream file(path);
  ASSERT_TRUE(file) << path << " is missing; UPDATE_GOLDEN=1 writes it";
  std::stringstream expected;
  expected << file.rdbuf();
  EXPECT_EQ(expected.str(), text);
}

INSTANTIATE_TEST_SUITE_P(
    Reports, Golden,
    ::testing::Values(GoldenCase{"summary", "pinned"}, GoldenCase{"summary", "churn"},
                      GoldenCase{"summary", "refault"}, GoldenCase{"summary", "leak"},
                      GoldenCase{"summary", "family"}, GoldenCase{"summary", "only_start"},
                      GoldenCase{"summary", "by_snapshot"}, GoldenCase{"summary", "lossy"},
                      GoldenCase{"fragmentation", "pinned"}, GoldenCase{"syscalls", "leak"},
                      GoldenCase{"faults", "refault"}, GoldenCase{"faults", "by_snapshot"},
                      GoldenCase{"leaks", "leak"}, GoldenCase{"peak", "leak"},
                      GoldenCase{"hotspots", "leak"}, GoldenCase{"temporary", "churn"},
                      GoldenCase{"lifetimes", "leak"}, GoldenCase{"sizes", "leak"},
                      GoldenCase{"threads", "leak"}, GoldenCase{"timeline", "leak"},
                      GoldenCase{"diff", "leak"}, GoldenCase{"hotspots", "family"},
                      GoldenCase{"ledger", "pinned"}, GoldenCase{"ledger", "by_snapshot"},
                      GoldenCase{"layout", "leak"}, GoldenCase{"compare", "churn"},
                      GoldenCase{"fragmentation", "pinned", true}, GoldenCase{"threads", "arenas"},
                      GoldenCase{"summary", "arenas"}),
    [](const auto& param) { return param.param.name(); });

// Goal: no report without a golden text. Method: a file of each report's name.
TEST(GoldenFiles, EveryReportHasOne) {
  for (const Report& report : reports()) {
    bool found = false;
    for (const auto& entry : std::filesystem::directory_iterator(HL_GOLDEN_DIR)) {
      found |= entry.path().filename().string().starts_with(std::string(report.name) + "_");
    }
    EXPECT_TRUE(found) << report.name;
  }
}

class Totals : public AnalyzerTest, public ::testing::WithParamInterface<const char*> {};

// Goal: rows + others = TOTAL = the trace's own total, whatever is shown. Method: every report over
// a trace, limited to no row, one row and all; sums made here.
TEST_P(Totals, RowsAndOthersAreTheTotal) {
  Trace trace = open(sample_trace(GetParam()));
  for (const Report& report : reports()) {
    if (report.traces_exactly == 2) continue;  // DiffTest.
    for (const std::optional<size_t> top :
         {std::optional<size_t>(0), std::optional<size_t>(1), std::optional<size_t>()}) {
      Document document = run(report, {&trace, 1});
      document.limit({top, ""});
      for (const Section& section : document.sections) {
        if (!section.table || section.table->total.empty()) continue;
        const Table& table = *section.table;
        const bool by_getrusage = std::string(GetParam()) == "by_snapshot";
        EXPECT_TRUE(table.not_attributed.empty() || by_getrusage) << report.name << table.title;
        for (size_t i = 0; i < table.columns.size(); ++i) {
          if (!table.columns[i].sum) continue;
          int64_t sum = 0;
          for (const Row& row : table.rows) {
            if (const auto* value = std::get_if<int64_t>(&row[i])) sum += *value;
          }
          if (!table.others.empty()) sum += std::get<int64_t>(table.others[i]);
          if (!table.not_attributed.empty()) {
            if (const auto* value = std::get_if<int64_t>(&table.not_attributed[i])) sum += *value;
          }
          EXPECT_EQ(std::get<int64_t>(table.total[i]), sum)
              << report.name << ": " << table.columns[i].key;
        }
      }
      expect_to_fit(render_text(document));
      render_json(document);
      render_csv(document);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Samples, Totals,
                         ::testing::Values("only_start", "pinned", "churn", "refault", "leak",
                                           "family", "by_snapshot", "lossy", "arenas", "wide"),
                         [](const auto& param) { return std::string(param.param); });

class ReportTest : public AnalyzerTest {};

// Goal: scripts may rely on the keys. Method: presence in summary and the rest, and some values
// that the sample trace plants.
TEST_F(ReportTest, JsonHasThePromisedKeys) {
  Trace trace = open(sample_trace("leak"));
  const auto summary = json_of("summary", trace);
  for (const char* key :
       {"process", "calls", "bytes_requested", "blocks_allocated", "live_bytes_peak",
        "live_bytes_peak_ns", "live_bytes_end", "live_blocks_end", "syscalls", "faults",
        "rss_peak_bytes", "heap_held_bytes_peak", "events", "fidelity", "settings", "findings"}) {
    EXPECT_TRUE(summary.contains(key)) << key;
  }
  for (const char* key : {"glibc_held_bytes_peak", "glibc_brk", "glibc_mmap", "glibc_munmap",
                          "glibc_mremap", "glibc_madvise", "glibc_mprotect"}) {
    EXPECT_TRUE(summary["fidelity"].contains(key)) << key;
  }
  EXPECT_GE(summary["fidelity"]["glibc_brk"], 2);
  EXPECT_EQ(401, summary["calls"]["malloc"]);
  EXPECT_EQ(400, summary["calls"]["calloc"]);
  EXPECT_EQ(134, summary["calls"]["realloc"]);
  EXPECT_EQ(400, summary["calls"]["free"]);
  EXPECT_EQ(400000, summary["live_bytes_end"]);
  EXPECT_EQ(400, summary["live_blocks_end"]);
  EXPECT_EQ(1, summary["syscalls"]["brk"]["allocator"]["count"]);
  EXPECT_EQ(1, summary["syscalls"]["mmap"]["program"]["count"]);
  EXPECT_EQ("growth", summary["findings"][0]["kind"]);
  EXPECT_EQ(400000, summary["findings"][0]["bytes"]);
  const auto fragmentation = json_of("fragmentation", trace);
  for (const char* key :
       {"at_ns", "held_bytes", "live_bytes", "requested_bytes", "free_bytes", "free_resident_bytes",
        "external", "internal", "largest_free_bytes", "free_histogram", "pinners", "timeline"}) {
    EXPECT_TRUE(fragmentation.contains(key)) << key;
  }
  EXPECT_TRUE(fragmentation["exit"].contains("held_bytes"));
  const auto syscalls = json_of("syscalls", trace);
  for (const char* key : {"call", "cause", "count", "ns", "p50_ns", "p99_ns", "max_ns"}) {
    EXPECT_TRUE(syscalls["rows"][0].contains(key)) << key;
  }
  const auto faults = json_of("faults", trace);
  for (const char* key :
       {"stack", "faults", "repeat_faults", "bytes", "ns_estimate", "touched_by"}) {
    EXPECT_TRUE(faults["sites"][0].contains(key)) << key;
  }
  EXPECT_EQ(100, faults["total"]["faults"]);
  const auto ledger = json_of("ledger", trace);
  for (const char* key : {"at_ns", "rss_bytes", "lines", "residual_bytes"}) {
    EXPECT_TRUE(ledger.contains(key)) << key;
    EXPECT_TRUE(ledger["exit"].contains(key)) << key;
  }
  for (const char* key : {"name", "region", "bytes"}) {
    EXPECT_TRUE(ledger["lines"][0].contains(key)) << key;
  }
  const auto compare = json_of("compare", trace);
  for (const char* key :
       {"settings", "brk", "mmap", "munmap", "mremap", "madvise", "mprotect", "syscall_ns",
        "faults", "fault_ns", "held_bytes_peak", "rss_bytes_peak", "external", "wall_ns"}) {
    EXPECT_TRUE(compare["rows"][0].contains(key)) << key;
  }
}

// Goal: --site shows matching stacks and keeps the totals.
TEST_F(ReportTest, SiteFilterMovesTheRestToOthers) {
  Trace trace = open(sample_trace("family"));
  ReportOptions options;
  options.site = "sh.cc:30";
  const auto leaks = json_of("leaks", trace, options);
  ASSERT_EQ(1, leaks["sites"].size());
  EXPECT_EQ(128, leaks["sites"][0]["bytes"]);
  EXPECT_EQ(1, leaks["sites_others"]["rows"]);
  EXPECT_EQ(128 + 0x8000 + 64, leaks["sites_total"]["bytes"]);
}

// Goal: --process takes pids, and says so when there is none or it was not recorded.
TEST_F(ReportTest, ProcessIsChosenByPid) {
  Trace trace = open(sample_trace("family"));
  ReportOptions options;
  options.process = 101;
  EXPECT_EQ(128, json_of("leaks", trace, options)["live_bytes_end"]);
  options.process = 102;
  EXPECT_THROW(json_of("leaks", trace, options), schema::Error);
  options.process = 5;
  EXPECT_THROW(json_of("leaks", trace, options), schema::Error);
}

// Goal: a trace with nothing in it is an error that says so, for every report. Method: the schema
// alone; then one process that could not be recorded.
TEST_F(ReportTest, TraceWithoutARecordedProcessSaysWhy) {
  schema::create_trace("empty.db", false).close();
  EXPECT_THROW(open_for_report("empty.db"), schema::Error);
  TraceBuilder builder;
  builder.set("recorded", 0).not_recorded(101, "statically linked");
  Trace unrecorded = open(builder);
  for (const Report& report : reports()) {
    if (report.traces_exactly == 2) continue;
    try {
      run(report, {&unrecorded, 1});
      ADD_FAILURE() << report.name;
    } catch (const schema::Error& error) {
      EXPECT_NE(std::string::npos, std::string(error.what()).find("statically linked"));
    }
  }
}

// Goal: a damaged batch costs its rows, not the report. Method: a byte is changed in one of many
// batches.
TEST_F(ReportTest, DamagedBatchIsLeftOutWithANote) {
  sample_trace("leak").write("trace.db", 100);
  {
    schema::Database db = schema::open_trace("trace.db", schema::OpenMode::kReadWrite);
    db.exec(
        "UPDATE event_batch SET data = substr(data, 1, 40) || x'ff' || substr(data, 42)"
        " WHERE id = 3");
  }
  Trace trace = open_for_report("trace.db");
  const auto summary = json_of("summary", trace);
  EXPECT_LT(summary["blocks_allocated"], 934);
  EXPECT_GE(summary["blocks_allocated"], 834);
  std::string notes;
  for (const auto& note : summary["notes"]) notes += note.get<std::string>() + "\n";
  EXPECT_NE(std::string::npos, notes.find("batch 3, 100 rows")) << notes;
}

// Goal: an id that no trace gets to is an error, not a table of that size. Method: a system call of
// thread 4294967295, for which 32 bits would make room for none.
TEST_F(ReportTest, ImpossibleThreadIsAnError) {
  sample_trace("leak").write("trace.db");
  {
    schema::Database db = schema::open_trace("trace.db", schema::OpenMode::kReadWrite);
    db.exec(
        "INSERT INTO syscall(process, time_ns, duration_ns, thread, stack, name, origin, result,"
        " arg0, arg1, arg2, arg3, arg4, arg5, cause) SELECT id, start_ns + 1, 1, 4294967295, 1,"
        " 'mmap', 'allocator', 4096, 0, 4096, 0, 0, 0, 0, 'map block' FROM process LIMIT 1");
  }
  try {
    Trace trace = open_for_report("trace.db");
    json_of("summary", trace);
    ADD_FAILURE();
  } catch (const schema::Error& error) {
    EXPECT_NE(std::string::npos, std::string(error.what()).find("no thread 4294967295"))
        << error.what();
  }
}

// Goal: a trace that cannot be written is reported on all the same, and stays as it is. Method: in
// a child that gives up root's right to write everything.
TEST_F(ReportTest, ReadOnlyTraceIsFinalizedInACopy) {
  sample_trace("leak").write("trace.db");
  std::filesystem::permissions("trace.db", static_cast<std::filesystem::perms>(0444));
  constexpr uid_t kNobody = 65534;
  const pid_t child = fork();
  if (child == 0) {
    if (getuid() == 0 && setuid(kNobody) != 0) _exit(2);
    if (access("trace.db", W_OK) == 0) _exit(3);
    Trace trace = open_for_report("trace.db");
    _exit(json_of("leaks", trace)["live_bytes_end"] == 400000 && !trace.notes.empty() ? 0 : 4);
  }
  int status = 0;
  ASSERT_EQ(child, waitpid(child, &status, 0));
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(0, WEXITSTATUS(status));
  schema::Database db = schema::open_trace("trace.db", schema::OpenMode::kReadOnly);
  EXPECT_FALSE(is_finalized(db));
}

// Goal: the map's last moment is the heap at exit. Method: its sums beside the figures of the
// report.
TEST_F(ReportTest, MapAddsUpToTheHeapAtExit) {
  Trace trace = open(sample_trace("pinned"));
  const ReportOptions options;
  Document document = run(*find_report("fragmentation"), {&trace, 1}, options);
  add_heap_map({{&trace, 1}, options}, document);
  document.limit({});
  const auto json = nlohmann::ordered_json::parse(render_json(document));
  const auto& moments = json["map"]["moments"];
  ASSERT_GE(moments.size(), 2u);
  int64_t free_bytes = 0;
  int64_t held_bytes = 0;
  for (const auto& cell : moments.back()["cells"]) {
    free_bytes += cell["free_bytes"].get<int64_t>() + cell["top_bytes"].get<int64_t>();
    for (const char* key : {"live_bytes", "free_bytes", "top_bytes", "untouched_bytes"}) {
      held_bytes += cell[key].get<int64_t>();
    }
  }
  EXPECT_EQ(json["exit"]["free_resident_bytes"], free_bytes);
  EXPECT_EQ(json["exit"]["held_bytes"], held_bytes);
  EXPECT_FALSE(json_of("fragmentation", trace).contains("map"));
}

// Goal: the ledger of the summary is that of the report. Method: one beside the other.
TEST_F(ReportTest, SummaryHasTheLedger) {
  Trace trace = open(sample_trace("leak"));
  const auto summary = json_of("summary", trace)["ledger"];
  const auto ledger = json_of("ledger", trace);
  EXPECT_EQ(ledger["rss_bytes"], summary["rss_bytes"]);
  EXPECT_EQ(ledger["residual_bytes"], summary["residual_bytes"]);
  EXPECT_EQ(ledger["model_peak"]["rss_bytes"], summary["model_peak_bytes"]);
  const auto sum_of = [](const nlohmann::ordered_json& lines) {
    int64_t bytes = 0;
    for (const auto& line : lines) bytes += line["bytes"].get<int64_t>();
    return bytes;
  };
  EXPECT_EQ(sum_of(ledger["lines"]), sum_of(json_of("summary", trace)["ledger_lines"]));
}

// Goal: what was lost is a finding, and nothing is where nothing was.
TEST_F(ReportTest, LimitsOfTheRecordingAreAFinding) {
  const auto kinds_of = [](const nlohmann::ordered_json& summary) {
    std::vector<std::string> kinds;
    for (const auto& finding : summary["findings"]) kinds.push_back(finding["kind"]);
    return kinds;
  };
  Trace lossy = open(sample_trace("lossy"), "lossy.db");
  const auto found = kinds_of(json_of("summary", lossy));
  EXPECT_NE(found.end(), std::find(found.begin(), found.end(), "limits"));
  Trace whole = open(sample_trace("pinned"), "pinned.db");
  const auto others = kinds_of(json_of("summary", whole));
  EXPECT_EQ(others.end(), std::find(others.begin(), others.end(), "limits"));
  // Waiting is one only where it is much of the run.
  Trace hardly = open(sample_trace("pinned").set("stall_ns", 10'000), "hardly.db");
  EXPECT_EQ(others, kinds_of(json_of("summary", hardly)));
  Trace waited = open(sample_trace("pinned").set("stall_ns", 900'000), "waited.db");
  const auto findings = json_of("summary", waited)["findings"];
  ASSERT_EQ(2u, findings.size());
  EXPECT_EQ("limits", findings[1]["kind"]);
  EXPECT_EQ(900'000, findings[1]["ns"]);
  EXPECT_NE(std::string::npos, findings[1]["sentence"].get<std::string>().find("too long"));
}

// Goal: finalizing twice changes nothing.
TEST_F(ReportTest, FinalPassIsMadeOnce) {
  sample_trace("leak").write("trace.db");
  finalize_file("trace.db");
  schema::Database db = schema::open_trace("trace.db", schema::OpenMode::kReadWrite);
  db.exec("UPDATE site SET calls = calls + 1000000");
  finalize(db);
  EXPECT_GT(db.query_int("SELECT max(calls) FROM site").value_or(0), 1000000);
}

class CompareTest : public AnalyzerTest {};

// Goal: the stacks that explain why one setting costs more, and what no stack explains. Method: one
// stack's blocks are mapped and faulted anew in the first recording and kept in the second, another
// stack does the same in both; a trim that a free made belongs to no stack.
TEST_F(CompareTest, SitesThatExplainTheDifferenceAreNamed) {
  constexpr uint64_t kMapped = 0x7f0000000000;
  const auto record = [](bool is_mapped) {
    TraceBuilder trace;
    trace.set("mmap_threshold", is_mapped ? 128 << 10 : 32 << 20);
    const uint32_t same = trace.stack({"remember names.cc:7", "main main.cc:1"});
    const uint32_t frame = trace.stack({"decode video.cc:12", "main main.cc:2"});
    trace.grow(0x80000, same).alloc(kHeap + 16, 1000, same).fault(kHeap);
    for (int i = 0; i < 50; ++i) {
      if (is_mapped) trace.map(kMapped, 0x40000, frame);
      const uint64_t block = (is_mapped ? kMapped : kHeap + 0x10000) + 16;
      trace.alloc(block, 0x40000 - 32, frame);
      if (is_mapped || i == 0) trace.touch(block & ~uint64_t{4095}, 0x10000);
      trace.free(block);
      if (is_mapped) trace.unmap(kMapped, 0x40000, 0);
    }
    if (is_mapped) trace.trim(0x10000, 0);
    return trace.meta("ns_per_fault", "1000");
  };
  std::vector<Trace> traces;
  traces.push_back(open(record(false), "kept.db"));
  traces.push_back(open(record(true), "mapped.db"));
  Document document = run(*find_report("compare"), traces);
  document.limit({});
  const auto json = nlohmann::ordered_json::parse(render_json(document));
  EXPECT_EQ("mmap 128K", json["sites_of"]["more"]);
  EXPECT_EQ("mmap 32M", json["sites_of"]["less"]);
  ASSERT_EQ(1u, json["sites"].size()) << "the other stack is the same in both";
  const auto& site = json["sites"][0];
  EXPECT_EQ("decode", site["stack"][0]["function"]);
  EXPECT_EQ(800, site["faults_more"]);
  EXPECT_EQ(16, site["faults_less"]);
  EXPECT_EQ(50, site["mapped_blocks_more"]);
  EXPECT_EQ(0, site["mapped_blocks_less"]);
  // 784 faults, and 50 times mapping and unmapping, 500 ns each.
  EXPECT_EQ(784 * 1000 + 100 * 500, site["difference_ns"]);
  EXPECT_EQ(784 * 1000 + 101 * 500, json["sites_total"]["difference_ns"]);
  EXPECT_EQ(500, json["sites_not_attributed"]["difference_ns"]);
  // Recordings of the same have nothing to name.
  std::vector<Trace> alike;
  alike.push_back(open(record(true), "one.db"));
  alike.push_back(open(record(true), "two.db"));
  EXPECT_NE(render_text(run(*find_report("compare"), alike)).find("no stack differs"),
            std::string::npos);
}

class DiffTest : public AnalyzerTest {};

// Goal: a stack is the same in two builds though its addresses and lines moved, and the change is
// its change. Method: two recordings of one program, the second with other lines, one stack more,
// one less.
TEST_F(DiffTest, StacksAreMatchedByTheirFunctions) {
  TraceBuilder before;
  before.grow(0x10000)
      .alloc(kHeap + 0x10, 100, before.stack({"load load.cc:10", "main main.cc:5"}))
      .alloc(kHeap + 0x410, 30, before.stack({"old old.cc:1", "main main.cc:5"}));
  TraceBuilder after;
  after.grow(0x10000)
      .alloc(kHeap + 0x2010, 300, after.stack({"load load.cc:44", "main main.cc:9"}))
      .alloc(kHeap + 0x3010, 7, after.stack({"fresh fresh.cc:1", "main main.cc:9"}));
  std::vector<Trace> traces;
  traces.push_back(open(before, "before.db"));
  traces.push_back(open(after, "after.db"));
  Document document = run(*find_report("diff"), traces);
  document.limit({});
  const auto json = nlohmann::ordered_json::parse(render_json(document));
  ASSERT_EQ(3u, json["sites"].size());
  EXPECT_EQ(200, json["sites"][0]["live_bytes_end"]);
  EXPECT_EQ("changed", json["sites"][0]["state"]);
  EXPECT_EQ(-30, json["sites"][1]["live_bytes_end"]);
  EXPECT_EQ("gone", json["sites"][1]["state"]);
  EXPECT_EQ(7, json["sites"][2]["live_bytes_peak"]);
  EXPECT_EQ("new", json["sites"][2]["state"]);
  EXPECT_EQ(177, json["sites_total"]["live_bytes_end"]);
  EXPECT_FALSE(json.contains("sites_not_attributed"));
}

// Goal: every number in the summary can be limited. Method: each number of a sample's, found by
// walking it, limited to one below itself and to itself.
TEST_F(ReportTest, EveryNumberOfTheSummaryCanBeLimited) {
  Trace trace = open(sample_trace("family"));
  const auto summary = json_of("summary", trace);
  size_t numbers = 0;
  const std::function<void(const nlohmann::ordered_json&, const std::string&)> walk =
      [&](const nlohmann::ordered_json& at, const std::string& name) {
        if (at.is_structured()) {
          size_t index = 0;
          for (const auto& [key, value] : at.items()) {
            const std::string member = at.is_array() ? std::to_string(index++) : key;
            walk(value, name.empty() ? member : name + "." + member);
          }
        } else if (at.is_number_integer() && at.get<int64_t>() > 0) {
          ++numbers;
          const auto limit = [&](int64_t value) {
            return check_limits({parse_limit(name + "=" + std::to_string(value))}, summary,
                                nullptr);
          };
          EXPECT_EQ(1u, limit(at.get<int64_t>() - 1).size()) << name;
          EXPECT_TRUE(limit(at.get<int64_t>()).empty()) << name;
        }
      };
  walk(summary, "");
  EXPECT_GT(numbers, 30u);
}

// Goal: limits on numbers of the summary, and growth against a baseline.
TEST(CheckTest, LimitsThatArePassedAreNamed) {
  const auto now = nlohmann::ordered_json::parse(
      R"({"live_bytes_end": 2048, "faults": {"minor": 105}, "findings": [1, 2], "rss": null})");
  const auto before = nlohmann::ordered_json::parse(R"({"faults": {"minor": 100}})");
  const auto check = [&](const char* text, const nlohmann::ordered_json* baseline = nullptr) {
    return check_limits({parse_limit(text)}, now, baseline);
  };
  EXPECT_TRUE(check("live_bytes_end=2K").empty());
  ASSERT_EQ(1u, check("live_bytes_end=2047").size());
  EXPECT_NE(std::string::npos, check("live_bytes_end=0")[0].find("2048 (2.00 KiB) is more than 0"));
  EXPECT_EQ(1u, check("findings=1").size());
  EXPECT_TRUE(check("findings=2").empty());
  EXPECT_EQ(1u, check("findings.1=1").size());
  EXPECT_TRUE(check("findings.0=1").empty());
  EXPECT_THROW(check("findings.2=1"), schema::Error);
  EXPECT_THROW(check("findings.x=1"), schema::Error);
  EXPECT_TRUE(check("faults.minor=+5%", &before).empty());
  EXPECT_EQ(1u, check("faults.minor=+4.9%", &before).size());
  EXPECT_TRUE(check("faults.minor=+5", &before).empty());
  EXPECT_EQ(1u, check("faults.minor=+4", &before).size());
  EXPECT_THROW(check("faults.minor=+5%"), schema::Error);
  for (const char* bad : {"faults", "faults.mayor=1", "rss=1", "faults=1"}) {
    EXPECT_THROW(check(bad), schema::Error) << bad;
  }
  for (const char* bad : {"=1", "a=", "a=x", "a=5%", "a=-1", "a=1Q"}) {
    EXPECT_THROW(parse_limit(bad), schema::Error) << bad;
  }
}

// Goal: LeakSanitizer's files are read as it reads them.
TEST_F(ReportTest, SuppressedLeaksAreOneRow) {
  Trace trace = open(sample_trace("leak"));
  std::ofstream("known.txt") << "# known\n\nrace:elsewhere\nleak:^intern_*$\n";
  ReportOptions options;
  options.suppressions = "known.txt";
  const auto leaks = json_of("leaks", trace, options);
  EXPECT_EQ(0, leaks["live_bytes_end"]);
  EXPECT_EQ(400000, leaks["suppressed_bytes"]);
  EXPECT_EQ(400000, leaks["sites_total"]["bytes"]);
  options.suppressions = "missing.txt";
  EXPECT_THROW(json_of("leaks", trace, options), schema::Error);
  EXPECT_TRUE(matches_pattern("tern", "intern_name"));
  EXPECT_TRUE(matches_pattern("^in*me$", "intern_name"));
  EXPECT_FALSE(matches_pattern("^tern", "intern_name"));
  EXPECT_FALSE(matches_pattern("inter$", "intern_name"));
  EXPECT_FALSE(matches_pattern("a*z", "intern_name"));
}

// Goal: exports carry the trace's totals. Method: folded lines are summed; pprof is looked through
// for its names and is one message to its end.
TEST_F(ReportTest, ExportsCarryTheTotals) {
  Trace trace = open(sample_trace("leak"));
  const ReportOptions options;
  const ReportInput input{{&trace, 1}, options};
  const std::string folded = export_folded(input, export_value_index("leaks"));
  EXPECT_EQ("main;parse;intern_name 400000\n", folded);
  int64_t calls = 0;
  std::istringstream lines(export_folded(input, export_value_index("allocations")));
  for (std::string line; std::getline(lines, line);)
    calls += std::stoll(line.substr(line.rfind(' ')));
  EXPECT_EQ(trace.db.query_int("SELECT sum(calls) FROM site"), calls);
  const std::string pprof = export_pprof(input);
  for (const char* name : {"intern_name", "names.cc", "alloc_space", "peak_space", "page_faults"}) {
    EXPECT_NE(std::string::npos, pprof.find(name)) << name;
  }
  size_t at = 0;
  const auto varint = [&] {
    uint64_t value = 0;
    for (int shift = 0; at < pprof.size(); shift += 7) {
      const auto byte = static_cast<uint8_t>(pprof[at++]);
      value |= uint64_t{byte & 0x7fu} << shift;
      if ((byte & 0x80) == 0) break;
    }
    return value;
  };
  while (at < pprof.size()) {
    const uint64_t tag = varint();
    const uint64_t value = varint();
    if ((tag & 7) == 2) at += value;
  }
  EXPECT_EQ(pprof.size(), at);
}

// Goal: an export goes into what has the name, a device as well as a link's file. Method: a named
// pipe and a link; both must be what they were, and `.part` gone.
TEST_F(ReportTest, ExportsLeavePipesAndLinksInPlace) {
  namespace fs = std::filesystem;
  const fs::path pipe = "pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const int reader = ::open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
  write_export(pipe, "piped\n");
  EXPECT_TRUE(fs::is_fifo(pipe));
  char text[16] = {};
  EXPECT_EQ(read(reader, text, sizeof(text)), 6);
  EXPECT_STREQ(text, "piped\n");
  close(reader);
  const fs::path file = "file";
  std::ofstream(file) << "old";
  fs::create_symlink(file, "link");
  write_export("link", "linked\n");
  EXPECT_TRUE(fs::is_symlink("link"));
  std::stringstream written;
  written << std::ifstream(file).rdbuf();
  EXPECT_EQ(written.str(), "linked\n");
  EXPECT_FALSE(fs::exists("file.part"));
}

}  // namespace
}  // namespace heapledger::analyzer
