// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay/map_notes.h"

#include <algorithm>
#include <limits>

#include "analyzer/replay/page_set.h"
#include "analyzer/replay/range_map.h"

namespace heapledger::analyzer {

namespace {

constexpr int64_t kErrnoMax = 4095;

}  // namespace

MapNotes::MapNotes(schema::Database& db, const TraceInfo& info) : info_(info) {
  load_mappings(db);
  load_heaps(db);
}

void MapNotes::load_mappings(schema::Database& db) {
  schema::Statement select = db.prepare(
      "SELECT process, time_ns, name = 'mmap', arg0, arg1, result FROM syscall"
      " WHERE (origin = 'recorder' OR cause = 'registry') AND name IN ('mmap', 'munmap')"
      " ORDER BY process, time_ns, rowid");
  while (select.step()) {
    const bool mapped = select.column_int(2) != 0;
    const int64_t result = select.column_int(5);
    if (result < 0 && result >= -kErrnoMax) continue;
    const uint64_t start = mapped ? static_cast<uint64_t>(result) : select.column_uint(3);
    const uint64_t pages = (select.column_uint(4) + kPageBytes - 1) / kPageBytes;
    mappings_[select.column_int(0)].push_back(
        {select.column_int(1), start, start + pages * kPageBytes, mapped});
  }
}

void MapNotes::load_heaps(schema::Database& db) {
  schema::Statement select = db.prepare(
      "SELECT process, time_ns, arg0, 0 FROM syscall WHERE name = 'mprotect' AND cause = 'new heap'"
      " AND result = 0 UNION ALL SELECT process, time_ns, new_value, old_value FROM policy_event"
      " WHERE kind = 'heap created' AND old_value != 0 ORDER BY 1, 2, 4");
  while (select.step()) {
    heaps_[select.column_int(0)].push_back(
        {select.column_int(1), select.column_uint(2), select.column_uint(3)});
  }
  schema::Statement gone = db.prepare(
      "SELECT process, time_ns, old_value FROM policy_event WHERE kind = 'heap destroyed'"
      " ORDER BY process, time_ns, rowid");
  while (gone.step()) {
    gone_[gone.column_int(0)].push_back({gone.column_int(1), gone.column_uint(2), 0});
  }
}

bool MapNotes::is_forked(const ProcessInfo& process) const {
  // Only a damaged trace has a parent that came later.
  return process.forked && process.parent && process.start_ns && *process.parent < process.id;
}

// From the oldest ancestor down that is not known yet: no recursion, however long the line is.
const MapNotes::State& MapNotes::state_at_fork(int64_t process) {
  std::vector<int64_t> line;
  for (int64_t at = process; !at_fork_.contains(at); at = *info_.process(at).parent) {
    line.push_back(at);
    if (!is_forked(info_.process(at))) break;
  }
  for (auto at = line.rbegin(); at != line.rend(); ++at) {
    const ProcessInfo& child = info_.process(*at);
    State state;
    if (is_forked(child)) state = state_at(*child.parent, *child.start_ns);
    at_fork_[*at] = std::move(state);
  }
  return at_fork_[process];
}

MapNotes::State MapNotes::state_at(int64_t process, int64_t time_ns) {
  State state = state_at_fork(process);
  if (const auto found = mappings_.find(process); found != mappings_.end()) {
    RangeMap map;
    for (const auto& [start, end] : state.own) map.add(start, end, RangeKind::kHeap, 0);
    for (const Mapping& change : found->second) {
      if (change.time_ns > time_ns) break;
      map.remove(change.start, change.end);
      if (change.mapped) map.add(change.start, change.end, RangeKind::kHeap, 0);
    }
    state.own.clear();
    for (const auto& [start, range] : map.ranges()) state.own.emplace_back(start, range.end);
  }
  if (const auto found = heaps_.find(process); found != heaps_.end()) {
    for (const NewHeap& made : found->second) {
      if (made.time_ns > time_ns) break;
      const auto previous = state.first.find(made.previous);
      const bool is_first = previous == state.first.end();
      state.first[made.heap] = is_first ? made.heap : previous->second;
      if (is_first) state.order.push_back(made.heap);
      if (made.previous == 0) state.heaps.push_back(made.heap);
    }
  }
  return state;
}

AddressRanges MapNotes::own_at(int64_t process, int64_t time_ns) {
  return state_at(process, time_ns).own;
}

std::vector<uint64_t> MapNotes::heaps_at(int64_t process, int64_t time_ns) {
  return state_at(process, time_ns).heaps;
}

ArenaHeaps MapNotes::arenas_at(int64_t process, int64_t time_ns) {
  State state = state_at(process, time_ns);
  std::map<uint64_t, int> numbers;
  int last = 1;
  for (const uint64_t heap : state.order) {
    // It may have been taken for an arena's first until it was known what it follows.
    if (state.first[heap] == heap && !numbers.contains(heap)) numbers[heap] = ++last;
  }
  ArenaHeaps arenas;
  for (const auto& [heap, first] : state.first) {
    if (const auto number = numbers.find(first); number != numbers.end()) {
      arenas[heap] = number->second;
    }
  }
  return arenas;
}

std::vector<ArenaChange> MapNotes::arena_history(int64_t process) {
  std::vector<ArenaChange> history;
  std::map<uint64_t, size_t> at;  // Heap -> its last change.
  int last = 1;
  if (const ProcessInfo& child = info_.process(process); is_forked(child)) {
    for (const auto& [heap, arena] : arenas_at(*child.parent, *child.start_ns)) {
      at[heap] = history.size();
      history.push_back({std::numeric_limits<int64_t>::min(), heap, arena});
      last = std::max(last, arena);
    }
  }
  // A heap that follows another is first taken for a new arena's, until it is said which it
  // follows.
  std::vector<size_t> follows;  // By change: the change that made the heap before it, or itself.
  for (size_t i = 0; i < history.size(); ++i) follows.push_back(i);
  for (const NewHeap& made : heaps_[process]) {
    if (made.previous == 0 || !at.contains(made.heap)) {
      at[made.heap] = history.size();
      follows.push_back(history.size());
      history.push_back({made.time_ns, made.heap, 0});
    }
    const auto previous = at.find(made.previous);
    if (previous != at.end() && previous->second < at[made.heap]) {
      follows[at[made.heap]] = previous->second;
    }
  }
  for (size_t i = 0; i < history.size(); ++i) {
    if (history[i].arena == 0) {
      history[i].arena = follows[i] == i ? ++last : history[follows[i]].arena;
    }
  }
  const std::vector<ArenaChange>& gone = gone_[process];
  history.insert(history.end(), gone.begin(), gone.end());
  std::stable_sort(history.begin(), history.end(), [](const ArenaChange& a, const ArenaChange& b) {
    return a.time_ns < b.time_ns;
  });
  return history;
}

}  // namespace heapledger::analyzer
