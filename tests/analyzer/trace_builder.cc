// SPDX-License-Identifier: Apache-2.0
#include "tests/analyzer/trace_builder.h"

#include <sys/mman.h>

#include <algorithm>

#include "schema/symbol_writer.h"

namespace heapledger::analyzer {

namespace {

using schema::CallRow;
using schema::EventKind;
using schema::Origin;
using schema::SyscallName;

constexpr int64_t kStepNs = 1000;
constexpr int64_t kSyscallNs = 500;
constexpr uint64_t kArenaHeapBytes = 4 << 20;
constexpr int kThreadsPerProcess = 10;
constexpr uint32_t kFirstFrame = 2;  // 1 is "[incomplete]".

// Lengths in pages of runs, alternately absent and resident, as varints of seven bits.
std::vector<uint8_t> runs_of(const std::set<uint64_t>& pages, uint64_t start, uint64_t end) {
  std::vector<uint8_t> runs;
  const auto add = [&runs](uint64_t bytes) {
    uint64_t length = bytes / kPageBytes;
    for (; length > 0x7f; length >>= 7) runs.push_back(static_cast<uint8_t>(length | 0x80));
    runs.push_back(static_cast<uint8_t>(length));
  };
  auto next = pages.lower_bound(start);
  while (start < end) {
    const uint64_t resident = next == pages.end() ? end : std::min(end, *next);
    add(resident - start);
    for (start = resident; start < end && next != pages.end() && *next == start; ++next) {
      start += kPageBytes;
    }
    if (start != resident) add(start - resident);
  }
  return runs;
}

}  // namespace

TraceBuilder::TraceBuilder() {
  meta_ = {{"fault_source", "perf"}, {"command", "prog"}, {"state", "complete"}};
  process(100);
}

int64_t TraceBuilder::tick() {
  now_ += kStepNs;
  current().end_ns = now_;
  return now_;
}

uint32_t TraceBuilder::thread_id() const {
  return static_cast<uint32_t>(static_cast<int>(processes_.size()) * kThreadsPerProcess + thread_);
}

uint32_t TraceBuilder::stack(std::initializer_list<const char*> frames) {
  uint32_t node = 0;
  const std::vector<const char*> inwards(std::rbegin(frames), std::rend(frames));
  for (const char* name : inwards) {
    const auto next_frame = static_cast<uint32_t>(frames_.size()) + kFirstFrame;
    const uint32_t frame = frames_.try_emplace(name, next_frame).first->second;
    const auto next_node = static_cast<uint32_t>(stacks_.size()) + 1;
    node = stacks_.try_emplace({node, frame}, next_node).first->second;
  }
  return node;
}

TraceBuilder& TraceBuilder::at(int64_t time_ns) {
  now_ = time_ns;
  current().end_ns = std::max(current().end_ns, now_);
  return *this;
}

TraceBuilder& TraceBuilder::process(int64_t pid) {
  Process process;
  process.pid = pid;
  process.image = static_cast<int64_t>(processes_.size()) + 1;
  process.start_ns = process.end_ns = now_;
  processes_.push_back(std::move(process));
  thread_ = 1;
  return *this;
}

TraceBuilder& TraceBuilder::fork(int64_t pid) {
  Process child = current();
  child.pid = pid;
  child.parent = static_cast<int64_t>(processes_.size());
  child.forked = true;
  child.start_ns = child.end_ns = now_;
  child.calls.clear();
  child.faults.clear();
  child.columns.clear();
  processes_.push_back(std::move(child));
  thread_ = 1;
  return *this;
}

TraceBuilder& TraceBuilder::not_recorded(int64_t pid, const std::string& reason) {
  const auto parent = static_cast<int64_t>(processes_.size());
  process(pid);
  current().parent = parent;
  current().recorded = false;
  current().reason = reason;
  return *this;
}

TraceBuilder& TraceBuilder::thread(int number) {
  thread_ = number;
  return *this;
}

TraceBuilder& TraceBuilder::set(const std::string& process_column, int64_t value) {
  current().columns[process_column] = value;
  return *this;
}

TraceBuilder& TraceBuilder::meta(const std::string& key, const std::string& value) {
  meta_[key] = value;
  return *this;
}

TraceBuilder& TraceBuilder::alloc(uint64_t address, uint64_t size, uint32_t stack, EventKind kind,
                                  uint64_t usable) {
  CallRow row;
  row.time_ns = row.ended_ns = tick();
  row.thread = thread_id();
  row.kind = kind;
  row.id = next_id_++;
  row.address = address;
  row.size = size;
  row.usable = usable != 0 ? usable : schema::usable_by_rule(size);
  row.stack = stack;
  current().ids[address] = row.id;
  current().calls.push_back(row);
  return *this;
}

TraceBuilder& TraceBuilder::failed_alloc(uint64_t size, uint32_t stack) {
  CallRow row;
  row.time_ns = row.ended_ns = tick();
  row.thread = thread_id();
  row.flags = schema::kFailed;
  row.size = size;
  row.stack = stack;
  current().calls.push_back(row);
  return *this;
}

TraceBuilder& TraceBuilder::free(uint64_t address) {
  CallRow row;
  row.time_ns = row.ended_ns = tick();
  row.thread = thread_id();
  row.kind = EventKind::kFree;
  row.address = address;
  row.ended_id = current().ids.at(address);
  current().ids.erase(address);
  current().calls.push_back(row);
  return *this;
}

TraceBuilder& TraceBuilder::realloc(uint64_t old_address, uint64_t address, uint64_t size,
                                    uint32_t stack) {
  CallRow row;
  row.ended_ns = tick() - kStepNs / 2;
  row.time_ns = now_;
  row.thread = thread_id();
  row.kind = EventKind::kRealloc;
  row.old_address = old_address;
  row.ended_id = current().ids.at(old_address);
  row.id = next_id_++;
  row.address = address;
  row.size = size;
  row.usable = schema::usable_by_rule(size);
  row.stack = stack;
  current().ids.erase(old_address);
  current().ids[address] = row.id;
  current().calls.push_back(row);
  return *this;
}

TraceBuilder& TraceBuilder::syscall(SyscallName name, const std::string& cause, int64_t result,
                                    std::initializer_list<uint64_t> args, uint32_t stack,
                                    Origin origin) {
  SyscallRow row;
  row.time_ns = tick();
  row.duration_ns = kSyscallNs;
  row.thread = thread_id();
  row.stack = stack;
  row.name = name;
  row.origin = origin;
  row.result = result;
  std::copy(args.begin(), args.end(), row.args);
  row.cause = cause;
  syscalls_.push_back({static_cast<int64_t>(processes_.size()), row});
  return *this;
}

TraceBuilder& TraceBuilder::grow(uint64_t bytes, uint32_t stack) {
  const uint64_t end = current().break_end += bytes;
  return syscall(SyscallName::kBrk, "grow top", static_cast<int64_t>(end), {end}, stack);
}

TraceBuilder& TraceBuilder::trim(uint64_t bytes, uint32_t stack) {
  const uint64_t end = current().break_end -= bytes;
  std::erase_if(current().touched,
                [&](uint64_t page) { return page >= end && page < end + bytes; });
  return syscall(SyscallName::kBrk, "trim top", static_cast<int64_t>(end), {end}, stack);
}

TraceBuilder& TraceBuilder::map(uint64_t address, uint64_t bytes, uint32_t stack) {
  return syscall(SyscallName::kMmap, "map block", static_cast<int64_t>(address),
                 {0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS}, stack);
}

TraceBuilder& TraceBuilder::unmap(uint64_t address, uint64_t bytes, uint32_t stack) {
  return syscall(SyscallName::kMunmap, "unmap block", 0, {address, bytes}, stack);
}

TraceBuilder& TraceBuilder::remap(uint64_t old_address, uint64_t old_bytes, uint64_t address,
                                  uint64_t bytes) {
  return syscall(SyscallName::kMremap, "remap block", static_cast<int64_t>(address),
                 {old_address, old_bytes, bytes, MREMAP_MAYMOVE}, 0);
}

TraceBuilder& TraceBuilder::drop_pages(uint64_t address, uint64_t bytes) {
  return syscall(SyscallName::kMadvise, "release pages", 0, {address, bytes, MADV_DONTNEED}, 0);
}

TraceBuilder& TraceBuilder::program_map(uint64_t address, uint64_t bytes, uint32_t stack) {
  return syscall(SyscallName::kMmap, "", static_cast<int64_t>(address),
                 {0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS}, stack,
                 Origin::kProgram);
}

TraceBuilder& TraceBuilder::program_grow(int64_t bytes) {
  const uint64_t end = current().break_end += static_cast<uint64_t>(bytes);
  return syscall(SyscallName::kBrk, "", static_cast<int64_t>(end), {end}, 0, Origin::kProgram);
}

TraceBuilder& TraceBuilder::fault(uint64_t address, uint64_t ip) {
  schema::FaultRow row;
  row.time_ns = tick();
  row.thread = thread_id();
  row.address = address;
  row.ip = ip;
  current().faults.push_back(row);
  current().touched.insert(address / kPageBytes * kPageBytes);
  return *this;
}

TraceBuilder& TraceBuilder::touch(uint64_t address, uint64_t bytes) {
  for (uint64_t done = 0; done < bytes; done += kPageBytes) fault(address + done);
  return *this;
}

TraceBuilder& TraceBuilder::snapshot(const std::string& reason, uint64_t start,
                                     uint64_t resident_pages) {
  Snapshot snapshot{static_cast<int64_t>(processes_.size()), tick(), reason, start,
                    start + resident_pages * kPageBytes,     {},     {}};
  for (uint64_t page = start; page < snapshot.end; page += kPageBytes) snapshot.pages.insert(page);
  snapshots_.push_back(std::move(snapshot));
  return *this;
}

TraceBuilder& TraceBuilder::snapshot(const std::string& reason) { return snapshot(reason, {}); }

TraceBuilder& TraceBuilder::snapshot(const std::string& reason,
                                     const std::vector<uint64_t>& heaps) {
  Snapshot snapshot{
      static_cast<int64_t>(processes_.size()), tick(), reason, kHeap, break_end(), {}, heaps};
  for (const uint64_t page : current().touched) {
    bool shown = page >= kHeap && page < snapshot.end;
    for (const uint64_t heap : heaps) shown |= page >= heap && page < heap + kArenaHeapBytes;
    if (shown) snapshot.pages.insert(page);
  }
  snapshots_.push_back(std::move(snapshot));
  return *this;
}

TraceBuilder& TraceBuilder::policy(const std::string& kind, int64_t old_value, int64_t new_value) {
  policies_.push_back(
      {static_cast<int64_t>(processes_.size()), tick(), kind, old_value, new_value});
  return *this;
}

void TraceBuilder::write(const std::string& path, size_t events_per_batch) const {
  schema::Database db = schema::create_trace(path, true);
  schema::Transaction transaction(db);
  schema::set_meta(db, "page_bytes", int64_t{kPageBytes});
  schema::set_meta(db, "ns_per_fault", int64_t{1000});
  int64_t end_ns = 0;
  for (const Process& process : processes_) end_ns = std::max(end_ns, process.end_ns);
  schema::set_meta(db, "end_ns", end_ns);
  for (const auto& [key, value] : meta_) schema::set_meta(db, key, value);
  write_stacks(db);
  for (size_t i = 0; i < processes_.size(); ++i) {
    write_process(db, processes_[i], static_cast<int64_t>(i) + 1, events_per_batch);
  }
  write_rare(db);
  transaction.commit();
}

void TraceBuilder::write_stacks(schema::Database& db) const {
  schema::SymbolWriter symbols(db);
  for (const auto& [name, id] : frames_) {
    db.prepare("INSERT INTO frame VALUES (?, NULL, ?)").run_with(id, 0x400000 + id * 16);
    const size_t blank = name.find(' ');
    const std::string function = name.substr(0, blank);
    if (blank == std::string::npos) {
      symbols.write(id, 0, function, "", 0);
      continue;
    }
    const size_t colon = name.rfind(':');
    symbols.write(id, 0, function, "/src/" + name.substr(blank + 1, colon - blank - 1),
                  std::stoll(name.substr(colon + 1)));
  }
  for (const auto& [node, id] : stacks_) {
    db.prepare("INSERT INTO stack VALUES (?, ?, ?)").run_with(id, node.first, node.second);
  }
}

void TraceBuilder::write_process(schema::Database& db, const Process& process, int64_t id,
                                 size_t events_per_batch) const {
  schema::Statement insert = db.prepare(
      "INSERT INTO process(id, pid, parent, forked, image, exe, command, recorded, reason, "
      "start_ns,"
      " end_ns, ended_by, exit_status, heap_start, events, perf_minor, perf_major, "
      "rusage_start_minor,"
      " rusage_start_major, rusage_minor, rusage_major, trim_threshold, top_pad, mmap_threshold,"
      " mmap_threshold_dynamic, mmap_max, arena_max, rss_peak_bytes)"
      " VALUES (?, ?, ?, ?, ?, '/bin/prog', 'prog', ?, ?, ?, ?, 'exit', 0, ?, ?, ?, 0, 10, 0, ?, 0,"
      " 131072, 131072, 131072, 1, 65536, 0, 1048576)");
  const auto faults = static_cast<int64_t>(process.faults.size());
  insert.bind_all(id, process.pid);
  if (process.parent != 0) insert.bind(3, process.parent);
  insert.bind(4, process.forked).bind(5, process.image).bind(6, process.recorded);
  if (!process.recorded) insert.bind(7, process.reason);
  insert.bind(8, process.start_ns).bind(9, process.end_ns).bind(10, kHeap);
  insert.bind(11, process.calls.size()).bind(12, faults).bind(13, faults + 10);
  insert.run();
  for (const auto& [column, value] : process.columns) {
    db.prepare("UPDATE process SET " + column + " = ? WHERE id = ?").run_with(value, id);
  }
  for (int thread = 1; thread < kThreadsPerProcess; ++thread) {
    db.prepare("INSERT INTO thread(id, process, tid) VALUES (?, ?, ?)")
        .run_with(id * kThreadsPerProcess + thread, id, process.pid + thread - 1);
  }
  for (size_t first = 0; first < process.calls.size(); first += events_per_batch) {
    const size_t last = std::min(process.calls.size(), first + events_per_batch);
    const std::span<const CallRow> rows(process.calls.data() + first, last - first);
    db.prepare(
          "INSERT INTO event_batch(process, events, time_min_ns, time_max_ns, data)"
          " VALUES (?, ?, ?, ?, ?)")
        .run_with(id, rows.size(), rows.front().time_ns, rows.back().time_ns,
                  schema::encode_calls(rows));
  }
  for (size_t first = 0; first < process.faults.size(); first += events_per_batch) {
    const size_t last = std::min(process.faults.size(), first + events_per_batch);
    const std::span<const schema::FaultRow> rows(process.faults.data() + first, last - first);
    db.prepare(
          "INSERT INTO fault_batch(process, faults, time_min_ns, time_max_ns, data)"
          " VALUES (?, ?, ?, ?, ?)")
        .run_with(id, rows.size(), rows.front().time_ns, rows.back().time_ns,
                  schema::encode_faults(rows));
  }
}

void TraceBuilder::write_rare(schema::Database& db) const {
  for (const auto& [process, row] : syscalls_) {
    db.prepare("INSERT INTO syscall VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
        .run_with(row.time_ns, process, row.thread,
                  schema::kSyscallNames[static_cast<size_t>(row.name)], row.args[0], row.args[1],
                  row.args[2], row.args[3], row.args[4], row.args[5], row.result, row.duration_ns,
                  row.cause, schema::kOriginNames[static_cast<size_t>(row.origin)], row.stack);
  }
  for (const Policy& policy : policies_) {
    db.prepare("INSERT INTO policy_event VALUES (?, ?, ?, ?, ?, ?, 0)")
        .run_with(policy.time_ns, policy.process, policy.process * kThreadsPerProcess + 1,
                  policy.kind, policy.old_value, policy.new_value);
  }
  for (const Snapshot& snapshot : snapshots_) {
    const auto bytes = static_cast<int64_t>(snapshot.pages.size() * kPageBytes);
    const uint64_t size = std::max<uint64_t>(1 << 20, snapshot.end - snapshot.start);
    db.prepare(
          "INSERT INTO snapshot(process, time_ns, end_ns, reason, rss_bytes)"
          " VALUES (?, ?, ?, ?, ?)")
        .run_with(snapshot.process, snapshot.time_ns, snapshot.time_ns + 100, snapshot.reason,
                  bytes + 8192);
    const int64_t id = db.last_insert_id();
    const auto region = [&](const char* kind, uint64_t start, uint64_t length, int64_t rss) {
      db.prepare("INSERT INTO region VALUES (?, ?, ?, ?, NULL, 'rw-p', ?, ?, 0, ?, ?, 0, 0)")
          .run_with(id, start, start + length, kind, length, rss, rss, rss);
    };
    const auto heap = [&](const char* kind, uint64_t start, uint64_t length) {
      const auto first = snapshot.pages.lower_bound(start);
      const std::set<uint64_t> pages(first, snapshot.pages.lower_bound(start + length));
      region(kind, start, length, static_cast<int64_t>(pages.size() * kPageBytes));
      db.prepare("INSERT INTO residency VALUES (?, ?, ?, ?, ?)")
          .run_with(id, start, length / kPageBytes, pages.size(),
                    runs_of(pages, start, start + length));
    };
    heap("heap", snapshot.start, size);
    region("text", 0x10000000, size, 8192);
    for (const uint64_t start : snapshot.heaps) heap("anonymous", start, kArenaHeapBytes);
  }
}

}  // namespace heapledger::analyzer
