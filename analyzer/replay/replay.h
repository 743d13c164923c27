// SPDX-License-Identifier: Apache-2.0
// One process's recording, played again: its calls, memory system calls, page faults and residency
// snapshots in order of time, with the state of its heap after each.
//
// A report is an observer, or a look at the state where the replay was told to stop. A forked child
// begins with the memory of its parent at that moment: the ancestors' events up to the fork are
// played first, unobserved, and what is live then is `inherited`.
//
// A *step* is a call or a system call of the process itself. Two replays of one process take the
// same steps. A moment that only later turns out to be of interest (the peak) can be kept: what
// changes afterwards is noted, and the heap as it was then is there at the end of the one pass.
//
// Faults. A fault belongs to the live block whose chunk covers its address. Where none does, it was
// made inside an allocation call that has no event yet (calloc's clearing, realloc's copying, the
// new header): it waits for the next event of its thread whose chunk covers it. If none comes
// before the page is given back or the process ends, it is in no block.
// Thread safety: none. Memory: the live blocks, some batches.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "analyzer/replay/fault_stream.h"
#include "analyzer/replay/freed_chunks.h"
#include "analyzer/replay/live_set.h"
#include "analyzer/replay/memory_map.h"
#include "analyzer/replay/past_maps.h"
#include "analyzer/trace_info.h"
#include "schema/event_reader.h"

namespace heapledger::analyzer {

// A page that became resident: a fault, or (without perf) a page that a snapshot showed first.
struct FaultFact {
  schema::FaultRow row;
  schema::Touch touch = schema::Touch::kUnknown;
  Release after = Release::kNone;  // Of a repeat touch: what had released the page.
  Region region = Region::kOther;
  uint64_t block_id = 0;         // 0: in no block.
  const Block* block = nullptr;  // That one, while an observer is told.
  uint32_t site = 0;
  bool from_snapshot = false;
};

class Replay;

// Most resident bytes since a moment (MemoryMap::resident_bytes()), when, and how many at first.
struct ResidencyPeak {
  uint64_t bytes_at_first = 0;
  uint64_t bytes = 0;
  int64_t at_ns = 0;
};

// A snapshot of the process, when the replay has come to its end.
struct SnapshotMoment {
  int64_t id = 0;
  int64_t begin_ns = 0, end_ns = 0;
  ResidencyWindow window;
  ResidencyPeak before;         // Since the snapshot before this one.
  uint64_t resident_bytes = 0;  // At its end, before it corrected anything.
};

class ReplayObserver {
 public:
  virtual ~ReplayObserver() = default;
  // The process's own part begins; inherited blocks are in place.
  virtual void on_begin(Replay&) {}
  virtual void on_call(const schema::CallRow&) {}  // Before its effects.
  virtual void on_alloc(const schema::CallRow&, const Block&) {}
  virtual void on_end(const schema::CallRow&, const Block&) {}  // By free or realloc.
  virtual void on_syscall(const SyscallRow&) {}
  virtual void on_fault(const FaultFact&) {}
  virtual void on_step(Replay&) {}  // After a step's effects, and after acquisitions.
  // The same for calls, of which more may follow at once; and after the last of those.
  virtual void on_call_step(Replay& replay) { on_step(replay); }
  virtual void on_calls_end(Replay&) {}
};

// Sees each call of the process itself with the places in the live set (LiveSet::kNone: none) of
// the block that it ended and of the one that it began, after it was played. A place is used again.
class PlayedCalls {
 public:
  virtual ~PlayedCalls() = default;
  virtual void on_played(const schema::CallBatch& batch, size_t row, uint32_t ended,
                         uint32_t begun) = 0;
};

// Plays calls up to a time and a step: Replay::play_calls().
using CallPlayer = void (*)(Replay& replay, int64_t last_ns, uint64_t step_max);

struct ReplayOptions {
  bool faults = true;  // Page faults and snapshots.
  ReplayObserver* observer = nullptr;
  PlayedCalls* calls = nullptr;
  // Made for the types that observer and calls are of; null: one that asks them.
  CallPlayer player = nullptr;
  FaultStream::Sink attributions;  // Of the process's own faults.
  // Each snapshot of the process itself, the map corrected by it; only with `faults`.
  std::function<void(const Replay&, const SnapshotMoment&)> on_snapshot;
  // Called at these times of the process itself, in order.
  std::vector<int64_t> moments;
  std::function<void(const Replay&, int64_t time_ns)> on_moment;
  // A forked process: a replay of its parent that stands at the fork, to begin with a copy of its
  // memory. Without one the ancestors are played again. Read in the constructor only.
  const Replay* parent_at_fork = nullptr;
  schema::DamageSink damage;
};

// The heap at one moment: now, or at one that was kept.
class HeapState {
 public:
  HeapState(const Replay& now);  // NOLINT: a replay is a heap, as it is now.
  HeapState(const MemoryMap& memory, FreedChunks freed, const LiveSet& live, size_t moment)
      : memory_(memory),
        kept_freed_(std::make_shared<FreedChunks>(std::move(freed))),
        freed_(*kept_freed_),
        live_(live),
        moment_(moment) {}

