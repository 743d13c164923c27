// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay/replay.h"

#include <malloc.h>

#include <algorithm>
#include <iterator>
#include <limits>
#include <span>

#include "analyzer/whatif/cache_rules.h"
#include "schema/error.h"

namespace heapledger::analyzer {

namespace {

using schema::CallRow;

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
constexpr uint64_t kAddressMax = std::numeric_limits<uint64_t>::max();

constexpr uint32_t kCallColumns =
    schema::kColumnTime | schema::kColumnThread | schema::kColumnKind | schema::kColumnId |
    schema::kColumnAddress | schema::kColumnSize | schema::kColumnUsable | schema::kColumnEndedId |
    schema::kColumnOldAddress | schema::kColumnStack;

uint32_t columns_for(bool models) {
  return models ? kCallColumns | schema::kColumnAlignment : kCallColumns;
}

CallRow call_row(const schema::CallBatch& batch, size_t row) {
  CallRow call;
  call.time_ns = call.ended_ns = batch.time_ns[row];
  call.thread = batch.thread[row];
  call.kind = batch.kind[row];
  call.flags = batch.flags[row];
  call.id = batch.id[row];
  call.address = batch.address[row];
  call.size = batch.size[row];
  call.usable = batch.usable[row];
  call.ended_id = batch.ended_id[row];
  call.old_address = batch.old_address[row];
  call.stack = batch.stack[row];
  return call;
}

struct SnapshotEntry {
  int64_t id;
  int64_t begin_ns, end_ns;
};

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

struct ThreadEnd {
  int64_t time_ns;
  uint32_t thread;
};

std::vector<ThreadEnd> load_thread_ends(schema::Database& db, int64_t process) {
  schema::Statement select = db.prepare(
      "SELECT end_ns, id FROM thread WHERE process = ? AND end_ns IS NOT NULL ORDER BY end_ns, id");
  select.bind(1, process);
  std::vector<ThreadEnd> ends;
  while (select.step()) {
    ends.push_back({select.column_int(0), static_cast<uint32_t>(select.column_int(1))});
  }
  return ends;
}

// Little-endian groups of seven bits. Returns false at the end of the blob.
bool next_varint(std::span<const uint8_t>& bytes, uint64_t& value) {
  value = 0;
  for (int shift = 0; shift < 64 && !bytes.empty(); shift += 7) {
    const uint8_t byte = bytes.front();
    bytes = bytes.subspan(1);
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if ((byte & 0x80) == 0) return true;
  }
  return false;
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
  row.thread = static_cast<uint32_t>(select_.column_int(2));
  row.stack = static_cast<uint32_t>(select_.column_int(3));
  row.name = syscall_by_name(select_.column_text(4));
  row.origin =
      select_.column_text(5) == "allocator" ? schema::Origin::kAllocator : schema::Origin::kProgram;
  row.result = select_.column_int(6);
  for (int i = 0; i < 6; ++i) row.args[i] = select_.column_uint(7 + i);
  row.cause = select_.column_text(13);
  return true;
}

// What is being read: one process's four streams and its forks, each with its next row in hand.
struct Replay::Streams {
  Streams(schema::Database& db, const TraceInfo& info, int64_t process, int64_t time_max_ns,
          const ReplayOptions& options, bool own)
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
    std::erase_if(snapshots,
                  [&](const SnapshotEntry& entry) { return entry.end_ns > time_max_ns; });
    std::erase_if(forks, [&](int64_t time) { return time > time_max_ns; });
    std::erase_if(thread_ends, [&](const ThreadEnd& end) { return end.time_ns > time_max_ns; });
    seek_call();
    next_syscall();
  }

