// SPDX-License-Identifier: Apache-2.0
#include "analyzer/trace_info.h"

#include <algorithm>

#include "schema/error.h"

namespace heapledger::analyzer {

const ProcessInfo& TraceInfo::process(int64_t id) const {
  const auto place = std::lower_bound(
      processes.begin(), processes.end(), id,
      [](const ProcessInfo& process, int64_t wanted) { return process.id < wanted; });
  if (place != processes.end() && place->id == id) return *place;
  throw schema::Error("cannot read the trace", "it has no process row " + std::to_string(id));
}

namespace {

std::vector<ProcessInfo> load_processes(schema::Database& db) {
  schema::Statement select = db.prepare(
      "SELECT id, pid, parent, forked, recorded, exe, command, reason, ended_by, start_ns, end_ns,"
      " exit_status, signal, mmap_threshold, mmap_threshold_dynamic, trim_threshold, top_pad,"
      " mmap_max, arena_max, tcache_count, heap_start, events, events_lost, incomplete_stacks,"
      " stall_ns, stacks_compared, stacks_mismatched, stacks_incomparable, rusage_start_minor, "
      "rusage_start_major, rusage_minor, rusage_major, perf_minor,"
      " perf_major, perf_lost, rss_peak_bytes FROM process ORDER BY id");
  std::vector<ProcessInfo> processes;
  while (select.step()) {
    ProcessInfo process;
    int column = 0;
    const auto integer = [&] { return select.column_int(column++); };
    const auto text = [&] { return select.column_optional_text(column++).value_or(""); };
    const auto optional = [&] { return select.column_optional_int(column++); };
    process.id = integer();
    process.pid = integer();
    process.parent = optional();
    process.forked = integer() != 0;
    process.recorded = integer() != 0;
    for (std::string* field :
         {&process.exe, &process.command, &process.reason, &process.ended_by}) {
      *field = text();
    }
    for (std::optional<int64_t>* field :
         {&process.start_ns, &process.end_ns, &process.exit_status, &process.signal,
          &process.mmap_threshold, &process.mmap_threshold_dynamic, &process.trim_threshold,
          &process.top_pad, &process.mmap_max, &process.arena_max, &process.tcache_count,
          &process.heap_start}) {
      *field = optional();
    }
    for (int64_t* field :
         {&process.events, &process.events_lost, &process.incomplete_stacks, &process.stall_ns}) {
      *field = integer();
    }
    for (std::optional<int64_t>* field :
         {&process.stacks_compared, &process.stacks_mismatched, &process.stacks_incomparable,
          &process.rusage_start_minor, &process.rusage_start_major, &process.rusage_minor,
          &process.rusage_major, &process.perf_minor, &process.perf_major, &process.perf_lost,
          &process.rss_peak_bytes}) {
      *field = optional();
    }
    processes.push_back(std::move(process));
  }
  return processes;
}

}  // namespace

TraceInfo load_trace_info(schema::Database& db) {
  TraceInfo info;
  info.processes = load_processes(db);
  for (const ProcessInfo& child : info.processes) {
    if (child.forked && child.parent && child.start_ns) {
      info.forks[*child.parent].push_back(*child.start_ns);
    }
  }
  for (auto& [parent, times] : info.forks) std::sort(times.begin(), times.end());
  info.fault_source = schema::meta_text(db, "fault_source").value_or("none");
  info.syscall_source = schema::meta_text(db, "syscall_source").value_or("wrappers");
  info.state = schema::meta_text(db, "state").value_or("complete");
  info.command = schema::meta_text(db, "command").value_or("");
  if (const auto bytes = schema::meta_int(db, "page_bytes")) {
    info.page_bytes = static_cast<uint64_t>(*bytes);
  }
  for (const char* sql :
       {"SELECT max(start_ns) FROM process", "SELECT max(end_ns) FROM process",
        "SELECT max(time_max_ns) FROM event_batch", "SELECT max(time_max_ns) FROM fault_batch",
        "SELECT max(time_ns + duration_ns) FROM syscall"}) {
    info.end_ns = std::max(info.end_ns, db.query_int(sql).value_or(0));
  }
  if (info.state == "complete") {
    info.end_ns = schema::meta_int(db, "end_ns").value_or(info.end_ns);
  }
  return info;
}

}  // namespace heapledger::analyzer
