// SPDX-License-Identifier: Apache-2.0
// The accounts of one process, kept while its recording is replayed: per allocating stack, over
// time, per fault site; and the steps at which its peaks were.
//
// What each stack held at the peak of live bytes is found in one pass: every site remembers its
// value at the last peak it has seen, and brings that up to date when its value next changes
// (between two changes the value at a peak is the value now).
// Thread safety: none. Cost: some ns per event.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "analyzer/finalize/arena_use.h"
#include "analyzer/finalize/heap_growth.h"
#include "analyzer/finalize/usage.h"
#include "analyzer/replay/replay.h"

namespace heapledger::analyzer {

inline constexpr int kGrowthParts = 16;
inline constexpr size_t kTimelineParts = 1000;  // Two rows each: the fullest moment and the last.

struct alignas(64) SiteAccount {
  // What most calls change, in one cache line.
  uint32_t stack = 0;
  int growth = 0;  // In how many parts of the run growth_max rose.
  uint64_t calls = 0, bytes = 0;
  uint64_t live_bytes = 0, live_blocks = 0;
  uint64_t peak_epoch = 0;  // Which peak the two values at it are of.
  uint64_t temporary = 0;
  int64_t last_ns = 0;

  uint64_t live_bytes_peak = 0, live_blocks_peak = 0;
  uint64_t inherited_bytes = 0, inherited_blocks = 0;  // Of the live ones, from before the fork.
  uint64_t faults = 0;
  uint64_t syscalls = 0, calls_with_syscall = 0;
  int64_t syscall_ns = 0;
  uint64_t mapped_blocks = 0;  // Blocks that got a mapping of their own.
  int64_t mapped_ns = 0;       // Spent mapping and unmapping them.
  uint64_t growth_max = 0;     // Most live bytes at the end of a part of the run.
  int64_t first_ns = 0;

  bool is_empty() const;
};

struct TimelineRow {
  int64_t time_ns = 0;
  uint64_t live_bytes = 0, live_blocks = 0, held_bytes = 0, resident_bytes = 0;
  uint64_t calls = 0, syscalls = 0, faults = 0;
};

struct FaultKey {
  uint32_t stack = 0;
  uint64_t ip = 0;  // 0: touched by the kernel, or not known.
  Region region = Region::kOther;
  bool kernel = false;  // Touched in kernel mode: read() into fresh memory.
  bool operator==(const FaultKey&) const = default;
};
struct FaultKeyHash {
  size_t operator()(const FaultKey& key) const {
    return (key.ip * 0x9E3779B97F4A7C15u) ^ (uint64_t{key.stack} << 8) ^
           static_cast<uint64_t>(key.region) << 1 ^ static_cast<uint64_t>(key.kernel);
  }
};
struct FaultCounts {
  uint64_t faults = 0, repeat_faults = 0;
  uint64_t cow_faults = 0, zero_upgrades = 0;
  std::array<uint64_t, kReleaseKinds> after{};  // Of the repeat faults, by what had released.

  void add(const FaultCounts& more);
};

class Accounts final : public ReplayObserver {
 public:
  // `calls`: how many the process made.
  Accounts(int64_t start_ns, int64_t end_ns, int64_t calls, std::vector<ArenaChange> arenas);

  void on_begin(Replay& replay) override;
  void on_call(const schema::CallRow& row) override;
  void on_alloc(const schema::CallRow& row, const Block& block) override;
  void on_end(const schema::CallRow& row, const Block& block) override;
  void on_syscall(const SyscallRow& call) override;
  void on_fault(const FaultFact& fact) override;
  void on_step(Replay& replay) override;
  void on_call_step(Replay& replay) override;
  void on_calls_end(Replay& replay) override;
  // After the last step.
  void finish(Replay& replay);

  // What it keeps in the replay: the heap at held_peak_step() and at free_peak_step().
  enum Moment : size_t { kHeldPeak, kFreePeak };

