// SPDX-License-Identifier: Apache-2.0
// The front page: findings, totals, peaks, and what is missing.
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "analyzer/render/units.h"
#include "analyzer/reports/all.h"
#include "analyzer/reports/fault_counts.h"
#include "analyzer/reports/findings.h"
#include "analyzer/reports/saturating.h"
#include "analyzer/reports/settings.h"
#include "analyzer/reports/syscall_source.h"
#include "schema/event.h"

namespace heapledger::analyzer {

namespace {

using Json = nlohmann::ordered_json;

template <typename T>
Json or_null(const std::optional<T>& value) {
  return value ? Json(*value) : Json();
}

std::string result_of(const ProcessInfo& process) {
  if (process.signal) return fmt::format("signal {}", *process.signal);
  if (process.exit_status) return fmt::format("exit {}", *process.exit_status);
  if (process.ended_by == "exec") return "exec";
  return process.end_ns ? "ended" : "running";
}

// Calls by kind, with the kinds that are one in the reader's eyes taken together.
constexpr std::pair<const char*, const char*> kCallGroups[] = {
    {"malloc", "malloc"},
    {"calloc", "calloc"},
    {"realloc", "realloc"},
    {"reallocarray", "reallocarray"},
    {"free", "free"},
    {"cfree", "free"},
    {"free_sized", "free"},
    {"free_aligned_sized", "free"},
    {"memalign", "memalign"},
    {"posix_memalign", "posix_memalign"},
    {"aligned_alloc", "aligned_alloc"},
    {"valloc", "valloc"},
    {"pvalloc", "pvalloc"},
    {"new", "new"},
    {"new[]", "new"},
    {"delete", "delete"},
    {"delete[]", "delete"},
};

class Summary {
 public:
  explicit Summary(const ReportInput& input)
      : input_(input),
        trace_(input.trace()),
        db_(trace_.db),
        selected_(selected_processes(input)),
        main_(main_process(input)),
        where_(process_condition(input)) {}

  Document build() {
    add_head();
    add_processes();
    add_calls();
    add_memory();
    add_ledger();
    add_syscalls();
    add_faults();
    add_recording();
    add_fidelity();
    add_settings();
    add_findings();
    add_notes(input_, document_);
    return std::move(document_);
  }

 private:
  int64_t sum(const char* expression, const char* table) {
    return db_.query_int(fmt::format("SELECT sum({}) FROM {} WHERE {}", expression, table, where_))
        .value_or(0);
  }

  void section(std::string heading, std::vector<std::string> lines) {
    document_.sections.push_back({std::move(heading), std::move(lines), std::nullopt});
  }

  static std::string line(const char* name, const std::string& value,
                          const std::string& more = "") {
    return fmt::format("  {:<17}  {:>14}{}", name, value, more.empty() ? "" : "  " + more);
  }

  void add_head() {
    const ProcessInfo& first = trace_.info.processes.front();
    const std::string command = trace_.info.command.empty() ? first.command : trace_.info.command;
    const int64_t wall_ns =
        difference_of(first.end_ns.value_or(trace_.info.end_ns), first.start_ns.value_or(0));
    int64_t events = 0;
    for (const ProcessInfo* process : selected_) events = sum_of(events, process->events);
    section(fmt::format("{}: {}, {}, {}", command, result_of(first), human_ns(wall_ns),
                        counted(events, "call")),
            {});
  }

