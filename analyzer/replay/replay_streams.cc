// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay/replay_streams.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <string>

#include "schema/error.h"

namespace heapledger::analyzer {

namespace {

constexpr uint32_t kCallColumns =
    schema::kColumnTime | schema::kColumnThread | schema::kColumnKind | schema::kColumnId |
    schema::kColumnAddress | schema::kColumnSize | schema::kColumnUsable | schema::kColumnEndedId |
    schema::kColumnOldAddress | schema::kColumnStack;

uint32_t columns_for(bool models) {
  return models ? kCallColumns | schema::kColumnAlignment : kCallColumns;
}

// In order, one after the other.
std::vector<SnapshotEntry> load_snapshots(schema::Database& db, int64_t process) {
  schema::Statement select =
      db.prepare("SELECT id, time_ns, end_ns FROM snapshot WHERE process = ? ORDER BY end_ns, id");
  select.bind(1, process);
  std::vector<SnapshotEntry> snapshots;
  while (select.step()) {
    const int64_t before = snapshots.empty() ? 0 : snapshots.back().end_ns;
    const int64_t end = std::max(select.column_int(2), before);
    snapshots.push_back(
        {select.column_int(0), std::clamp(select.column_int(1), std::min(before, end), end), end});
  }
  return snapshots;
}

std::vector<int64_t> load_fork_times(const TraceInfo& info, int64_t process) {
  const auto found = info.forks.find(process);
  return found == info.forks.end() ? std::vector<int64_t>() : found->second;
}

// An id of a row. Tables that it indexes are made as large as the largest asks for, so one that no
// trace gets to is damage.
uint32_t row_id(int64_t id, int64_t most, const char* what) {
  if (id < 0 || id > most) {
    throw schema::Error("cannot read the trace", fmt::format("there is no {} {}", what, id));
  }
  return static_cast<uint32_t>(id);
}
constexpr int64_t kThreadIdMax = 1 << 24;
constexpr int64_t kStackIdMax = 1 << 30;

std::vector<ThreadEnd> load_thread_ends(schema::Database& db, int64_t process) {
  schema::Statement select = db.prepare(
      "SELECT end_ns, id FROM thread WHERE process = ? AND end_ns IS NOT NULL ORDER BY end_ns, id");
  select.bind(1, process);
  std::vector<ThreadEnd> ends;
  while (select.step()) {
    ends.push_back({select.column_int(0), row_id(select.column_int(1), kThreadIdMax, "thread")});
  }
  return ends;
}

schema::SyscallName syscall_by_name(const std::string& name) {
  for (size_t i = 0; i < std::size(schema::kSyscallNames); ++i) {
    if (name == schema::kSyscallNames[i]) return static_cast<schema::SyscallName>(i);
  }
  throw schema::Error("cannot read the trace", "unknown system call '" + name + "'");
}

}  // namespace

SyscallReader::SyscallReader(schema::Database& db, int64_t process, int64_t time_max_ns, bool all)
    : select_(db.prepare(
          "SELECT time_ns, duration_ns, thread, stack, name, origin, result, arg0, arg1, arg2,"
          " arg3, arg4, arg5, cause FROM syscall WHERE process = ? AND time_ns <= ?"
          " AND (origin != 'recorder' OR ?) ORDER BY time_ns, rowid")) {
  select_.bind_all(process, time_max_ns, all ? 1 : 0);
}

bool SyscallReader::next(SyscallRow& row) {
  if (!select_.step()) return false;
  row.time_ns = select_.column_int(0);
  row.duration_ns = select_.column_int(1);
  row.thread = row_id(select_.column_int(2), kThreadIdMax, "thread");
  row.stack = row_id(select_.column_int(3), kStackIdMax, "stack");
  row.name = syscall_by_name(select_.column_text(4));
  row.origin =
      select_.column_text(5) == "allocator" ? schema::Origin::kAllocator : schema::Origin::kProgram;
  row.result = select_.column_int(6);
  for (int i = 0; i < 6; ++i) row.args[i] = select_.column_uint(7 + i);
  row.cause = select_.column_text(13);
  return true;
}

Replay::Streams::Streams(schema::Database& db, const TraceInfo& info, int64_t process,
                         int64_t time_max_ns, const ReplayOptions& options, bool own)
    : calls(db, process,
            {columns_for(own && options.calls != nullptr), std::numeric_limits<int64_t>::min(),
             time_max_ns, options.damage, true}),
      syscalls(db, process, time_max_ns, info.syscalls_are_all()),
      faults(db, process, options.faults ? time_max_ns : std::numeric_limits<int64_t>::min(),
             own ? options.attributions : nullptr, options.damage),
      forks(load_fork_times(info, process)),
      thread_ends(load_thread_ends(db, process)) {
  if (own) moments = options.moments;
  if (options.faults) snapshots = load_snapshots(db, process);
  std::erase_if(snapshots, [&](const SnapshotEntry& entry) { return entry.end_ns > time_max_ns; });
  std::erase_if(forks, [&](int64_t time) { return time > time_max_ns; });
  std::erase_if(thread_ends, [&](const ThreadEnd& end) { return end.time_ns > time_max_ns; });
  seek_call();
  next_syscall();
}

}  // namespace heapledger::analyzer
