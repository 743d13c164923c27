// SPDX-License-Identifier: Apache-2.0
#include "analyzer/finalize/finalize.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string_view>
#include <utility>
#include <vector>

#include "analyzer/finalize/accounts.h"
#include "analyzer/finalize/fault_cost.h"
#include "analyzer/finalize/fidelity.h"
#include "analyzer/finalize/heap_map_pass.h"
#include "analyzer/finalize/ledger_pass.h"
#include "analyzer/finalize/repack_pass.h"
#include "analyzer/finalize/syscall_costs.h"
#include "analyzer/finalize/touching_frames.h"
#include "analyzer/replay/heap_image.h"
#include "analyzer/replay/replay_calls.h"
#include "analyzer/symbols/symbolize.h"
#include "schema/site_batch.h"
#include "schema/stack_batch.h"

namespace heapledger::analyzer {

namespace {

schema::SiteRow site_row(const SiteAccount& site) {
  schema::SiteRow row;
  const auto set = [&row](schema::SiteColumn column, auto value) {
    row[column] = static_cast<int64_t>(value);
  };
  set(schema::kSiteStack, site.stack);
  set(schema::kSiteCalls, site.calls);
  set(schema::kSiteBytes, site.bytes);
  set(schema::kSiteLiveBytesPeak, site.live_bytes_peak);
  set(schema::kSiteLiveBlocksPeak, site.live_blocks_peak);
  set(schema::kSiteLiveBytesEnd, site.live_bytes);
  set(schema::kSiteLiveBlocksEnd, site.live_blocks);
  set(schema::kSiteInheritedBytesEnd, site.inherited_bytes);
  set(schema::kSiteInheritedBlocksEnd, site.inherited_blocks);
  set(schema::kSiteTemporary, site.temporary);
  set(schema::kSiteFaults, site.faults);
  set(schema::kSiteSyscalls, site.syscalls);
  set(schema::kSiteSyscallNs, site.syscall_ns);
  set(schema::kSiteCallsWithSyscall, site.calls_with_syscall);
  set(schema::kSiteMappedBlocks, site.mapped_blocks);
  set(schema::kSiteMappedNs, site.mapped_ns);
  set(schema::kSiteGrowth, site.growth);
  set(schema::kSiteFirstNs, site.first_ns);
  set(schema::kSiteLastNs, site.last_ns);
  return row;
}

// One process: a replay, then rows.
class ProcessPass {
 public:
  ProcessPass(schema::Database& db, const TraceInfo& info, const ProcessInfo& process,
              const Replay* parent_at_fork, FidelityPass& models, TouchingFrames& frames,
              MapNotes& notes, int64_t ns_per_fault)
      : db_(db),
        info_(info),
        process_(process),
        parent_at_fork_(parent_at_fork),
        models_(models.feed(process)),
        frames_(frames),
        ns_per_fault_(ns_per_fault),
        start_ns_(process.start_ns.value_or(0)),
        end_ns_(process.end_ns.value_or(info.end_ns)),
        accounts_(start_ns_, end_ns_, process.events, notes.arena_history(process.id)),
        map_(start_ns_, end_ns_, process.forked),
        ledger_(db, notes, process.id) {}

  void replay_to_end() {
    ReplayOptions options;
    options.observer = &accounts_;
    options.player = &Replay::play_calls<Accounts, OpFeed>;
    options.attributions = [this](int64_t batch,
                                  std::span<const schema::FaultAttribution> attributions) {
      attributions_.emplace_back(batch, schema::encode_attribution(attributions));
    };
    options.damage = [this](const schema::Damage& damage) { damage_.push_back(damage); };
    options.parent_at_fork = parent_at_fork_;
    options.calls = models_.get();
    options.on_snapshot = [this](const Replay& now, const SnapshotMoment& moment) {
      ledger_.on_snapshot(now, moment);
    };
    options.moments = map_.moments();
    options.on_moment = [this](const Replay& now, int64_t time_ns) {
      map_.on_moment(now, time_ns, resident_known(now));
    };
    Replay replay(db_, info_, process_.id, options);
    replay.run_to_end();
    if (models_ != nullptr) models_->finish();
    accounts_.finish(replay);
    map_.finish(replay, std::max(end_ns_, replay.now_ns()), resident_known(replay));
    ledger_.finish(replay);
    replay.finish();
    const int64_t at_ns = std::max(end_ns_, replay.now_ns());
    make_images_on_the_way(replay);
    images_.emplace_back("exit", make_image(replay, at_ns));
    unmatched_ends_ = replay.unmatched_ends();
  }

