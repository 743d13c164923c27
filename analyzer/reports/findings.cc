// SPDX-License-Identifier: Apache-2.0
#include "analyzer/reports/findings.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "analyzer/render/units.h"
#include "analyzer/reports/saturating.h"

namespace heapledger::analyzer {

namespace {

// Below these nobody would act.
constexpr int64_t kPinnedBytesMin = 2 << 20;
constexpr double kPinnedShareMin = 0.05;   // Of what is held.
constexpr double kLastingShareMin = 0.02;  // Of the run.
constexpr int64_t kPinnerRowsMax = 6;
constexpr int64_t kChurnBlocksMin = 100;
constexpr int64_t kCostNsMin = 1'000'000;
constexpr double kCostShareMin = 0.01;  // Of the run.
constexpr int64_t kGrowthBytesMin = 256 << 10;
constexpr double kGrowthShareMin = 0.01;  // Of the live peak.
constexpr int64_t kGrowthPartsMin = 10;   // Of the 16 that accounts.h cuts a run into.
constexpr int64_t kWasteBytesMin = 1 << 20;
constexpr double kWasteShareMin = 0.25;       // Of what is held at the peak.
constexpr int64_t kSpreadBytesMin = 2 << 20;  // Free in arenas of threads,
constexpr double kSpreadShareMin = 0.1;       // and of what all of these have resident.
constexpr double kForeignShareMin = 0.1;      // Of the frees there.
constexpr double kIncompleteShareMin = 0.01;  // Of the calls.
constexpr double kStallShareMin = 0.25;       // Of the run.
constexpr int kPerKindMax = 3;

class Finder {
 public:
  Finder(const ReportInput& input, const ProcessInfo& process)
      : trace_(input.trace()), db_(trace_.db), process_(process) {
    run_ns_ = std::max<int64_t>(1, difference_of(process.end_ns.value_or(trace_.info.end_ns),
                                                 process.start_ns.value_or(0)));
    held_peak_ = std::max<int64_t>(
        1, integer("SELECT held_bytes FROM fragmentation WHERE at = 'peak' AND process = {}"));
    ns_per_fault_ = schema::meta_int(db_, "ns_per_fault").value_or(0);
    many_ = trace_.info.processes.size() > 1;
  }

  std::vector<Finding> find() {
    find_pinned();
    find_churn();
    find_refaults();
    find_growth();
    find_waste();
    find_spread();
    find_limits();
    return std::move(findings_);
  }

 private:
  int64_t integer(const char* sql) {
    return db_.query_int(fmt::format(fmt::runtime(sql), process_.id)).value_or(0);
  }

