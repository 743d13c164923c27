// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay/replay.h"

#include <malloc.h>

#include <algorithm>
#include <limits>
#include <span>

#include "analyzer/replay/replay_calls.h"
#include "analyzer/whatif/cache_rules.h"

namespace heapledger::analyzer {

namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
constexpr uint64_t kAddressMax = std::numeric_limits<uint64_t>::max();

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

}  // namespace

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
  const CallPlayer player = own_ && options_.player != nullptr
                                ? options_.player
                                : &Replay::play_calls<ReplayObserver, PlayedCalls>;
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
      player(*this, std::min({other, time_max_ns, acquisition - 1}), step_max);
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