  void write() {
    for (const auto& [batch, blob] : attributions_) {
      db_.prepare("UPDATE fault_batch SET attribution = ? WHERE id = ?").run_with(blob, batch);
    }
    write_call_counts();
    write_sites();
    write_timeline();
    write_usage();
    write_arena_use();
    write_heap_growth();
    write_fault_sites();
    write_syscall_costs(db_, process_.id);
    write_damage();
    if (accounts_.held_bytes_peak() == 0 && accounts_.calls() == 0) return;
    for (const auto& [name, image] : images_) write_image(name, image);
    map_.write(db_, process_.id);
  }

  // Its tables can be written once the models are done.
  LedgerPass take_ledger() { return std::move(ledger_); }

 private:
  // At the two moments that only the pass's end could tell.
  void make_images_on_the_way(Replay& replay) {
    struct Kept {
      Accounts::Moment moment;
      uint64_t step;
      int64_t at_ns;
      const char* name;
    };
    Kept moments[] = {
        {Accounts::kHeldPeak, accounts_.held_peak_step(), accounts_.held_peak_ns(), "peak"},
        {Accounts::kFreePeak, accounts_.free_peak_step(), accounts_.free_peak_ns(), "fragmented"}};
    if (moments[1].step < moments[0].step) std::swap(moments[0], moments[1]);
    for (const Kept& kept : moments) {
      images_.emplace_back(kept.name, make_image(replay.kept(kept.moment), kept.at_ns));
    }
  }

  HeapImage make_image(const HeapState& heap, int64_t at_ns) const {
    return make_heap_image(heap, at_ns, trim_settings_at(db_, process_, at_ns),
                           resident_known(heap));
  }

  bool resident_known(const HeapState& heap) const {
    return info_.faults_have_addresses() || heap.memory().held_resident_bytes() != 0;
  }

  void write_call_counts() {
    schema::Statement insert = db_.prepare("INSERT INTO call_count VALUES (?, ?, ?, ?)");
    for (const schema::EventKindRow& kind : schema::kEventKinds) {
      if (!schema::is_call(kind.kind)) continue;
      const auto& count = accounts_.call_counts()[static_cast<size_t>(kind.kind)];
      if (count.calls != 0) insert.run_with(process_.id, kind.name, count.calls, count.failed);
    }
  }

  void write_sites() {
    std::vector<schema::SiteRow> rows;
    for (const SiteAccount& site : accounts_.sites()) {
      if (!site.is_empty()) rows.push_back(site_row(site));
    }
    schema::write_sites(db_, process_.id, rows);
  }

  void write_timeline() {
    schema::Statement insert =
        db_.prepare("INSERT INTO timeline VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)");
    for (const TimelineRow& row : accounts_.timeline()) {
      std::optional<uint64_t> resident;
      if (info_.faults_have_addresses()) resident = row.resident_bytes;
      insert.run_with(process_.id, row.time_ns, row.live_bytes, row.live_blocks, row.held_bytes,
                      resident, row.calls, row.syscalls, row.faults);
    }
  }

  void write_usage() {
    const UsageCounts& usage = accounts_.usage();
    schema::Statement size_row =
        db_.prepare("INSERT INTO size_class VALUES (?, ?, ?, ?, ?, ?, ?, ?)");
    schema::Statement lifetime_row = db_.prepare("INSERT INTO lifetime VALUES (?, ?, ?, ?, ?)");
    LifetimeClass live;
    for (size_t i = 0; i < UsageCounts::kClasses; ++i) {
      const uint64_t least = i == 0 ? 0 : uint64_t{1} << (i - 1);
      const uint64_t most = i == 0 ? 0 : least * 2 - 1;
      const SizeClass& size = usage.sizes()[i];
      if (size.blocks != 0) {
        size_row.run_with(process_.id, least, most, size.blocks, size.bytes, size.usable_bytes,
                          size.live_blocks, size.live_bytes);
      }
      live.blocks += size.live_blocks;
      live.bytes += size.live_bytes;
      const LifetimeClass& lifetime = usage.lifetimes()[i];
      if (lifetime.blocks == 0) continue;
      lifetime_row.run_with(process_.id, least, most, lifetime.blocks, lifetime.bytes);
    }
    if (live.blocks != 0) {
      lifetime_row.run_with(process_.id, nullptr, nullptr, live.blocks, live.bytes);
    }
    schema::Statement thread_row =
        db_.prepare("INSERT INTO thread_use VALUES (?, ?, ?, ?, ?, ?, ?, ?)");
    for (size_t i = 0; i < usage.threads().size(); ++i) {
      const ThreadUse& use = usage.threads()[i];
      if (use.blocks == 0 && use.freed == 0 && use.freed_by_others == 0) continue;
      thread_row.run_with(process_.id, i, use.blocks, use.bytes, use.freed, use.freed_bytes,
                          use.freed_foreign, use.freed_by_others);
    }
  }