  // In ascending order of stack, and with the value at the peak up to date, after finish().
  const std::vector<SiteAccount>& sites() const { return sites_; }
  const std::vector<TimelineRow>& timeline() const { return timeline_; }
  const UsageCounts& usage() const { return usage_; }
  const ArenaUse& arena_use() const { return arena_use_; }
  const HeapGrowth& heap_growth() const { return heap_growth_; }
  using FaultSites = std::unordered_map<FaultKey, FaultCounts, FaultKeyHash>;
  const FaultSites& fault_sites() const { return fault_sites_; }
  uint64_t calls() const { return calls_; }
  struct CallCount {
    uint64_t calls = 0, failed = 0;
  };
  static constexpr size_t kKinds = static_cast<size_t>(schema::EventKind::kCallKindEnd);
  const std::array<CallCount, kKinds>& call_counts() const { return call_counts_; }  // By kind.
  uint64_t live_bytes_peak() const { return live_peak_; }
  int64_t live_bytes_peak_ns() const { return live_peak_ns_; }
  // The moment of most held bytes, and of those the one with most live bytes.
  uint64_t held_bytes_peak() const { return held_peak_; }
  uint64_t held_peak_step() const { return held_peak_step_; }
  int64_t held_peak_ns() const { return held_peak_ns_; }
  // The moment of most bytes that are held and not live, but for those on their way: got for a call
  // that has not returned, or given back by one.
  uint64_t free_peak_step() const { return free_peak_step_; }
  int64_t free_peak_ns() const { return free_peak_ns_; }

 private:
  static constexpr size_t kFreeNow = kFreePeak + 1;  // The moment that free_now_ is of.

  struct ThreadState {
    uint64_t last_id = 0;    // The block it allocated last.
    bool acquired = false;   // Made a system call for memory since its last allocation.
    int64_t mapping_ns = 0;  // That of the mapping among them; -1: none.
  };

  SiteAccount& site(uint32_t stack) {
    if (stack >= places_.size() || places_[stack] == 0) [[unlikely]]
      return make_site(stack);
    return sites_[places_[stack] - 1];
  }
  SiteAccount& make_site(uint32_t stack);
  SiteAccount& changing_site(uint32_t stack);
  ThreadState& thread(uint32_t id) {
    if (id >= threads_.size()) [[unlikely]]
      make_thread(id);
    return threads_[id];
  }
  void make_thread(uint32_t id);
  void count_acquired(SiteAccount& account, ThreadState& state, uint64_t address, int64_t now_ns);
  void charge_unmapping(const SyscallRow& call);
  void close_bucket(int64_t now_ns);
  void close_growth_part();
  void note_in(TimelineRow& row) const;
  void note_last();
  void note_moment(const Replay& replay);
  void note_step(Replay& replay);
  void note_held_peak(Replay& replay);
  void keep_free(Replay& replay);
  void forget_free(Replay& replay);
  void settle_free(Replay& replay);
  void set_acquired(ThreadState& state, bool acquired, int64_t now_ns);
  void flush_bucket();