  void add_processes() {
    Table table("", "",
                {{"pid", "pid", Unit::kPlain},
                 {"result", "ended by", Unit::kText},
                 {"run_ns", "run", Unit::kNs},
                 {"calls", "calls", Unit::kCount, true},
                 {"held_peak", "held peak", Unit::kBytes},
                 {"rss_peak", "RSS peak", Unit::kBytes},
                 {"command", "command", Unit::kText}});
    Json rows = Json::array();
    for (const ProcessInfo& process : trace_.info.processes) {
      if (input_.options.process && process.pid != *input_.options.process) continue;
      const auto held = db_.query_int(fmt::format(
          "SELECT held_bytes FROM fragmentation WHERE at = 'peak' AND process = {}", process.id));
      const int64_t end_ns = process.end_ns.value_or(trace_.info.end_ns);
      const std::string& name = process.command.empty() ? process.exe : process.command;
      table.add({process.pid, result_of(process), end_ns - process.start_ns.value_or(end_ns),
                 process.recorded ? Cell(process.events) : Cell(), integer_cell(held),
                 integer_cell(process.rss_peak_bytes),
                 process.reason.empty()
                     ? name
                     : fmt::format("[{}recorded: {}] {}", process.recorded ? "partly " : "not ",
                                   process.reason, name)});
      rows.push_back({{"pid", process.pid},
                      {"exe", process.exe},
                      {"command", process.command},
                      {"exit_status", or_null(process.exit_status)},
                      {"signal", or_null(process.signal)},
                      {"start_ns", or_null(process.start_ns)},
                      {"end_ns", or_null(process.end_ns)},
                      {"recorded", process.recorded},
                      {"reason", process.reason.empty() ? Json() : Json(process.reason)}});
    }
    document_.json["process"] = std::move(rows);
    // One process is in the heading already.
    if (table.rows.size() > 1) document_.add_table(std::move(table), "Processes");
  }

  void add_calls() {
    std::map<std::string, int64_t> by_kind;
    schema::Statement select = db_.prepare(
        "SELECT kind, sum(calls), sum(failed) FROM call_count"
        " WHERE " +
        where_ + " GROUP BY kind");
    int64_t failed = 0;
    while (select.step()) {
      by_kind[select.column_text(0)] = select.column_int(1);
      failed += select.column_int(2);
    }
    Json& calls = document_.json["calls"] = Json::object();
    for (const auto& [kind, group] : kCallGroups) {
      calls[group] = calls.value(group, int64_t{0}) + by_kind[kind];
    }
    Table table("", "", {{"kind", "call", Unit::kText}, {"calls", "calls", Unit::kCount, true}});
    for (const auto& [group, count] : calls.items()) {
      if (count.get<int64_t>() != 0) table.add({group, count.get<int64_t>()});
    }
    table.sort_by("calls");
    table.totals["calls"] = sum("events", "event_batch");
    document_.add_table(std::move(table), "Calls");
    if (failed != 0) {
      document_.sections.back().heading =
          fmt::format("Calls ({} of them failed)", human_count(failed));
    }
  }

  void add_memory() {
    const int64_t requested = sum("bytes", "site");
    const int64_t blocks = sum("calls", "site");
    const int64_t live_end = sum("live_bytes_end - inherited_bytes_end", "site");
    const int64_t blocks_end = sum("live_blocks_end - inherited_blocks_end", "site");
    const int64_t live_peak =
        db_.query_int(
               fmt::format("SELECT sum(live_bytes_peak) FROM site WHERE process = {}", main_.id))
            .value_or(0);
    const int64_t live_peak_ns =
        db_.query_int(fmt::format("SELECT time_ns FROM timeline WHERE process = {}"
                                  " ORDER BY live_bytes DESC, time_ns LIMIT 1",
                                  main_.id))
            .value_or(0);
    const int64_t held_peak =
        db_.query_int(fmt::format("SELECT held_bytes FROM fragmentation WHERE process = {}"
                                  " AND at = 'peak'",
                                  main_.id))
            .value_or(0);
    std::optional<int64_t> rss_peak;
    std::string by_kernel = "by the kernel";
    for (const ProcessInfo* process : selected_) {
      if (process->rss_peak_bytes <= rss_peak) continue;
      rss_peak = process->rss_peak_bytes;
      // RSS has more in it than the heap: another process may have most of it.
      by_kernel = process == &main_ ? "by the kernel"
                                    : fmt::format("by the kernel, of process {}", process->pid);
    }
    Json& json = document_.json;
    json["bytes_requested"] = requested;
    json["blocks_allocated"] = blocks;
    json["live_bytes_peak"] = live_peak;
    json["live_bytes_peak_ns"] = live_peak_ns;
    json["live_bytes_end"] = live_end;
    json["live_blocks_end"] = blocks_end;
    peaks_ = {rss_peak, held_peak};
    std::string heading = "Memory";
    if (selected_.size() > 1) {
      heading += fmt::format(" (peaks are those of process {}, which held most)", main_.pid);
    }
    section(std::move(heading),
            {line("requested", human_bytes(requested), "in " + counted(blocks, "block")),
             line("live peak", human_bytes(live_peak), "at " + human_time(live_peak_ns)),
             line("live at exit", human_bytes(live_end), "in " + counted(blocks_end, "block")),
             line("held peak", human_bytes(held_peak), "by the allocator, from the system"),
             line("RSS peak", rss_peak ? human_bytes(*rss_peak) : "not known", by_kernel)});
  }