  CallRow call() const { return call_row(*run.batch, run.begin); }
  // Of a row further on in the same run: where the block it ends or begins starts.
  uint64_t address_ahead(size_t rows) const {
    const size_t row = std::min(run.begin + rows, run.end - 1);
    const uint64_t old = run.batch->old_address[row];
    return old != 0 ? old : run.batch->address[row];
  }
  // The columns are more streams than a processor follows, and another one wrote them.
  void prefetch_rows() const {
    constexpr size_t kRowsAhead = 64;
    constexpr size_t kRowsPerLine = 8;
    const size_t row = run.begin + kRowsAhead;
    if (row % kRowsPerLine != 0 || row >= run.end) return;
    const schema::CallBatch& batch = *run.batch;
    for (const auto* column : {&batch.id, &batch.address, &batch.size, &batch.usable,
                               &batch.ended_id, &batch.old_address}) {
      __builtin_prefetch(column->data() + row);
    }
    __builtin_prefetch(batch.time_ns.data() + row);
    if (!batch.alignment.empty()) __builtin_prefetch(batch.alignment.data() + row);
    if (row % (2 * kRowsPerLine) != 0) return;
    __builtin_prefetch(batch.thread.data() + row);
    __builtin_prefetch(batch.stack.data() + row);
    __builtin_prefetch(batch.kind.data() + row);
    __builtin_prefetch(batch.flags.data() + row);
  }
  void next_call() {
    ++run.begin;
    seek_call();
  }
  void seek_call() {
    const bool found = run.begin < run.end || calls.next_run(run);
    call_time = found ? run.batch->time_ns[run.begin] : kNever;
  }
  void next_syscall() { syscall_time = syscalls.next(syscall) ? syscall.time_ns : kNever; }
  // When the next snapshot begins or, once it has, ends.
  int64_t snapshot_time() const {
    if (snapshot == snapshots.size()) return kNever;
    return in_snapshot ? snapshots[snapshot].end_ns : snapshots[snapshot].begin_ns;
  }
  int64_t fork_time() const { return fork < forks.size() ? forks[fork] : kNever; }
  int64_t moment_time() const { return moment < moments.size() ? moments[moment] : kNever; }
  int64_t thread_end_time() const {
    return thread_end < thread_ends.size() ? thread_ends[thread_end].time_ns : kNever;
  }

