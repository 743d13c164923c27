// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/trace_writer.h"

#include <fcntl.h>
#include <sqlite3.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "interposer/heap/os.h"
#include "schema/error.h"

namespace heapledger::collector {
namespace {

constexpr std::chrono::seconds kCommitEvery{1};
constexpr uint64_t kCommitBytes = uint64_t{256} << 10;

constexpr std::string_view kProcessSql =
    "INSERT OR REPLACE INTO process(id, pid, ppid, parent, forked, image, exe, command, recorded, "
    "reason, start_ns, end_ns, ended_by, exit_status, signal, mmap_threshold, "
    "mmap_threshold_dynamic, trim_threshold, top_pad, mmap_max, arena_max, tcache_count, "
    "heap_start, events, events_lost, incomplete_stacks, stacks_compared, stacks_mismatched, "
    "stacks_incomparable, stall_ns, recorder_syscalls, "
    "rusage_start_minor, rusage_start_major, rusage_minor, rusage_major, perf_minor, perf_major, "
    "perf_lost, rss_peak_bytes) VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,"
    "?,?,?,?,?,?,?,?,?)";

std::optional<std::string_view> text_or_null(const std::string& text) {
  return text.empty() ? std::nullopt : std::optional<std::string_view>(text);
}

template <typename T>
std::optional<T> id_or_null(T id) {
  return id == 0 ? std::nullopt : std::optional<T>(id);
}

void append_varint(std::vector<uint8_t>& bytes, uint64_t value) {
  for (; value >= 0x80; value >>= 7) bytes.push_back(static_cast<uint8_t>(value | 0x80));
  bytes.push_back(static_cast<uint8_t>(value));
}

// Enough for SQLite's journal and pages of a small transaction. Not kept where the file system
// cannot, or has no room as it is.
UniqueFd keep_room(const std::string& path) {
  constexpr off_t kBallastBytes = 1 << 20;
  const size_t slash = path.rfind('/');
  const std::string folder = slash == path.npos ? "." : path.substr(0, slash + 1);
  UniqueFd file(open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (file && fallocate(file.get(), 0, 0, kBallastBytes) != 0) file.reset();
  return file;
}

// An anonymous mapping is the allocator's when it holds most of it: the kernel joins neighbouring
// mappings into one line.
RegionKind refined_kind(const MemoryRegion& region, const MappedRanges& ranges) {
  if (region.kind != RegionKind::kAnonymous && region.kind != RegionKind::kThreadStack) {
    return region.kind;
  }
  const bool mostly = mapped_bytes(ranges, region.start, region.end) * 2 > region.size_bytes();
  return mostly ? RegionKind::kBlock : region.kind;
}

}  // namespace

TraceWriter::TraceWriter(const std::string& path, bool overwrite)
    : db_(schema::create_trace(path, overwrite)), ballast_(keep_room(path)) {
  db_.exec("PRAGMA journal_mode = TRUNCATE; PRAGMA synchronous = OFF; PRAGMA cache_size = -16384;");
  process_ = db_.prepare(kProcessSql);
  thread_ = db_.prepare("INSERT OR REPLACE INTO thread VALUES(?,?,?,?,?,?,?,?,?)");
  module_ = db_.prepare("INSERT INTO module VALUES(?,?,?,?,?,?,?,?,NULL)");
  module_end_ = db_.prepare("UPDATE module SET end_ns = ? WHERE id = ?");
  frame_ = db_.prepare("INSERT INTO frame VALUES(?,?,?)");
  nodes_ = db_.prepare("INSERT INTO stack_batch VALUES(?,?,?)");
  syscall_ = db_.prepare("INSERT INTO syscall VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)");
  policy_ = db_.prepare("INSERT INTO policy_event VALUES(?,?,?,?,?,?,?)");
  mark_ = db_.prepare("INSERT INTO mark VALUES(?,?,?,?,?,?)");
  calls_ = db_.prepare("INSERT INTO event_batch VALUES(NULL,?,?,?,?,?)");
  faults_ = db_.prepare("INSERT INTO fault_batch VALUES(NULL,?,?,?,?,?,NULL)");
  snapshot_ = db_.prepare("INSERT INTO snapshot VALUES(NULL,?,?,?,?,?,?,?,?)");
  // The kernel says that lines never overlap; a recording should not end by it if they did.
  region_ = db_.prepare("INSERT OR IGNORE INTO region VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?)");
  residency_ = db_.prepare("INSERT INTO residency VALUES(?,?,?,?,?)");
}

void TraceWriter::begin() {
  if (open_) return;
  db_.exec("BEGIN");
  open_ = true;
  packed_bytes_ = 0;
  begun_ = std::chrono::steady_clock::now();
}

void TraceWriter::commit() {
  if (!open_) return;
  db_.exec("COMMIT");
  open_ = false;
}

void TraceWriter::limit_file_pages(uint64_t pages) {
  db_.exec("PRAGMA max_page_count = " + std::to_string(pages));
}

void TraceWriter::limit_file_bytes(uint64_t bytes) {
  const int64_t page_bytes = db_.query_int("PRAGMA page_size").value_or(1);
  limit_file_pages(std::min<uint64_t>(bytes / static_cast<uint64_t>(page_bytes), INT32_MAX));
}

uint64_t TraceWriter::file_bytes() {
  const int64_t pages = db_.query_int("PRAGMA page_count").value_or(0);
  return static_cast<uint64_t>(pages * db_.query_int("PRAGMA page_size").value_or(0));
}

bool TraceWriter::is_commit_due() const {
  if (!open_) return false;
  const bool is_old = std::chrono::steady_clock::now() - begun_ >= kCommitEvery;
  return is_old || packed_bytes_ >= kCommitBytes;
}

void TraceWriter::roll_back() {
  ballast_.reset();
  // SQLite may have done it itself.
  if (open_ && sqlite3_get_autocommit(db_.handle()) == 0) db_.exec("ROLLBACK");
  open_ = false;
}

uint64_t TraceWriter::count_what_was_kept() {
  begin();
  db_.exec(
      "UPDATE process SET events_lost = events_lost + events - kept, events = kept "
      "FROM (SELECT p.id AS row, coalesce(sum(b.events), 0) AS kept FROM process AS p "
      "LEFT JOIN event_batch AS b ON b.process = p.id GROUP BY p.id) WHERE id = row");
  return static_cast<uint64_t>(
      db_.query_int("SELECT coalesce(sum(events), 0) FROM event_batch").value_or(0));
}

void TraceWriter::close() {
  commit();
  for (schema::Statement* statement :
       {&process_, &thread_, &module_, &module_end_, &frame_, &nodes_, &syscall_, &policy_, &mark_,
        &calls_, &faults_, &snapshot_, &region_, &residency_}) {
    *statement = schema::Statement();
  }
  db_.close();
}

void TraceWriter::meta(std::string_view key, int64_t value) {
  begin();
  schema::set_meta(db_, key, value);
}

void TraceWriter::meta(std::string_view key, std::string_view text) {
  begin();
  schema::set_meta(db_, key, text);
}

void TraceWriter::process(const Process& row) {
  begin();
  const auto setting = [&](uint64_t Process::Settings::*member) {
    return row.settings ? std::optional<uint64_t>((*row.settings).*member) : std::nullopt;
  };
  using S = Process::Settings;
  process_.run_with(
      row.id, row.pid, id_or_null(row.ppid),
      id_or_null(row.parent != nullptr ? row.parent->id : 0U), row.forked, row.image,
      text_or_null(row.exe), text_or_null(row.command), row.recorded ? (row.gaps == 0 ? 1 : 2) : 0,
      text_or_null(row.reason), row.start_ns, row.end_ns, row.ended_by, row.exit_status, row.signal,
      setting(&S::mmap_threshold), setting(&S::mmap_threshold_dynamic), setting(&S::trim_threshold),
      setting(&S::top_pad), setting(&S::mmap_max), setting(&S::arena_max),
      setting(&S::tcache_count), row.heap_start, row.events, row.events_lost, row.incomplete_stacks,
      row.stack_check ? std::optional(row.stack_check->compared) : std::nullopt,
      row.stack_check ? std::optional(row.stack_check->mismatched) : std::nullopt,
      row.stack_check ? std::optional(row.stack_check->incomparable) : std::nullopt, row.stall_ns,
      row.recorder_syscalls, row.rusage_start_minor, row.rusage_start_major, row.rusage_minor,
      row.rusage_major, row.perf_minor, row.perf_major, row.perf_lost, row.rss_peak_bytes);
}

void TraceWriter::thread(uint32_t process, const Thread& row) {
  begin();
  thread_.run_with(row.id, process, row.tid, text_or_null(row.name), row.start_ns, row.end_ns,
                   row.stall_ns, row.minor_faults, row.major_faults);
}

void TraceWriter::module(const Module& row) {
  begin();
  module_.run_with(row.id, row.process, row.path, text_or_null(row.build_id), row.base, row.start,
                   row.end, row.start_ns);
}

void TraceWriter::module_end(const Module& row) {
  begin();
  module_end_.run_with(row.end_ns, row.id);
}

void TraceWriter::frame(const Frame& row) {
  begin();
  frame_.run_with(row.id, id_or_null(row.module), row.offset);
}

void TraceWriter::nodes(uint32_t first, std::span<const schema::StackRow> rows) {
  begin();
  const std::vector<uint8_t> blob = schema::encode_stacks(first, rows);
  packed_bytes_ += blob.size();
  nodes_.run_with(first, rows.size(), blob);
}

void TraceWriter::syscall(const SyscallRow& row) {
  begin();
  const schema::SyscallEvent& call = row.call;
  const auto name = static_cast<size_t>(call.name);
  const auto origin = static_cast<size_t>(call.origin);
  if (name >= std::size(schema::kSyscallNames) || origin >= std::size(schema::kOriginNames)) return;
  const bool by_allocator = call.origin == schema::Origin::kAllocator;
  const char* cause =
      by_allocator ? heap::cause_name(static_cast<heap::Cause>(call.cause)) : nullptr;
  syscall_.run_with(row.time_ns, row.process, row.thread, schema::kSyscallNames[name], call.args[0],
                    call.args[1], call.args[2], call.args[3], call.args[4], call.args[5],
                    call.result, row.duration_ns, cause, schema::kOriginNames[origin], row.stack);
}

void TraceWriter::policy(int64_t time_ns, uint32_t process, uint32_t thread,
                         const schema::PolicyEvent& event, uint32_t stack) {
  begin();
  const uint64_t number = event.policy < heap::kPolicyKindCount ? event.policy : 255;
  policy_.run_with(time_ns, process, thread,
                   heap::policy_name(static_cast<heap::PolicyKind>(number)), event.old_value,
                   event.new_value, stack);
}

void TraceWriter::mark(int64_t time_ns, uint32_t process, uint32_t thread, std::string_view kind,
                       std::string_view text, uint32_t stack) {
  begin();
  mark_.run_with(time_ns, process, id_or_null(thread), kind, text, stack);
}

void TraceWriter::calls(uint32_t process, std::span<const schema::CallRow> rows) {
  calls(process, {rows.size(), rows.front().time_ns, rows.back().time_ns, encoder_.encode(rows)});
}

void TraceWriter::calls(uint32_t process, const PackedCalls& batch) {
  begin();
  packed_bytes_ += batch.blob.size();
  calls_.run_with(process, batch.events, batch.time_min_ns, batch.time_max_ns, batch.blob);
}

void TraceWriter::faults(uint32_t process, std::span<const schema::FaultRow> rows) {
  begin();
  const std::vector<uint8_t> blob = schema::encode_faults(rows);
  packed_bytes_ += blob.size();
  faults_.run_with(process, rows.size(), rows.front().time_ns, rows.back().time_ns, blob);
}

void TraceWriter::snapshot(uint32_t process, const Snapshot& snapshot, int64_t origin_ns,
                           const MappedRanges& ranges) {
  begin();
  snapshot_.run_with(process, snapshot.raw_ns - origin_ns, snapshot.end_raw_ns - origin_ns,
                     snapshot_reason_name(snapshot.reason), snapshot.rss_bytes, snapshot.pss_bytes,
                     snapshot.swap_bytes, id_or_null(snapshot.rss_peak_bytes));
  const int64_t id = db_.last_insert_id();
  for (const MemoryRegion& region : snapshot.regions) {
    region_.run_with(id, region.start, region.end, region_kind_name(refined_kind(region, ranges)),
                     text_or_null(region.name), region.permissions, region.size_bytes(),
                     region.rss_bytes, region.swap_bytes, region.private_dirty_bytes,
                     region.anonymous_bytes, region.huge_bytes, region.shared_bytes);
  }
  for (const Residency& residency : snapshot.residency) {
    std::vector<uint8_t> runs;
    for (const uint64_t run : residency.runs) append_varint(runs, run);
    residency_.run_with(id, residency.start, residency.pages, residency.resident, runs);
  }
}

}  // namespace heapledger::collector