  // RSS at the fullest snapshot, the allocator's regions taken together.
  void add_ledger() {
    Json& json = document_.json["ledger"];
    schema::Statement moment = db_.prepare(
        "SELECT at_ns, b.rss_bytes, b.residual_bytes, b.rss_bytes - b.other_bytes - b.heap_bytes -"
        " b.residual_bytes FROM ledger_moment AS m JOIN balance AS b ON b.snapshot = (SELECT"
        " min(snapshot) FROM ledger WHERE process = m.process AND at = m.at)"
        " WHERE m.process = ? AND m.at = 'peak'");
    moment.bind(1, main_.id);
    if (!moment.step()) return;
    const int64_t rss = moment.column_int(1);
    const int64_t residual = moment.column_int(2);
    Table table("ledger_lines", "",
                {{"name", "bytes that are", Unit::kText}, {"bytes", "RSS", Unit::kBytes, true}});
    schema::Statement lines = db_.prepare(
        "SELECT CASE source WHEN 'replay' THEN name WHEN 'smaps' THEN CASE region"
        " WHEN 'program' THEN 'the program''s own mappings' WHEN 'heapledger' THEN"
        " 'heapledger''s own' ELSE region END END AS line, sum(bytes) FROM ledger"
        " WHERE process = ? AND at = 'peak' GROUP BY line ORDER BY min(rowid)");
    lines.bind(1, main_.id);
    while (lines.step()) table.add({lines.column_text(0), lines.column_int(1)});
    if (moment.column_int(3) != 0) {
      table.add({"moved while the snapshot was taken", moment.column_int(3)});
    }
    table.totals["bytes"] = rss;
    json = {{"at_ns", moment.column_int(0)}, {"rss_bytes", rss}, {"residual_bytes", residual}};
    document_.add_table(
        std::move(table),
        fmt::format(
            "Ledger at the snapshot with most RSS, {}{}", human_time(moment.column_int(0)),
            selected_.size() > 1 ? fmt::format(" (process {})", main_.pid) : std::string()));
    std::vector<std::string> facts = {
        line("RSS by smaps", human_bytes(rss), "the total"),
        line("residual", human_bytes(residual), "smaps less the replay's range: 0 is a balance")};
    const auto model = db_.query_int(fmt::format(
        "SELECT rss_bytes FROM ledger_moment WHERE process = {} AND at = 'model peak'", main_.id));
    if (model) {
      json["model_peak_bytes"] = *model;
      facts.push_back(line("modelled peak", human_bytes(*model),
                           main_.rss_peak_bytes ? fmt::format("by the kernel (VmHWM): {}",
                                                              human_bytes(*main_.rss_peak_bytes))
                                                : ""));
    }
    facts.push_back("     " + fmt::format("heapledger ledger {}", trace_.path));
    section("", std::move(facts));
  }