  std::string command(const char* report) const {
    const bool plain = trace_.path.find_first_not_of(
                           "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                           "_-./+,:@%") == std::string::npos;
    std::string text =
        fmt::format("heapledger {} {}", report, plain ? trace_.path : "'" + trace_.path + "'");
    if (many_) text += fmt::format(" --process {}", process_.pid);
    return text;
  }

  std::string site(int64_t stack) { return stack_label(trace_.stacks->stack(stack)); }

  void add(Finding finding) {
    finding.weight = std::max(static_cast<double>(finding.bytes) / static_cast<double>(held_peak_),
                              static_cast<double>(finding.ns) / static_cast<double>(run_ns_));
    if (many_) finding.sentence += fmt::format(" (process {})", process_.pid);
    findings_.push_back(std::move(finding));
  }

  bool is_dear(int64_t ns) const {
    return ns >= kCostNsMin &&
           static_cast<double>(ns) >= kCostShareMin * static_cast<double>(run_ns_);
  }

  // Topmost rows of a heap's end, as many as hold something together.
  struct Pins {
    int64_t bytes = 0;  // Resident where that is known.
    int64_t held = 0, own = 0, released = 0;
    int64_t blocks = 0, cached = 0, freed = 0;
    std::vector<int64_t> stacks;  // Of live blocks.
    int64_t freed_stack = 0;      // Of the topmost freed chunk.

    void add(schema::Statement& row) {
      const bool is_live = row.column_text(1) == "live";
      add(held, row.column_int(2));
      add(bytes, row.column_optional_int(3).value_or(row.column_int(2)));
      add(own, row.column_int(4));
      add(released, row.column_int(5));
      if (is_live) {
        add(blocks, row.column_int(6));
        add(cached, row.column_int(7));
        stacks.push_back(row.column_int(0));
      } else {
        if (freed == 0) freed_stack = row.column_int(0);
        add(freed, row.column_int(6));
      }
    }

    static void add(int64_t& sum, int64_t value) { sum = sum_of(sum, value); }
  };

  std::string pin_names(const Pins& pins) {
    if (pins.stacks.empty()) {
      return fmt::format("{} in threads' caches, allocated at {}",
                         counted(pins.freed, "freed chunk"), site(pins.freed_stack));
    }
    std::string names = counted(pins.blocks, "block") + " allocated at " + site(pins.stacks[0]);
    if (pins.stacks.size() == 2) names += " and " + site(pins.stacks[1]);
    if (pins.stacks.size() > 2) {
      names += fmt::format(" and {} other stacks", pins.stacks.size() - 1);
    }
    if (pins.freed != 0) {
      names += fmt::format(" and {} in threads' caches", counted(pins.freed, "freed chunk"));
    }
    return names;
  }

  // What their free() would do.
  static std::string pin_remedy(const Pins& pins) {
    if (pins.blocks == 0) return "";
    if (pins.cached == pins.blocks) {
      return fmt::format("; freed, {} to the thread's cache and {} back nothing until {} it",
                         pins.blocks == 1 ? "it goes" : "they go",
                         pins.blocks == 1 ? "gives" : "give",
                         pins.blocks == 1 ? "it leaves" : "they leave");
    }
    if (pins.released == 0) return "";
    return fmt::format("; freeing {} gives it back", pins.blocks == 1 ? "it" : "them");
  }

  // The smallest group of topmost stacks that holds most of what they hold together. Blocks that
  // are most of the memory themselves hold nothing back: they are what the heap is for.
  Finding pinned_at(const std::string& at) {
    schema::Statement select = db_.prepare(
        "SELECT stack, state, held_bytes, held_resident_bytes, own_bytes, bytes_released_if_freed,"
        " blocks, cached_blocks FROM pinner WHERE process = ? AND at = ? AND heap = 0"
        " ORDER BY rowid LIMIT ?");
    select.bind_all(process_.id, at, kPinnerRowsMax);
    Finding finding;
    Pins pins;
    int64_t free_bytes = 0;
    while (select.step()) {
      const int64_t more =
          std::max<int64_t>(0, difference_of(select.column_int(2), select.column_int(4)));
      free_bytes = sum_of(free_bytes, more);
      pins.add(select);
      if (more < kPinnedBytesMin || more < free_bytes / 2 || pins.own > free_bytes) continue;
      finding.bytes = pins.bytes;
      finding.sentence = fmt::format("free below the break, held by {}: {} {}{}", pin_names(pins),
                                     human_bytes(pins.bytes),
                                     at == "exit"         ? "at exit"
                                     : at == "fragmented" ? "when most was free"
                                                          : "at the peak",
                                     pin_remedy(pins));
    }
    return finding;
  }

  // Whether so much was free for long enough to matter. Between two calls of free() in a row the
  // last block always holds the rest for a moment.
  bool is_lasting() {
    schema::Statement select = db_.prepare(
        "WITH t AS (SELECT held_bytes - live_bytes AS unused, lead(time_ns, 1, ?2) OVER (ORDER BY"
        " time_ns) - time_ns AS ns FROM timeline WHERE process = ?1) SELECT coalesce(sum(ns), 0)"
        " FROM t WHERE unused >= (SELECT 0.9 * (held_bytes - live_bytes) FROM fragmentation"
        " WHERE process = ?1 AND at = 'fragmented')");
    select.bind_all(process_.id, process_.end_ns.value_or(trace_.info.end_ns));
    return select.step() && static_cast<double>(select.column_int(0)) >=
                                kLastingShareMin * static_cast<double>(run_ns_);
  }

  void find_pinned() {
    std::string at = "exit";
    Finding worst = pinned_at(at);
    for (const char* moment : {"fragmented", "peak"}) {
      Finding other = pinned_at(moment);
      if (other.bytes <= worst.bytes) continue;
      if (moment == std::string_view("fragmented") && !is_lasting()) continue;
      worst = std::move(other);
      at = moment;
    }
    if (worst.bytes < kPinnedBytesMin) return;
    if (static_cast<double>(worst.bytes) < kPinnedShareMin * static_cast<double>(held_peak_))
      return;
    worst.kind = "pinned";
    worst.command = command("fragmentation") + " --at " + at;
    add(std::move(worst));
  }

  void find_churn() {
    schema::Statement select = db_.prepare(
        "SELECT site.stack, mapped_blocks, mapped_ns, (SELECT coalesce(sum(fault_site.faults), 0)"
        " FROM fault_site WHERE fault_site.process = site.process AND fault_site.stack = site.stack"
        " AND region = 'block') AS block_faults FROM site"
        " WHERE process = ?1 AND mapped_blocks >= ?2 AND mapped_blocks > live_blocks_end * 2"
        " ORDER BY mapped_ns + block_faults * ?3 DESC LIMIT ?4");
    select.bind_all(process_.id, kChurnBlocksMin, ns_per_fault_, kPerKindMax);
    while (select.step()) {
      const int64_t faults = select.column_int(3);
      const int64_t fault_ns = product_of(faults, ns_per_fault_);
      const int64_t ns = sum_of(select.column_int(2), fault_ns);
      if (!is_dear(ns)) continue;
      Finding finding;
      finding.kind = "churn";
      finding.ns = ns;
      finding.sentence =
          fmt::format("{} allocated at {} {} mapped and unmapped one by one: {} in mmap and munmap",
                      counted(select.column_int(1), "block"), site(select.column_int(0)),
                      select.column_int(1) == 1 ? "was" : "were", human_ns(select.column_int(2)));
      if (faults != 0) {
        finding.sentence +=
            fmt::format(" and about {} in {}", human_ns(fault_ns), counted(faults, "page fault"));
      }
      if (process_.mmap_threshold_dynamic == 0 && process_.mmap_threshold) {
        finding.sentence += fmt::format(
            "; mmap_threshold is fixed at {}, which turns its "
            "adaptation off",
            human_bytes(*process_.mmap_threshold));
      }
      finding.command = command("syscalls");
      add(std::move(finding));
    }
  }

  // Pages of the chunked heap that came back; those of mapped blocks are churn.
  void find_refaults() {
    const int64_t repeats = integer(
        "SELECT sum(repeat_faults) FROM fault_site WHERE region IN ('heap', 'arena') AND process = "
        "{}");
    const int64_t ns = product_of(repeats, ns_per_fault_);
    if (!is_dear(ns)) return;
    schema::Statement select = db_.prepare(
        "SELECT stack, sum(repeat_faults) AS n FROM fault_site WHERE process = ? AND region = "
        "'heap' AND stack != 0 GROUP BY stack ORDER BY n DESC, stack LIMIT 1");
    select.bind(1, process_.id);
    const int64_t trims = integer(
        "SELECT count(*) FROM syscall WHERE cause IN ('trim top', 'trim heap', 'release pages')"
        " AND process = {}");
    Finding finding;
    finding.kind = "refault";
    finding.ns = ns;
    finding.bytes = product_of(repeats, static_cast<int64_t>(trace_.info.page_bytes));
    finding.sentence =
        fmt::format("{} of heap were given back to the system ({}) and touched again: about {}",
                    counted(repeats, "page"), counted(trims, "trim"), human_ns(ns));
    if (select.step()) {
      finding.sentence += ", most for blocks allocated at " + site(select.column_int(0));
    }
    finding.command = command("faults");
    add(std::move(finding));
  }

  void find_growth() {
    const int64_t live_peak = integer("SELECT sum(live_bytes_peak) FROM site WHERE process = {}");
    schema::Statement select = db_.prepare(
        "SELECT stack, live_bytes_end - inherited_bytes_end AS own, live_blocks_end -"
        " inherited_blocks_end FROM site WHERE process = ?1 AND growth >= ?2 AND own >= ?3"
        " ORDER BY own DESC, stack LIMIT ?4");
    const auto least = std::max(
        kGrowthBytesMin, static_cast<int64_t>(kGrowthShareMin * static_cast<double>(live_peak)));
    select.bind_all(process_.id, kGrowthPartsMin, least, kPerKindMax);
    while (select.step()) {
      Finding finding;
      finding.kind = "growth";
      finding.bytes = select.column_int(1);
      finding.sentence = fmt::format(
          "growing through the whole run and live at exit, like a leak: {} in {} allocated at {}",
          human_bytes(finding.bytes), counted(select.column_int(2), "block"),
          site(select.column_int(0)));
      finding.command = command("leaks");
      add(std::move(finding));
    }
  }

  // Blocks so small that header and rounding are most of what they take, at the peak.
  void find_waste() {
    // glibc's chunk for a request of the mean size: 8 bytes of header, a multiple of 16, at least
    // 32.
    schema::Statement select = db_.prepare(
        "WITH s AS (SELECT stack, live_blocks_peak AS blocks, live_bytes_peak AS bytes,"
        " max(32, (live_bytes_peak / live_blocks_peak + 23) / 16 * 16) AS chunk FROM site"
        " WHERE process = ?1 AND live_blocks_peak > 0)"
        " SELECT stack, blocks, bytes / blocks, chunk, blocks * chunk - bytes AS waste FROM s"
        " WHERE waste > bytes ORDER BY waste DESC, stack LIMIT ?2");
    select.bind_all(process_.id, kPerKindMax);
    while (select.step()) {
      Finding finding;
      finding.kind = "waste";
      finding.bytes = select.column_int(4);
      if (finding.bytes < kWasteBytesMin ||
          static_cast<double>(finding.bytes) < kWasteShareMin * static_cast<double>(held_peak_)) {
        continue;
      }
      finding.sentence = fmt::format(
          "header and rounding of {} of about {} allocated at {}: {} at the peak, {} for each",
          counted(select.column_int(1), "block"), human_bytes(select.column_int(2)),
          site(select.column_int(0)), human_bytes(finding.bytes),
          human_bytes(difference_of(select.column_int(3), select.column_int(2))));
      finding.command = command("peak");
      add(std::move(finding));
    }
  }

  // Memory that is free in arenas whose blocks other threads free: each goes back to the arena it
  // came from, and no other thread's request can use it there.
  void find_spread() {
    schema::Statement use = db_.prepare(
        "SELECT count(DISTINCT arena), sum(freed), sum(freed_foreign) FROM arena_use"
        " WHERE process = ? AND arena > 1");
    use.bind(1, process_.id);
    if (!use.step() || use.column_int(0) < 2) return;
    const int64_t freed = use.column_int(1);
    const int64_t foreign = use.column_int(2);
    if (static_cast<double>(foreign) < kForeignShareMin * static_cast<double>(freed)) return;
    schema::Statement lines = db_.prepare(
        "SELECT at, sum(CASE WHEN name LIKE 'free%' THEN bytes ELSE 0 END) AS unused, sum(bytes)"
        " FROM ledger WHERE process = ? AND region LIKE 'arena %' GROUP BY at"
        " ORDER BY unused DESC, at LIMIT 1");
    lines.bind(1, process_.id);
    if (!lines.step()) return;
    Finding finding;
    finding.kind = "spread";
    finding.bytes = lines.column_int(1);
    if (finding.bytes < kSpreadBytesMin ||
        static_cast<double>(finding.bytes) <
            kSpreadShareMin * static_cast<double>(lines.column_int(2))) {
      return;
    }
    finding.sentence = fmt::format(
        "{} free {} in {} arenas where other threads freed {} of {}", human_bytes(finding.bytes),
        lines.column_text(0) == "exit" ? "at exit" : "at the peak", use.column_int(0),
        human_count(foreign), counted(freed, "block"));
    schema::Statement stack = db_.prepare(
        "SELECT stack FROM foreign_free WHERE process = ? AND stack IS NOT NULL"
        " ORDER BY blocks DESC, stack LIMIT 1");
    stack.bind(1, process_.id);
    if (stack.step()) {
      finding.sentence += ", most allocated at " + site(stack.column_int(0));
    }
    finding.command = command("threads");
    add(std::move(finding));
  }

  // What the recording itself could not do.
  void find_limits() {
    std::vector<std::string> limits;
    if (process_.events_lost != 0) {
      limits.push_back(counted(process_.events_lost, "call") + " lost");
    }
    if (process_.perf_lost.value_or(0) != 0) {
      limits.push_back(counted(*process_.perf_lost, "page fault") + " lost");
    }
    if (static_cast<double>(process_.incomplete_stacks) >
        kIncompleteShareMin * static_cast<double>(process_.events)) {
      limits.push_back(counted(process_.incomplete_stacks, "call stack") + " cut short");
    }
    Finding finding;
    finding.kind = "limits";
    finding.command = command("summary");
    for (const std::string& limit : limits) {
      finding.sentence += finding.sentence.empty()
                              ? "the recording met its limits, so figures may be too low: "
                              : ", ";
      finding.sentence += limit;
    }
    // Waiting loses nothing, but the run took that much longer.
    if (static_cast<double>(process_.stall_ns) > kStallShareMin * static_cast<double>(run_ns_)) {
      finding.ns = process_.stall_ns;
      finding.sentence +=
          fmt::format("{}the program waited {} until its events were taken, so times are too long",
                      finding.sentence.empty() ? "" : "; ", human_ns(process_.stall_ns));
    }
    if (!finding.sentence.empty()) add(std::move(finding));
  }

  Trace& trace_;
  schema::Database& db_;
  const ProcessInfo& process_;
  int64_t run_ns_ = 1;
  int64_t held_peak_ = 1;
  int64_t ns_per_fault_ = 0;
  bool many_ = false;
  std::vector<Finding> findings_;
};

}  // namespace

std::vector<Finding> find_findings(const ReportInput& input) {
  std::vector<Finding> all;
  for (const ProcessInfo* process : selected_processes(input)) {
    for (Finding& finding : Finder(input, *process).find()) all.push_back(std::move(finding));
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const Finding& a, const Finding& b) { return a.weight > b.weight; });
  return all;
}

}  // namespace heapledger::analyzer