  void write_arena_use() {
    schema::Statement insert = db_.prepare("INSERT INTO arena_use VALUES (?, ?, ?, ?, ?, ?, ?, ?)");
    const auto& arenas = accounts_.arena_use().arenas();
    for (size_t arena = 0; arena < arenas.size(); ++arena) {
      for (size_t thread = 0; thread < arenas[arena].size(); ++thread) {
        const ArenaThreadUse& use = arenas[arena][thread];
        if (use.is_empty()) continue;
        insert.run_with(process_.id, arena, thread, use.blocks, use.bytes, use.freed,
                        use.freed_bytes, use.freed_foreign);
      }
    }
    constexpr size_t kStacksMax = 50;
    schema::Statement foreign = db_.prepare("INSERT INTO foreign_free VALUES (?, ?, ?, ?, ?)");
    const std::vector<ForeignFrees> frees = accounts_.arena_use().foreign_frees();
    ForeignFrees rest;
    for (size_t i = 0; i < frees.size(); ++i) {
      if (i < kStacksMax) {
        foreign.run_with(process_.id, frees[i].stack, 1, frees[i].blocks, frees[i].bytes);
      }
      rest.blocks += i < kStacksMax ? 0 : frees[i].blocks;
      rest.bytes += i < kStacksMax ? 0 : frees[i].bytes;
    }
    if (frees.size() <= kStacksMax) return;
    foreign.run_with(process_.id, nullptr, frees.size() - kStacksMax, rest.blocks, rest.bytes);
  }

  void write_heap_growth() {
    schema::Statement insert = db_.prepare("INSERT INTO heap_growth VALUES (?, ?, ?, ?, ?, ?, ?)");
    for (const StackGrowth& row : accounts_.heap_growth().rows()) {
      insert.run_with(process_.id, row.stack, row.growths, row.bytes, row.failed_reuses,
                      row.failed_bytes, row.free_bytes_max);
    }
  }