  void add_syscalls() {
    Table table("", "",
                {{"name", "call", Unit::kText},
                 {"count", "by allocator", Unit::kCount, true},
                 {"ns", "time", Unit::kNs, true},
                 {"program_count", "by program", Unit::kCount, true},
                 {"program_ns", "time", Unit::kNs, true}});
    Json& json = document_.json["syscalls"];
    for (const char* name : schema::kSyscallNames) {
      Row row{std::string(name)};
      for (const char* origin : {"allocator", "program", "loader"}) {
        schema::Statement select = db_.prepare(
            "SELECT count(*), coalesce(sum(duration_ns), 0) FROM syscall WHERE name = ? AND"
            " origin = ? AND " +
            where_);
        select.bind_all(name, origin);
        select.step();
        json[name][origin] = {{"count", select.column_int(0)}, {"ns", select.column_int(1)}};
        if (std::string_view(origin) == "loader") continue;  // In a sentence below.
        row.push_back(select.column_int(0));
        row.push_back(select.column_int(1));
      }
      if (std::get<int64_t>(row[1]) != 0 || std::get<int64_t>(row[3]) != 0)
        table.add(std::move(row));
    }
    table.sort_by("ns");
    for (const auto& [column, expression, origin] :
         {std::tuple("count", "1", "allocator"), std::tuple("ns", "duration_ns", "allocator"),
          std::tuple("program_count", "1", "program"),
          std::tuple("program_ns", "duration_ns", "program")}) {
      table.totals[column] =
          db_.query_int(fmt::format("SELECT sum({}) FROM syscall WHERE origin = '{}' AND {}",
                                    expression, origin, where_))
              .value_or(0);
    }
    document_.add_table(std::move(table), "Memory system calls");
    add_syscall_source(input_, document_);
    const bool was_asked = schema::meta_text(db_, "syscall_note").has_value();
    if (trace_.info.syscalls_are_all() || was_asked) {
      document_.sections.back().lines.push_back("  " + syscall_source_text(input_));
    }
  }

  void add_faults() {
    const FaultTotals faults = fault_totals(input_);
    document_.json["faults"] = {{"source", faults.source},
                                {"minor", faults.minor},
                                {"major", faults.major},
                                {"in_heap", faults.in_heap},
                                {"rusage_minor", faults.rusage_minor},
                                {"rusage_major", faults.rusage_major},
                                {"lost", faults.lost},
                                {"ns_estimate", faults.ns_estimate},
                                {"ns_per_fault", faults.ns_per_fault}};
    document_.json["rss_peak_bytes"] = or_null(peaks_.first);
    document_.json["heap_held_bytes_peak"] = peaks_.second;
    section("Page faults", fault_lines(faults));
  }

  void add_recording() {
    int64_t recorded = 0;
    int64_t lost = 0;
    int64_t incomplete = 0;
    int64_t stall_ns = 0;
    for (const ProcessInfo* process : selected_) {
      recorded = sum_of(recorded, process->events);
      lost = sum_of(lost, process->events_lost);
      incomplete = sum_of(incomplete, process->incomplete_stacks);
      stall_ns = sum_of(stall_ns, process->stall_ns);
    }
    document_.json["events"] = {{"recorded", recorded},
                                {"lost", lost},
                                {"incomplete_stacks", incomplete},
                                {"stall_ns", stall_ns}};
    std::vector<std::string> lines = {line("calls recorded", human_count(recorded)),
                                      line("calls lost", human_count(lost)),
                                      line("stacks cut short", human_count(incomplete)),
                                      line("waited for room", human_ns(stall_ns))};
    add_stack_check(lines);
    section("Recording", std::move(lines));
  }

  // Of a recording with --verify-stacks.
  void add_stack_check(std::vector<std::string>& lines) {
    int64_t compared = 0;
    int64_t mismatched = 0;
    int64_t incomparable = 0;
    bool asked_for = false;
    for (const ProcessInfo* process : selected_) {
      asked_for |= process->stacks_compared.has_value();
      compared += process->stacks_compared.value_or(0);
      mismatched += process->stacks_mismatched.value_or(0);
      incomparable += process->stacks_incomparable.value_or(0);
    }
    Json& json = document_.json["stack_check"];
    if (!asked_for) return;
    const int64_t walked = std::max<int64_t>(compared + incomparable, 1);
    const double share = static_cast<double>(compared) / static_cast<double>(walked);
    json = {{"compared", compared},
            {"mismatched", mismatched},
            {"incomparable", incomparable},
            {"share", share}};
    lines.push_back(line("stacks checked", human_count(compared),
                         fmt::format("{} differ from libunwind's, {} not comparable",
                                     human_count(mismatched), human_count(incomparable))));
  }

