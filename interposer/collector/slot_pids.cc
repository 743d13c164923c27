// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/slot_pids.h"

#include "interposer/collector/proc_files.h"

namespace heapledger::collector {
namespace {

constexpr int kForksMax = 64;  // Parents of parents; more is a loop in damaged slots.

}  // namespace

SlotPids::SlotPids(const Region& region, pid_t pid, uint32_t own_pid)
    : region_(&region), pid_(pid), own_pid_(own_pid), began_(proc_start_time(pid)) {}

const SlotPids::Known& SlotPids::look(uint32_t slot, int depth) {
  const schema::ProcessSlot& fields = region_->process_slot(slot);
  const auto found = known_.find(fields.start_tick);
  if (found != known_.end() && found->second.pid > 0) return found->second;
  Known news{0, own_pid_ != static_cast<uint32_t>(pid_)};
  const uint32_t parent_slot = fields.parent_slot;
  const bool has_parent =
      parent_slot < region_->layout().process_slots && parent_slot != slot && depth < kForksMax;
  if (has_parent) {
    // The parent may have ended, and its slot be another's.
    const auto past = known_.find(fields.parent_start_tick);
    const Known parent = past != known_.end() ? past->second : look(parent_slot, depth + 1);
    const bool leaves = fields.ppid == 0;
    news.elsewhere = parent.elsewhere || leaves;
    if (leaves) {
      news.pid = child_by_own_pid(parent.pid, fields.pid);
    } else if (news.elsewhere) {
      news.pid = process_by_own_pid(parent.pid, fields.pid);
    }
  } else if (news.elsewhere) {
    news.pid = pid_;
  }
  if (!news.elsewhere) {
    const auto pid = static_cast<pid_t>(fields.pid);
    // A slot that was written over may name anyone, the first process of the machine for one. No
    // process of the image began before the image's own.
    const uint64_t began = proc_start_time(pid);
    news.pid = pid > 0 && (began == 0 || began >= began_) ? pid : 0;
  } else if (news.pid <= 0) {
    news.pid = -static_cast<pid_t>(fields.pid & INT32_MAX);
  }
  return known_[fields.start_tick] = news;
}

pid_t SlotPids::pid_of_slot(uint32_t slot) { return look(slot).pid; }

pid_t SlotPids::pid_named_by(uint32_t slot, uint32_t own_pid) {
  const Known& process = look(slot);
  if (!process.elsewhere) return static_cast<pid_t>(own_pid);
  return process_by_own_pid(process.pid, own_pid);
}

pid_t SlotPids::tid_named_by(uint32_t slot, uint32_t own_tid) {
  const Known& process = look(slot);
  if (!process.elsewhere) return static_cast<pid_t>(own_tid);
  const pid_t tid = thread_by_own_tid(process.pid, own_tid);
  return tid != 0 ? tid : static_cast<pid_t>(own_tid);
}

}  // namespace heapledger::collector