  void write_fault_sites() {
    // Many instructions of one line are one row.
    struct Key {
      uint32_t stack;
      std::optional<int64_t> frame;
      Region region;
      bool kernel;
      auto operator<=>(const Key&) const = default;
    };
    std::map<Key, FaultCounts> rows;
    for (const auto& [key, counts] : accounts_.fault_sites()) {
      const auto frame = key.ip == 0 ? std::nullopt : frames_.frame_of(process_.id, key.ip);
      rows[{key.stack, frame, key.region, key.kernel}].add(counts);
    }
    schema::Statement insert =
        db_.prepare("INSERT INTO fault_site VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
    const auto after = [](const FaultCounts& counts, Release release) {
      return counts.after[static_cast<size_t>(release)];
    };
    for (const auto& [key, counts] : rows) {
      insert.run_with(process_.id, key.stack, key.frame, region_name(key.region), counts.faults,
                      counts.repeat_faults, counts.faults * info_.page_bytes,
                      static_cast<int64_t>(counts.faults) * ns_per_fault_, key.kernel ? 1 : 0,
                      counts.cow_faults, counts.zero_upgrades, after(counts, Release::kMunmap),
                      after(counts, Release::kTrim), after(counts, Release::kMallocTrim),
                      after(counts, Release::kMadvise));
    }
  }

  void write_image(const char* at, const HeapImage& image) {
    db_.prepare("INSERT INTO fragmentation VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
        .run_with(process_.id, at, image.at_ns, image.held_bytes, image.live_bytes,
                  image.requested_bytes, image.free_bytes, image.free_resident_bytes,
                  image.external(), image.internal(), image.largest_free_bytes, image.cached_bytes,
                  image.fast_bytes, image.top_bytes);
    schema::Statement histogram =
        db_.prepare("INSERT INTO free_histogram VALUES (?, ?, ?, ?, ?, ?)");
    for (const HistogramRow& row : image.free_histogram) {
      histogram.run_with(process_.id, at, row.bytes_min, row.bytes_max, row.chunks, row.bytes);
    }
    schema::Statement pinner =
        db_.prepare("INSERT INTO pinner VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
    for (const Pinner& row : image.pinners) {
      std::optional<uint32_t> thread;
      if (row.thread != 0) thread = row.thread;
      pinner.run_with(process_.id, at, row.heap, row.stack, chunk_state_name(row.state), thread,
                      row.bytes_released_if_freed, row.held_bytes, row.held_resident_bytes,
                      row.own_bytes, row.blocks, row.cached_blocks, row.age_ns);
    }
    write_page_holders(at, image.page_holders);
  }

  void write_page_holders(const char* at, const std::vector<PageHolder>& holders) {
    constexpr size_t kRowsMax = 200;
    schema::Statement insert = db_.prepare("INSERT INTO page_holder VALUES (?, ?, ?, ?, ?, ?, ?)");
    const size_t shown = std::min(kRowsMax, holders.size());
    for (size_t i = 0; i < shown; ++i) {
      const PageHolder& row = holders[i];
      insert.run_with(process_.id, at, row.stack, 1, row.pages, row.live_bytes, row.free_bytes);
    }
    if (shown == holders.size()) return;
    PageHolder rest;
    for (size_t i = shown; i < holders.size(); ++i) {
      rest.pages += holders[i].pages;
      rest.live_bytes += holders[i].live_bytes;
      rest.free_bytes += holders[i].free_bytes;
    }
    insert.run_with(process_.id, at, nullptr, holders.size() - shown, rest.pages, rest.live_bytes,
                    rest.free_bytes);
  }

  void write_damage() {
    const auto note = [this](const std::string& text) {
      db_.prepare("INSERT INTO mark (time_ns, process, kind, text) VALUES (?, ?, 'note', ?)")
          .run_with(start_ns_, process_.id, text);
    };
    for (const schema::Damage& damage : damage_) {
      note(fmt::format("batch {}, {} rows, could not be read and is left out: {}", damage.batch,
                       damage.rows, damage.reason));
    }
    if (unmatched_ends_ != 0) {
      note(
          fmt::format("frees of blocks whose allocation is not in the trace: {}", unmatched_ends_));
    }
  }

  schema::Database& db_;
  const TraceInfo& info_;
  const ProcessInfo& process_;
  const Replay* parent_at_fork_;    // Null: not forked, or to be found by the replay itself.
  std::unique_ptr<OpFeed> models_;  // Null: they need none.
  TouchingFrames& frames_;
  int64_t ns_per_fault_;
  int64_t start_ns_, end_ns_;
  Accounts accounts_;
  HeapMapPass map_;
  LedgerPass ledger_;
  std::vector<std::pair<const char*, HeapImage>> images_;  // By name.
  uint64_t unmatched_ends_ = 0;
  std::vector<schema::Damage> damage_;
  std::vector<std::pair<int64_t, std::vector<uint8_t>>> attributions_;
};

// For each process that forks, one replay that moves from fork to fork, so that a shell with a
// thousand children is played twice, not a thousand times. Invariants: processes are asked for in
// order of start, each once; a replay is dropped with its last child.
class ForkPoints {
 public:
  ForkPoints(schema::Database& db, const TraceInfo& info) : db_(db), info_(info) {
    for (const ProcessInfo& process : info.processes) {
      if (is_forked(process)) ++children_[*process.parent];
    }
  }

  // A replay of the parent at the fork of `process`, or null. Valid until the next call.
  const Replay* parent_at_fork(const ProcessInfo& process) {
    if (finished_ != 0) replays_.erase(std::exchange(finished_, 0));
    const Replay* found = nullptr;
    if (is_forked(process)) {
      if (const auto replay = replays_.find(*process.parent); replay != replays_.end()) {
        replay->second->run_to_time(*process.start_ns);
        found = replay->second.get();
      }
      if (--children_[*process.parent] == 0) finished_ = *process.parent;
    }
    if (children_.contains(process.id)) {
      ReplayOptions options;
      options.damage = [](const schema::Damage&) {};  // Noted where the process itself is played.
      options.parent_at_fork = found;
      replays_[process.id] = std::make_unique<Replay>(db_, info_, process.id, options);
    }
    return found;
  }

 private:
  static bool is_forked(const ProcessInfo& process) {
    return process.recorded && process.forked && process.parent && process.start_ns;
  }

  schema::Database& db_;
  const TraceInfo& info_;
  std::map<int64_t, int64_t> children_;  // Forks still to come, by parent.
  std::map<int64_t, std::unique_ptr<Replay>> replays_;
  int64_t finished_ = 0;
};

constexpr const char* kOwnTables[] = {
    "call_count",    "site",        "site_batch",   "timeline",   "fragmentation", "free_histogram",
    "pinner",        "fault_site",  "fidelity",     "balance",    "ledger",        "ledger_region",
    "ledger_moment", "page_holder", "size_class",   "lifetime",   "thread_use",    "syscall_cost",
    "heap_map",      "arena_use",   "foreign_free", "heap_growth"};

// While it lives, changed pages stay in memory until the commit, however many: another connection
// of ours reads, and writing them earlier would wait for it.
class NoSpill {
 public:
  explicit NoSpill(schema::Database& db) : db_(db) { db_.exec("PRAGMA cache_spill = OFF"); }
  ~NoSpill() { db_.exec("PRAGMA cache_spill = ON"); }
  NoSpill(const NoSpill&) = delete;
  NoSpill& operator=(const NoSpill&) = delete;

 private:
  schema::Database& db_;
};

// As schema.sql of today has it: the trace may be from a version whose pass wrote less.
void make_table_anew(schema::Database& db, const std::string& table) {
  const std::string_view schema = schema::schema_sql();
  const size_t start = schema.find("CREATE TABLE " + table + " (");
  const size_t end = schema.find(';', schema.find("\n)", start));
  if (start == std::string_view::npos || end == std::string_view::npos) {
    throw std::logic_error("schema.sql has no table " + table);
  }
  // Without a table of the name there is perhaps the virtual one, which cannot be dropped.
  const std::string asked = "SELECT 1 FROM sqlite_schema WHERE name = '" + table + "'";
  if (db.query_int(asked)) db.exec("DROP TABLE " + table);
  db.exec(std::string(schema.substr(start, end - start)));
}

}  // namespace

bool is_finalized(schema::Database& db) {
  return schema::meta_int(db, "finalized") == kFinalizeVersion;
}

void finalize(schema::Database& db, const SymbolOptions& symbols) {
  {
    // By itself, since it may be more than should stay in memory; done is done.
    schema::Transaction unpacking(db);
    schema::unpack_stacks(db);
    unpacking.commit();
  }
  schema::Transaction transaction(db);
  if (is_finalized(db)) return;  // Somebody else was faster.
  for (const char* table : kOwnTables) make_table_anew(db, table);
  // Here and not in schema.sql: a recording should not pay for them with every row.
  db.exec("CREATE INDEX IF NOT EXISTS syscall_by_process ON syscall(process, time_ns)");
  db.exec("CREATE INDEX IF NOT EXISTS policy_event_by_process ON policy_event(process, time_ns)");
  db.exec("CREATE INDEX IF NOT EXISTS snapshot_by_process ON snapshot(process)");
  db.exec("CREATE INDEX IF NOT EXISTS residency_by_snapshot ON residency(snapshot)");
  const TraceInfo info = load_trace_info(db);
  const NoSpill no_spill(db);
  FidelityPass fidelity(db, info, ledger_times(db, info));
  SymbolPass names(db, symbols);
  RepackPass repack(db);
  const int64_t ns_per_fault = fault_cost_ns(db);
  TouchingFrames frames(db);
  ForkPoints forks(db, info);
  MapNotes notes(db, info);
  std::vector<LedgerPass> ledgers;
  for (const ProcessInfo* process : recorded_by_start(info)) {
    ProcessPass pass(db, info, *process, forks.parent_at_fork(*process), fidelity, frames, notes,
                     ns_per_fault);
    pass.replay_to_end();
    repack.finish();  // What is written from here on has room where that was.
    pass.write();
    ledgers.push_back(pass.take_ledger());
  }
  repack.finish();  // No process may have been recorded.
  schema::unpack_sites(db);
  names.finish();
  fidelity.finish();
  for (LedgerPass& ledger : ledgers) ledger.write(fidelity);
  schema::set_meta(db, "finalized", kFinalizeVersion);
  transaction.commit();
}

}  // namespace heapledger::analyzer