  // What the 16-byte header changes: the same calls under glibc's own.
  void add_fidelity() {
    Json& json = document_.json["fidelity"] = Json::object();
    const int64_t held_peak =
        db_.query_int(
               fmt::format("SELECT held_bytes_peak FROM fidelity WHERE process = {}", main_.id))
            .value_or(0);
    json["glibc_held_bytes_peak"] = held_peak;
    Table table("", "",
                {{"name", "call", Unit::kText},
                 {"glibc", "under glibc", Unit::kCount, true},
                 {"ours", "recorded", Unit::kCount, true}});
    for (const char* name : schema::kSyscallNames) {
      const int64_t glibc = sum(name, "fidelity");
      schema::Statement select = db_.prepare(
          "SELECT count(*) FROM syscall WHERE name = ? AND origin = 'allocator'"
          " AND coalesce(cause, '') != 'registry' AND " +
          where_);
      select.bind_all(name);
      select.step();
      const int64_t ours = select.column_int(0);
      json[std::string("glibc_") + name] = glibc;
      if (glibc != 0 || ours != 0) table.add({std::string(name), glibc, ours});
    }
    table.totals["glibc"] = sum("brk + mmap + munmap + mremap + madvise + mprotect", "fidelity");
    table.totals["ours"] =
        sum("origin = 'allocator' AND coalesce(cause, '') != 'registry'", "syscall");
    document_.add_table(std::move(table), "The same calls under glibc's own header of 8 bytes");
    document_.sections.back().lines.push_back(
        line("held peak", human_bytes(held_peak),
             fmt::format("under glibc; {} recorded", human_bytes(peaks_.second))));
  }

  void add_settings() {
    const Settings settings = settings_of(main_);
    document_.json["settings"] = settings_json(settings);
    std::string text;
    for (const char* name : {"mmap_threshold", "mmap_threshold_dynamic", "trim_threshold",
                             "top_pad", "mmap_max", "arena_max"}) {
      if (!settings.at(name)) continue;
      text += (text.empty() ? "  " : ", ") + setting_text(name, settings.at(name));
    }
    section("Settings at start", {text.empty() ? "  not known" : text});
  }

  void add_findings() {
    const std::vector<Finding> findings = find_findings(input_);
    Json rows = Json::array();
    std::vector<std::string> lines;
    for (const Finding& finding : findings) {
      rows.push_back({{"kind", finding.kind},
                      {"bytes", finding.bytes},
                      {"ns", finding.ns},
                      {"sentence", finding.sentence},
                      {"command", finding.command}});
      std::string sentence = finding.sentence;
      if (!sentence.empty()) sentence[0] = static_cast<char>(std::toupper(sentence[0]));
      lines.push_back(fmt::format("  {}. {}.", lines.size() / 2 + 1, sentence));
      lines.push_back("     " + finding.command);
    }
    document_.json["findings"] = std::move(rows);
    if (lines.empty()) lines.push_back("  No findings: nothing stands out.");
    // Text begins with what to do; JSON keeps the promised order.
    document_.sections.front().lines = std::move(lines);
  }

  const ReportInput& input_;
  Trace& trace_;
  schema::Database& db_;
  std::vector<const ProcessInfo*> selected_;
  const ProcessInfo& main_;
  std::string where_;
  std::pair<std::optional<int64_t>, int64_t> peaks_;  // RSS, held.
  Document document_;
};

}  // namespace

Document run_summary(const ReportInput& input) { return Summary(input).build(); }

}  // namespace heapledger::analyzer