  const MemoryMap& memory() const { return memory_; }
  const FreedChunks& freed_chunks() const { return freed_; }
  template <typename Visit>
  void each_live(Visit visit) const {
    if (moment_) {
      live_.for_each_at(*moment_, visit);
    } else {
      live_.for_each(visit);
    }
  }

 private:
  const MemoryMap& memory_;
  std::shared_ptr<const FreedChunks> kept_freed_;
  const FreedChunks& freed_;
  const LiveSet& live_;
  std::optional<size_t> moment_;  // Nothing: now.
};

class Replay {
 public:
  Replay(schema::Database& db, const TraceInfo& info, int64_t process, ReplayOptions options);
  ~Replay();

  // Plays until after step `step`, or through everything up to `time_ns`.
  void run_to_step(uint64_t step);
  void run_to_time(int64_t time_ns);
  void run_to_end();

  // Nothing more is played: gives the memory back that only that needs. What the heap is and was at
  // kept moments is still there.
  void finish();

  // Keeps the heap as it is now as number `moment`, below kKeptMoments, in place of what was.
  void keep(size_t moment);
  // It is not wanted any more, or is number `to` from now on.
  void forget(size_t moment);
  void move(size_t moment, size_t to);
  // It must have been kept. Valid until something is played or kept.
  HeapState kept(size_t moment);

  const LiveSet& live() const { return live_; }
  const MemoryMap& memory() const { return memory_; }
  const FreedChunks& freed_chunks() const { return freed_; }
  int64_t now_ns() const { return now_ns_; }  // Time of the last event played.
  uint64_t step() const { return step_; }
  uint64_t unmatched_ends() const { return unmatched_ends_; }
  const ProcessInfo& process() const { return process_; }
  // Since the last snapshot.
  const ResidencyPeak& resident_peak() const { return resident_peak_; }

  // replay_calls.h. `Observer` and `Calls`: final classes, or the interfaces.
  template <class Observer, class Calls>
  static void play_calls(Replay& replay, int64_t last_ns, uint64_t step_max);

 private:
  struct Streams;
  struct WaitingFault {
    FaultFact fact;
    FaultStream::Place place;
  };
  using WaitingFaults = std::multimap<uint64_t, WaitingFault>;

  void play_ancestors(const ProcessInfo& process);
  void open(int64_t process, int64_t time_max_ns, bool own);
  void run(uint64_t step_max, int64_t time_max_ns);
  template <class Observer>
  std::pair<uint32_t, uint32_t> play_call(const schema::CallRow& row, Observer* observer);
  template <class Observer>
  uint32_t end_block(const schema::CallRow& row, Observer* observer);
  template <class Observer>
  uint32_t begin_block(const schema::CallRow& row, Observer* observer);
  void look_ahead();
  void follow_chunks(uint32_t thread, const Block* ended, const Block* begun);
  enum class Placing : uint8_t { kAllocated, kFreed };
  ChunkPlace place_of(const Block& block, Placing placing);
  template <typename Change>
  void change_memory(Change change);
  void play_syscall(const SyscallRow& call);
  void play_fault(const schema::FaultRow& row, FaultStream::Place place);
  void end_snapshot();
  void show_residency(int64_t snapshot);
  void show_run(uint64_t start, uint64_t end, bool resident);
  void note_resident_peak();
  uint32_t& waiting_at(uint64_t page) { return waiting_pages_[page % kWaitingSlots]; }
  bool may_wait_for(const Block& block);
  void take_waiting(uint32_t thread, const Block& block);
  void give_up_waiting(uint64_t start, uint64_t end);
  void settle(WaitingFault& waiting, const Block* block);

  schema::Database& db_;
  const TraceInfo& info_;
  const ProcessInfo& process_;
  ReplayOptions options_;
  LiveSet live_;
  MemoryMap memory_;
  struct Range {
    uint64_t start = 0, end = 0;
    RangeKind kind{};
  };
  Range near_;  // Of memory_.held(), the last that was looked for; empty once that changes.
  FreedChunks freed_;
  PastMaps past_maps_;
  std::unique_ptr<Streams> streams_;
  // Of the blocks that calls ahead name, by row of the run that is played.
  static constexpr size_t kLookups = 32;
  std::array<LiveSet::Lookup, kLookups> lookups_;
  bool own_ = false;  // Playing the process itself, not an ancestor.
  int64_t now_ns_ = 0;
  uint64_t step_ = 0;
  uint64_t unmatched_ends_ = 0;
  std::unordered_map<uint32_t, WaitingFaults> waiting_;  // By thread.
  size_t waiting_count_ = 0;
  struct {
    uint64_t first = 0, last = 0;
  } waiting_in_;  // All their addresses are there.
  static constexpr size_t kWaitingSlots = 1024;
  std::array<uint32_t, kWaitingSlots> waiting_pages_{};  // How many, by page, modulo the slots.
  ResidencyPeak resident_peak_;
};

inline HeapState::HeapState(const Replay& now)
    : memory_(now.memory()), freed_(now.freed_chunks()), live_(now.live()) {}

// Reads the rows of table `syscall` of a process in order of entry.
class SyscallReader {
 public:
  // `all`: the recorder's own too.
  SyscallReader(schema::Database& db, int64_t process, int64_t time_max_ns, bool all);
  bool next(SyscallRow& row);

 private:
  schema::Statement select_;
};

}  // namespace heapledger::analyzer
