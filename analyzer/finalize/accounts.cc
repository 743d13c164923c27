// SPDX-License-Identifier: Apache-2.0
#include "analyzer/finalize/accounts.h"

#include <algorithm>

namespace heapledger::analyzer {

using schema::CallRow;
using schema::SyscallName;

bool SiteAccount::is_empty() const {
  return calls == 0 && live_blocks == 0 && live_blocks_peak == 0 && faults == 0 && syscalls == 0 &&
         inherited_blocks == 0 && temporary == 0;
}

void FaultCounts::add(const FaultCounts& more) {
  faults += more.faults;
  repeat_faults += more.repeat_faults;
  cow_faults += more.cow_faults;
  zero_upgrades += more.zero_upgrades;
  for (size_t i = 0; i < after.size(); ++i) after[i] += more.after[i];
}

Accounts::Accounts(int64_t start_ns, int64_t end_ns, int64_t calls, std::vector<ArenaChange> arenas)
    : start_ns_(start_ns), arena_use_(std::move(arenas)) {
  const int64_t span_ns = std::max<int64_t>(end_ns - start_ns, 1);
  bucket_ns_ = span_ns / static_cast<int64_t>(kTimelineParts) + 1;
  bucket_end_ns_ = start_ns + bucket_ns_;
  part_calls_ = static_cast<uint64_t>(std::max<int64_t>(calls, 0)) / kGrowthParts + 1;
  part_end_calls_ = part_calls_;
}

SiteAccount& Accounts::make_site(uint32_t stack) {
  if (stack >= places_.size())
    places_.resize(std::max<size_t>(size_t{stack} + 1, places_.size() * 2));
  sites_.emplace_back().stack = stack;
  places_[stack] = static_cast<uint32_t>(sites_.size());
  return sites_.back();
}

void Accounts::make_thread(uint32_t id) {
  threads_.resize(std::max<size_t>(size_t{id} + 1, threads_.size() * 2));
}

void Accounts::on_begin(Replay& replay) {
  replay.keep(kHeldPeak);
  replay.keep(kFreePeak);
  replay_ = &replay;
  live_ = &replay.live();
  arena_use_.begin(replay.memory());
  live_->for_each([this](const Block& block) {
    SiteAccount& account = site(block.stack);
    account.live_bytes += block.size;
    ++account.live_blocks;
    account.inherited_bytes += block.size;
    ++account.inherited_blocks;
    heap_growth_.on_inherited(block, arena_use_.arena_of(block.address, start_ns_));
  });
  live_peak_ = live_->requested_bytes();
  live_peak_ns_ = start_ns_;
  ++peak_epoch_;
  on_step(replay);
}

// The thread made system calls for memory on the way to this block.
void Accounts::count_acquired(SiteAccount& account, ThreadState& state, uint64_t address,
                              int64_t now_ns) {
  ++account.calls_with_syscall;
  if (state.mapping_ns >= 0) {
    ++account.mapped_blocks;
    account.mapped_ns += state.mapping_ns;
    mapped_sites_[address / kPageBytes] = account.stack;
  }
  set_acquired(state, false, now_ns);
  state.mapping_ns = -1;
}

void Accounts::on_syscall(const SyscallRow& call) {
  if (call.time_ns >= bucket_end_ns_) close_bucket(call.time_ns);
  if (call.origin != schema::Origin::kAllocator) return;
  ++syscalls_;
  heap_growth_.on_syscall(call, arena_use_);
  SiteAccount& account = site(call.stack);
  ++account.syscalls;
  account.syscall_ns += call.duration_ns;
  if (call.failed() || call.cause == "registry") return;
  ThreadState& state = thread(call.thread);
  switch (call.name) {
    case SyscallName::kMmap:
      if (call.cause.empty() || call.cause == "map block") state.mapping_ns = call.duration_ns;
      set_acquired(state, true, call.time_ns);
      break;
    case SyscallName::kBrk:
      // A question and a trim are not made for a request.
      if (call.args[0] == 0) break;
      if (call.cause == "trim top") {
        free_now_ = 0;
      } else {
        set_acquired(state, true, call.time_ns);
      }
      break;
    case SyscallName::kMremap:
    case SyscallName::kMprotect:
      set_acquired(state, true, call.time_ns);
      break;
    case SyscallName::kMunmap:
      charge_unmapping(call);
      free_now_ = 0;
      break;
    case SyscallName::kMadvise:
      free_now_ = 0;
      break;
  }
}

// A block's unmapping is a price of the stack that allocated it, whoever frees it.
void Accounts::charge_unmapping(const SyscallRow& call) {
  const auto found = mapped_sites_.find(call.args[0] / kPageBytes);
  if (found == mapped_sites_.end()) return;
  site(found->second).mapped_ns += call.duration_ns;
  mapped_sites_.erase(found);
}

void Accounts::on_fault(const FaultFact& fact) {
  ++faults_;
  if (fact.block_id != 0) ++site(fact.site).faults;
  FaultCounts& counts =
      fault_sites_[{fact.site, fact.row.kernel ? 0 : fact.row.ip, fact.region, fact.row.kernel}];
  ++counts.faults;
  counts.cow_faults += fact.touch == schema::Touch::kCow;
  counts.zero_upgrades += fact.touch == schema::Touch::kZeroUpgrade;
  if (fact.touch != schema::Touch::kRepeat) return;
  ++counts.repeat_faults;
  ++counts.after[static_cast<size_t>(fact.after)];
}

void Accounts::set_acquired(ThreadState& state, bool acquired, int64_t now_ns) {
  if (state.acquired == acquired) return;
  state.acquired = acquired;
  in_flight_ += acquired ? 1 : uint64_t{0} - 1;
  in_flight_ns_ = now_ns;
}

void Accounts::note_in(TimelineRow& row) const {
  row.live_bytes = replay_->live().requested_bytes();
  row.live_blocks = replay_->live().blocks();
  row.held_bytes = replay_->memory().held_bytes();
  row.resident_bytes = replay_->memory().held_resident_bytes();
  row.calls = calls_;
  row.syscalls = syscalls_;
  row.faults = faults_;
}

void Accounts::on_step(Replay& replay) {
  note_step(replay);
  note_in(last_);
  last_is_due_ = false;
}

void Accounts::on_calls_end(Replay&) { note_last(); }

void Accounts::note_last() {
  if (last_is_due_) note_in(last_);
  last_is_due_ = false;
}

void Accounts::note_held_peak(Replay& replay) {
  held_peak_ = replay.memory().held_bytes();
  live_at_held_peak_ = replay.live().requested_bytes();
  held_peak_step_ = replay.step();
  held_peak_ns_ = replay.now_ns();
  replay.keep(kHeldPeak);
}

// It is a new peak, unless the next step gives it back.
void Accounts::keep_free(Replay& replay) {
  free_now_step_ = replay.step();
  free_now_ns_ = replay.now_ns();
  replay.keep(kFreeNow);
  has_free_now_ = true;
}

void Accounts::forget_free(Replay& replay) {
  replay.forget(kFreeNow);
  has_free_now_ = false;
}

void Accounts::settle_free(Replay& replay) {
  if (free_now_ <= free_peak_) return;
  replay.move(kFreeNow, kFreePeak);
  free_peak_ = free_now_;
  free_peak_step_ = free_now_step_;
  free_peak_ns_ = free_now_ns_;
}

// Ends the timeline's bucket.
void Accounts::close_bucket(int64_t now_ns) {
  note_last();
  flush_bucket();
  bucket_end_ns_ = start_ns_ + ((now_ns - start_ns_) / bucket_ns_ + 1) * bucket_ns_;
}

void Accounts::flush_bucket() {
  if (!bucket_used_) return;
  if (fullest_.time_ns != last_.time_ns) timeline_.push_back(fullest_);
  timeline_.push_back(last_);
  bucket_used_ = false;
}

void Accounts::close_growth_part() {
  for (SiteAccount& account : sites_) {
    if (account.live_bytes > account.growth_max) {
      account.growth_max = account.live_bytes;
      ++account.growth;
    }
  }
}

void Accounts::finish(Replay& replay) {
  settle_free(replay);
  note_moment(replay);
  note_in(last_);
  flush_bucket();
  close_growth_part();
  for (size_t i = 0; i < sites_.size(); ++i) changing_site(sites_[i].stack);
  std::sort(sites_.begin(), sites_.end(),
            [](const SiteAccount& a, const SiteAccount& b) { return a.stack < b.stack; });
  places_.clear();
}

}  // namespace heapledger::analyzer