  schema::CallReader calls;
  schema::CallRun run;
  int64_t call_time = kNever;
  SyscallReader syscalls;
  SyscallRow syscall;
  int64_t syscall_time = kNever;
  FaultStream faults;
  std::vector<SnapshotEntry> snapshots;
  size_t snapshot = 0;
  bool in_snapshot = false;
  std::vector<int64_t> forks;
  size_t fork = 0;
  std::vector<ThreadEnd> thread_ends;
  size_t thread_end = 0;
  std::vector<int64_t> moments;
  size_t moment = 0;
};

Replay::Replay(schema::Database& db, const TraceInfo& info, int64_t process, ReplayOptions options)
    : db_(db),
      info_(info),
      process_(info.process(process)),
      options_(std::move(options)),
      memory_(process_.heap_start, info.syscalls_are_all()),
      freed_(recorded_cache_rules(db, info, process)) {
  if (options_.parent_at_fork != nullptr) {
    live_.copy_from(options_.parent_at_fork->live_);
    memory_ = options_.parent_at_fork->memory_;
    freed_ = options_.parent_at_fork->freed_;
    now_ns_ = options_.parent_at_fork->now_ns_;
    memory_.share_pages();
  } else {
    play_ancestors(process_);
  }
  live_.mark_inherited();
  resident_peak_ = {memory_.resident_bytes(), memory_.resident_bytes(), now_ns_};
  open(process, kNever, true);
  if (options_.observer != nullptr) options_.observer->on_begin(*this);
}

Replay::~Replay() = default;

void Replay::play_ancestors(const ProcessInfo& process) {
  if (!process.forked || !process.parent || !process.start_ns) return;
  const ProcessInfo& parent = info_.process(*process.parent);
  if (parent.id >= process.id) return;  // Only a damaged trace has a cycle.
  play_ancestors(parent);
  open(parent.id, *process.start_ns, false);
  run(UINT64_MAX, kNever);
  memory_.share_pages();
}

void Replay::open(int64_t process, int64_t time_max_ns, bool own) {
  own_ = own;
  step_ = 0;
  if (memory_.window_is_open()) memory_.end_window();  // A fork while the parent's was taken.
  streams_ = std::make_unique<Streams>(db_, info_, process, time_max_ns, options_, own);
}

void Replay::run_to_step(uint64_t step) { run(step, kNever); }
void Replay::run_to_time(int64_t time_ns) { run(UINT64_MAX, time_ns); }
void Replay::run_to_end() { run(UINT64_MAX, kNever); }

void Replay::finish() {
  live_.forget_addresses();
  streams_.reset();
  malloc_trim(0);  // It lies between what stays.
}

void Replay::run(uint64_t step_max, int64_t time_max_ns) {
  Streams& in = *streams_;
  ReplayObserver* observer = own_ ? options_.observer : nullptr;
  while (step_ < step_max) {
    const int64_t acquisition = memory_.next_acquisition();
    const int64_t fault = in.faults.next_time();
    const int64_t other = std::min({in.syscall_time, fault, in.snapshot_time(), in.fork_time(),
                                    in.thread_end_time(), in.moment_time()});
    const int64_t next = std::min({acquisition, in.call_time, other});
    if (next == kNever || next > time_max_ns) {
      if (next == kNever) give_up_waiting(0, kAddressMax);
      return;
    }
    now_ns_ = next;
    // At one and the same time: memory that was got, then calls, then what they led to.
    if (acquisition == next) {
      change_memory([](MemoryMap& memory) { memory.acquire_next(); });
    } else if (in.call_time == next) {
      play_calls(std::min(other, time_max_ns), acquisition, step_max);
      continue;
    } else if (in.syscall_time == next) {
      play_syscall(in.syscall);
      in.next_syscall();
      ++step_;
    } else if (fault == next) {
      FaultStream::Place place;
      const schema::FaultRow row = in.faults.next(place);
      play_fault(row, std::move(place));
      note_resident_peak();
      continue;
    } else if (in.snapshot_time() == next) {
      if (in.in_snapshot) {
        end_snapshot();
      } else {
        change_memory([now_ns = now_ns_](MemoryMap& memory) { memory.begin_window(now_ns); });
        in.in_snapshot = true;
      }
      continue;
    } else if (in.fork_time() == next) {
      ++in.fork;
      change_memory([](MemoryMap& memory) { memory.share_pages(); });
      continue;
    } else if (in.moment_time() == next) {
      ++in.moment;
      options_.on_moment(*this, next);
      continue;
    } else {
      freed_.end_thread(in.thread_ends[in.thread_end++].thread);
      continue;
    }
    note_resident_peak();
    if (observer != nullptr) observer->on_step(*this);
  }
}

template <typename Change>
void Replay::change_memory(Change change) {
  change(memory_);
  near_ = {};
  past_maps_.note(std::move(change));
}

void Replay::keep(size_t moment) {
  live_.keep(moment, step_);
  freed_.keep(moment);
  past_maps_.keep(moment, memory_);
}

void Replay::forget(size_t moment) {
  live_.forget(moment);
  freed_.forget(moment);
}

void Replay::move(size_t moment, size_t to) {
  live_.move(moment, to);
  freed_.move(moment, to);
  past_maps_.move(moment, to);
}

HeapState Replay::kept(size_t moment) {
  return {past_maps_.at(moment), freed_.at(moment), live_, moment};
}

void Replay::note_resident_peak() {
  if (memory_.resident_bytes() <= resident_peak_.bytes) return;
  resident_peak_.bytes = memory_.resident_bytes();
  resident_peak_.at_ns = now_ns_;
}

// The way of a call, from its end to its beginning: one function for the compiler. Calls among
// them would be a third of what is done.
inline ChunkPlace Replay::place_of(const Block& block, Placing placing) {
  if (block.address - near_.start >= near_.end - near_.start) {
    const RangeMap::Map& ranges = memory_.held().ranges();
    const auto next = ranges.upper_bound(block.address);
    if (next == ranges.begin() || block.address >= std::prev(next)->second.end) return {};
    near_ = {std::prev(next)->first, std::prev(next)->second.end, std::prev(next)->second.kind};
  }
  constexpr int kHeapBits = 26;  // glibc's heaps are aligned to 64 MiB.
  ChunkPlace place;
  place.is_mapped = near_.kind == RangeKind::kMapped;
  place.arena = near_.kind == RangeKind::kHeap ? block.address >> kHeapBits : 0;
  // Asked for only where it decides: looking around is the dearest part.
  if (placing == Placing::kFreed && freed_.has_fast() && !freed_.is_fast(policy_bytes_of(block))) {
    place.merged_bytes = live_.gap_around(block.address, near_.start, near_.end);
  }
  return place;
}

inline void Replay::follow_chunks(const CallRow& row, const Block* ended, const Block* begun) {
  if (ended != nullptr && begun != nullptr && ended->address == begun->address) {
    // A realloc in place. What it cuts off is freed.
    if (ended->usable < begun->usable + kChunkBytesMin) return;
    Block rest = *begun;
    rest.address += begun->usable + kHeaderBytes;
    rest.usable = rest.size = ended->usable - begun->usable - kHeaderBytes;
    freed_.free(row.thread, rest, [&] { return place_of(rest, Placing::kFreed); });
    return;
  }
  if (begun != nullptr) {
    freed_.allocate(row.thread, *begun, [&] { return place_of(*begun, Placing::kAllocated); });
  }
  if (ended != nullptr) {
    freed_.free(row.thread, *ended, [&] { return place_of(*ended, Placing::kFreed); });
  }
}

// False: no fault waits for this block, of whatever thread. Some wait until the process ends, so
// this is asked for every block.
inline bool Replay::may_wait_for(const Block& block) {
  constexpr uint64_t kPagesMax = 8;  // To look at.
  const uint64_t start = block.address - std::min(block.address, kHeaderBytes);
  const uint64_t end = block.address + block.usable;
  if (end <= waiting_in_.first || start > waiting_in_.last) return false;
  const uint64_t last = end / kPageBytes;
  uint64_t page = start / kPageBytes;
  if (last - page >= kPagesMax) return true;
  for (; page <= last; ++page) {
    if (waiting_at(page) != 0) return true;
  }
  return false;
}

[[gnu::always_inline]] inline uint32_t Replay::begin_block(const CallRow& row) {
  Block block{row.id, row.address, row.size, row.usable, row.time_ns, row.stack, row.thread};
  block.step = step_ + 1;
  const uint32_t place = live_.insert(block);
  if (place == LiveSet::kNone) return place;
  if (options_.faults && block.usable != 0) {
    memory_.note_used(block.address, block.address + block.usable);
  }
  if (own_ && options_.observer != nullptr) options_.observer->on_alloc(row, block);
  if (waiting_count_ != 0 && may_wait_for(block)) take_waiting(row.thread, block);
  return place;
}

// Where it was, or kNone.
[[gnu::always_inline]] inline uint32_t Replay::end_block(const CallRow& row) {
  const bool released = row.kind < schema::EventKind::kRealloc && row.id == 0;
  const uint32_t place = live_.take(row.ended_id, released ? row.address : row.old_address);
  if (place == LiveSet::kNone) {
    ++unmatched_ends_;
  } else if (own_ && options_.observer != nullptr) {
    options_.observer->on_end(row, live_.at(place));
  }
  return place;
}

[[gnu::always_inline]] inline void Replay::play_call(const CallRow& row) {
  const uint32_t ended_at = row.ended_id != 0 ? end_block(row) : LiveSet::kNone;
  const Block* ended = ended_at != LiveSet::kNone ? &live_.at(ended_at) : nullptr;
  uint32_t begun_at = LiveSet::kNone;
  if (row.id != 0) {
    std::optional<Block> copy;  // The new block may take its place.
    if (ended != nullptr) ended = &copy.emplace(*ended);
    begun_at = begin_block(row);
    follow_chunks(row, ended, begun_at != LiveSet::kNone ? &live_.at(begun_at) : nullptr);
  } else if (ended != nullptr) {
    follow_chunks(row, ended, nullptr);
  }
  if (own_ && options_.calls != nullptr) {
    const schema::CallRun& run = streams_->run;
    options_.calls->on_played(*run.batch, run.begin, ended_at, begun_at);
  }
}

// As many calls as come before anything else. They change nothing about pages.
void Replay::play_calls(int64_t until_ns, int64_t before_ns, uint64_t step_max) {
  Streams& in = *streams_;
  ReplayObserver* observer = own_ ? options_.observer : nullptr;
  note_resident_peak();
  while (in.call_time <= until_ns && in.call_time < before_ns && step_ < step_max) {
    constexpr size_t kAheadStart = 12;
    constexpr size_t kAheadBlock = 6;
    in.prefetch_rows();
    live_.prefetch_start(in.address_ahead(kAheadStart));
    live_.prefetch_block(in.address_ahead(kAheadBlock));
    const CallRow row = in.call();
    now_ns_ = row.time_ns;
    if (observer != nullptr) observer->on_call(row);
    play_call(row);
    in.next_call();
    ++step_;
    if (observer != nullptr) observer->on_step(*this);
  }
}

void Replay::play_syscall(const SyscallRow& call) {
  if (waiting_count_ != 0 && !call.failed() && call.name == schema::SyscallName::kMunmap) {
    give_up_waiting(call.args[0], call.args[0] + call.args[1]);
  }
  change_memory([call](MemoryMap& memory) { memory.enter(call); });
  if (own_ && options_.observer != nullptr) options_.observer->on_syscall(call);
}

void Replay::play_fault(const schema::FaultRow& row, FaultStream::Place place) {
  WaitingFault fault;
  fault.fact.row = row;
  fault.fact.touch = memory_.fault(row.address);
  past_maps_.note([address = row.address](MemoryMap& memory) { memory.fault(address); });
  if (fault.fact.touch == schema::Touch::kRepeat) {
    fault.fact.after = memory_.last_release(row.address);
  }
  fault.fact.region = memory_.region(row.address);
  fault.place = std::move(place);
  if (!own_) return;
  const Block* block = live_.covering(row.address);
  if (block == nullptr && fault.fact.region != Region::kOther) {
    waiting_[row.thread].emplace(row.address, std::move(fault));
    if (waiting_count_++ == 0) waiting_in_ = {row.address, row.address};
    waiting_in_.first = std::min(waiting_in_.first, row.address);
    waiting_in_.last = std::max(waiting_in_.last, row.address);
    ++waiting_at(row.address / kPageBytes);
    return;
  }
  settle(fault, block);
}

void Replay::take_waiting(uint32_t thread, const Block& block) {
  const auto found = waiting_.find(thread);
  if (found == waiting_.end() || block.address < kHeaderBytes) return;
  WaitingFaults& faults = found->second;
  auto it = faults.lower_bound(block.address - kHeaderBytes);
  while (it != faults.end() && it->first < block.address + block.usable) {
    settle(it->second, &block);
    --waiting_at(it->first / kPageBytes);
    it = faults.erase(it);
    --waiting_count_;
  }
  if (faults.empty()) waiting_.erase(found);
}

void Replay::give_up_waiting(uint64_t start, uint64_t end) {
  for (auto& [thread, faults] : waiting_) {
    auto it = faults.lower_bound(start);
    while (it != faults.end() && it->first < end) {
      settle(it->second, nullptr);
      --waiting_at(it->first / kPageBytes);
      it = faults.erase(it);
      --waiting_count_;
    }
  }
}

void Replay::settle(WaitingFault& waiting, const Block* block) {
  if (block != nullptr) {
    waiting.fact.block_id = block->id;
    waiting.fact.block = block;
    waiting.fact.site = block->stack;
  }
  FaultStream::attribute(waiting.place,
                         {waiting.fact.block_id, waiting.fact.site, waiting.fact.touch});
  if (options_.observer != nullptr) options_.observer->on_fault(waiting.fact);
}

void Replay::end_snapshot() {
  Streams& in = *streams_;
  const SnapshotEntry& entry = in.snapshots[in.snapshot++];
  in.in_snapshot = false;
  const uint64_t resident = memory_.resident_bytes();
  show_residency(entry.id);
  const SnapshotMoment moment{entry.id,       entry.begin_ns, entry.end_ns, memory_.end_window(),
                              resident_peak_, resident};
  past_maps_.note([](MemoryMap& memory) { memory.end_window(); });
  resident_peak_ = {memory_.resident_bytes(), memory_.resident_bytes(), entry.end_ns};
  if (own_ && options_.on_snapshot) options_.on_snapshot(*this, moment);
}

// With perf the faults say what became resident, and the snapshot corrects them. Without it the
// snapshot is all there is, and each page it shows first stands for a fault.
void Replay::show_residency(int64_t snapshot) {
  schema::Statement select =
      db_.prepare("SELECT start, runs, pages FROM residency WHERE snapshot = ? ORDER BY start");
  select.bind(1, snapshot);
  while (select.step()) {
    uint64_t page = select.column_uint(0);
    std::span<const uint8_t> runs = select.column_blob(1);
    const uint64_t range_end = page + select.column_uint(2) * kPageBytes;
    uint64_t pages = 0;
    for (bool resident = false; next_varint(runs, pages); resident = !resident) {
      if (page > range_end || pages > (range_end - page) / kPageBytes) break;  // Damaged.
      const uint64_t end = page + pages * kPageBytes;
      if (info_.faults_have_addresses()) {
        change_memory(
            [page, end, resident](MemoryMap& memory) { memory.correct(page, end, resident); });
      } else {
        show_run(page, end, resident);
      }
      page = end;
    }
  }
}

void Replay::show_run(uint64_t start, uint64_t end, bool resident) {
  if (!resident) {
    change_memory([start, end](MemoryMap& memory) { memory.seen_absent(start, end); });
    return;
  }
  for (uint64_t page = start; page < end; page += kPageBytes) {
    const bool again = memory_.was_ever_resident(page);
    const bool is_new = memory_.seen_resident(page);
    past_maps_.note([page](MemoryMap& memory) { memory.seen_resident(page); });
    if (!is_new || !own_) continue;
    FaultFact fact;
    fact.row.time_ns = now_ns_;
    fact.row.address = page;
    fact.touch = again ? schema::Touch::kRepeat : schema::Touch::kFirst;
    if (again) fact.after = memory_.last_release(page);
    fact.region = memory_.region(page);
    fact.from_snapshot = true;
    if (const Block* block = live_.first_in(page, page + kPageBytes)) {
      fact.block_id = block->id;
      fact.block = block;
      fact.site = block->stack;
    }
    if (options_.observer != nullptr) options_.observer->on_fault(fact);
  }
}

}  // namespace heapledger::analyzer