  int64_t start_ns_;
  int64_t bucket_ns_;
  int64_t bucket_end_ns_;
  // A part of the run is a share of its calls: how long each took is the machine's affair.
  uint64_t part_calls_;
  uint64_t part_end_calls_;
  uint64_t seen_calls_ = 0;
  // Few of a large tree's stacks allocate, so the accounts are not indexed by stack.
  std::vector<SiteAccount> sites_;
  std::vector<uint32_t> places_;  // By stack: its place in sites_ + 1; 0: none.
  std::vector<ThreadState> threads_;
  std::unordered_map<uint64_t, uint32_t> mapped_sites_;  // Start of a mapping -> its block's stack.
  FaultSites fault_sites_;
  std::vector<TimelineRow> timeline_;
  TimelineRow fullest_, last_;
  bool bucket_used_ = false;
  bool last_is_due_ = false;  // Of last_ only the time is right; the rest is as it is now.
  std::array<CallCount, kKinds> call_counts_{};
  uint64_t calls_ = 0, syscalls_ = 0, faults_ = 0;
  uint64_t live_peak_ = 0;
  int64_t live_peak_ns_ = 0;
  uint64_t peak_epoch_ = 0;
  uint64_t held_peak_ = 0, live_at_held_peak_ = 0, held_peak_step_ = 0;
  int64_t held_peak_ns_ = 0;
  uint64_t free_peak_ = 0, free_peak_step_ = 0;
  int64_t free_peak_ns_ = 0;
  uint64_t free_now_ = 0, free_now_step_ = 0;  // A peak, unless the next step gives it back.
  int64_t free_now_ns_ = 0;
  bool has_free_now_ = false;  // It is kept.
  uint64_t in_flight_ = 0;     // Threads that got memory for a call that has not returned.
  int64_t in_flight_ns_ = 0;   // When the last of them did.
  UsageCounts usage_;
  ArenaUse arena_use_;
  HeapGrowth heap_growth_;
  const Replay* replay_ = nullptr;
  const LiveSet* live_ = nullptr;
};

// Asked for with every call, so they are to be inlined.
inline void Accounts::on_call(const schema::CallRow& row) {
  if (row.time_ns >= bucket_end_ns_) [[unlikely]]
    close_bucket(row.time_ns);
  if (seen_calls_++ >= part_end_calls_) [[unlikely]] {
    close_growth_part();
    part_end_calls_ += part_calls_;
  }
  const bool releases =
      row.kind >= schema::EventKind::kFree && row.kind < schema::EventKind::kRealloc;
  if (releases && row.address == 0) return;
  ++calls_;
  CallCount& count = call_counts_[static_cast<size_t>(row.kind)];
  ++count.calls;
  count.failed += (row.flags & schema::kFailed) != 0;
}

// The site, with its value at the last peak noted before its live bytes change.
inline SiteAccount& Accounts::changing_site(uint32_t stack) {
  SiteAccount& account = site(stack);
  if (account.peak_epoch != peak_epoch_) {
    account.live_bytes_peak = account.live_bytes;
    account.live_blocks_peak = account.live_blocks;
    account.peak_epoch = peak_epoch_;
  }
  return account;
}

inline void Accounts::on_alloc(const schema::CallRow& row, const Block& block) {
  usage_.on_alloc(row, block);
  heap_growth_.on_alloc(block, arena_use_.on_alloc(row, block), arena_use_);
  SiteAccount& account = changing_site(block.stack);
  ++account.calls;
  account.bytes += block.size;
  account.live_bytes += block.size;
  ++account.live_blocks;
  if (account.calls == 1) account.first_ns = row.time_ns;
  account.last_ns = row.time_ns;
  ThreadState& state = thread(row.thread);
  state.last_id = block.id;
  if (state.acquired) [[unlikely]]
    count_acquired(account, state, block.address, row.time_ns);
  if (live_->requested_bytes() > live_peak_) {
    live_peak_ = live_->requested_bytes();
    live_peak_ns_ = row.time_ns;
    ++peak_epoch_;
  }
}

inline void Accounts::on_end(const schema::CallRow& row, const Block& block) {
  usage_.on_end(row, block);
  heap_growth_.on_end(block, arena_use_.on_end(row, block));
  SiteAccount& account = changing_site(block.stack);
  account.live_bytes -= block.size;
  --account.live_blocks;
  if (block.inherited) [[unlikely]] {
    account.inherited_bytes -= block.size;
    --account.inherited_blocks;
    return;
  }
  const bool freed = row.kind < schema::EventKind::kRealloc;
  if (freed && thread(block.thread).last_id == block.id) ++account.temporary;
}

inline void Accounts::note_moment(const Replay& replay) {
  last_.time_ns = replay.now_ns();
  if (!bucket_used_ || replay.live().requested_bytes() > fullest_.live_bytes) {
    // Not copied from last_: that would wait for what was just written.
    fullest_.time_ns = replay.now_ns();
    note_in(fullest_);
    bucket_used_ = true;
  }
}

inline void Accounts::note_step(Replay& replay) {
  constexpr int64_t kFlightNsMax = 10'000'000;  // A thread that never came back is left out.
  const uint64_t held = replay.memory().held_bytes();
  const uint64_t live = replay.live().requested_bytes();
  if (held > held_peak_ || (held == held_peak_ && live > live_at_held_peak_)) {
    note_held_peak(replay);
  }
  if (free_now_ > free_peak_) [[unlikely]]
    settle_free(replay);
  free_now_ = held - std::min(held, replay.live().usable_bytes());
  if (in_flight_ != 0 && replay.now_ns() - in_flight_ns_ < kFlightNsMax) free_now_ = 0;
  if (free_now_ > free_peak_) {
    keep_free(replay);
  } else if (has_free_now_) {
    forget_free(replay);
  }
  note_moment(replay);
}

inline void Accounts::on_call_step(Replay& replay) {
  note_step(replay);
  last_is_due_ = true;
}

}  // namespace heapledger::analyzer
