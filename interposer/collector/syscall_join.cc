// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/syscall_join.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <limits>

namespace heapledger::collector {
namespace {

using schema::SyscallName;

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
// How far the two clocks may differ: they come from one counter. No more, because a call may have
// its like close by: a vfork child's and its parent's, say, whose wrappers write into one ring.
constexpr int64_t kClockSlackNs = 3'000;
// Of a wrapper's event that has found none: perhaps the clocks were worse than we think.
constexpr int64_t kLastSlackNs = 200'000;
// A processor may be late with publishing a record that it has stamped.
constexpr int64_t kRecordSlackNs = 200'000'000;
constexpr size_t kCallsMax = 65536;  // Of a thread that tells nothing.

uint64_t as_int(uint64_t value) {
  return static_cast<uint64_t>(static_cast<int64_t>(static_cast<int32_t>(value)));
}

// Beyond the wrapper's interval by so much, 0 inside.
int64_t distance(const SyscallRow& row, const KernelCall& call) {
  const int64_t before = row.time_ns - call.entered_ns;
  const int64_t behind = call.left_ns - (row.time_ns + row.duration_ns);
  return std::max<int64_t>(before, 0) + std::max<int64_t>(behind, 0);
}

bool is_same(const schema::SyscallEvent& event, const KernelCall& call) {
  if (event.name != call.name || event.result != call.result) return false;
  uint64_t args[6];
  std::memcpy(args, event.args, sizeof args);
  normalize_arguments(event.name, args);
  return std::memcmp(args, call.args, sizeof args) == 0;
}

// The kernel's times, moved into the wrapper's interval where the clocks differ: what the wrapper's
// thread did before and after it stays before and after.
void take_times(SyscallRow& row, const KernelCall& call) {
  const int64_t left = row.time_ns + row.duration_ns;
  const int64_t duration = std::min(call.left_ns - call.entered_ns, row.duration_ns);
  row.time_ns = std::clamp(call.entered_ns, row.time_ns, left - duration);
  row.duration_ns = duration;
}

}  // namespace

void normalize_arguments(SyscallName name, uint64_t (&args)[6]) {
  constexpr size_t kUsed[] = {1, 6, 2, 5, 3, 3};  // By SyscallName.
  for (size_t i = kUsed[static_cast<size_t>(name)]; i < std::size(args); ++i) args[i] = 0;
  switch (name) {
    case SyscallName::kMmap:
      for (const size_t i : {2, 3, 4}) args[i] = as_int(args[i]);
      break;
    case SyscallName::kMremap:
      args[3] = as_int(args[3]);
      if ((args[3] & (MREMAP_FIXED | MREMAP_DONTUNMAP)) == 0) args[4] = 0;
      break;
    case SyscallName::kMadvise:
    case SyscallName::kMprotect:
      args[2] = as_int(args[2]);
      break;
    default:
      break;
  }
}

SyscallJoin::Waiting& SyscallJoin::waiting_of(Process& process, Thread& thread) {
  Waiting& waiting = waiting_[&thread];
  waiting.process = &process;
  waiting.thread = &thread;
  return waiting;
}

void SyscallJoin::wrapped(Process& process, Thread& thread, const SyscallRow& row) {
  std::vector<SyscallRow>& rows = waiting_of(process, thread).rows;
  rows.insert(std::upper_bound(
                  rows.begin(), rows.end(), row,
                  [](const SyscallRow& a, const SyscallRow& b) { return a.time_ns < b.time_ns; }),
              row);
}

void SyscallJoin::called(Process& process, Thread& thread, const KernelCall& call) {
  std::vector<Call>& calls = waiting_of(process, thread).calls;
  calls.insert(std::upper_bound(calls.begin(), calls.end(), call.entered_ns,
                                [](int64_t time_ns, const Call& other) {
                                  return time_ns < other.call.entered_ns;
                                }),
               {call});
}

bool SyscallJoin::match_row(Waiting& waiting, const SyscallRow& row, int64_t slack_ns) {
  auto it = std::lower_bound(
      waiting.calls.begin(), waiting.calls.end(), row.time_ns - slack_ns,
      [](const Call& call, int64_t time_ns) { return call.call.entered_ns < time_ns; });
  const int64_t last_ns = row.time_ns + row.duration_ns + slack_ns;
  Call* best = nullptr;
  for (; it != waiting.calls.end() && it->call.entered_ns <= last_ns; ++it) {
    if (it->done || !is_same(row.call, it->call)) continue;
    if (best == nullptr || distance(row, it->call) < distance(row, best->call)) best = &*it;
    if (distance(row, best->call) == 0) break;
  }
  if (best == nullptr || distance(row, best->call) > slack_ns) return false;
  best->done = true;
  SyscallRow joined = row;
  take_times(joined, best->call);
  sink_.row(joined);
  return true;
}

void SyscallJoin::match(Waiting& waiting) {
  if (waiting.calls.empty() || waiting.rows.empty()) return;
  const size_t matched = std::erase_if(
      waiting.rows, [&](const SyscallRow& row) { return match_row(waiting, row, kClockSlackNs); });
  if (matched != 0) std::erase_if(waiting.calls, [](const Call& call) { return call.done; });
}

// A vfork child writes as if it were the parent, which sleeps; the kernel knows whose call it was.
void SyscallJoin::match_children(Waiting& waiting, int64_t known_ns) {
  std::erase_if(waiting.rows, [&](const SyscallRow& row) {
    if (known_ns < row.time_ns + row.duration_ns + kClockSlackNs) return false;
    return std::any_of(waiting_.begin(), waiting_.end(), [&](auto& other) {
      Waiting& child = other.second;
      return child.process->parent == waiting.process && match_row(child, row, kClockSlackNs);
    });
  });
}

// Events of wrappers that no call can come for any more.
void SyscallJoin::write_alone(Waiting& waiting, int64_t known_ns) {
  std::erase_if(waiting.rows, [&](const SyscallRow& row) {
    const int64_t left_ns = row.time_ns + row.duration_ns;
    if (known_ns != kNever && left_ns + kRecordSlackNs > known_ns) return false;
    if (match_row(waiting, row, kLastSlackNs)) return true;
    sink_.row(row);
    if (row.time_ns >= since_ns_) ++unmatched_;
    return true;
  });
}

// Calls that no event of a wrapper can come for any more.
void SyscallJoin::write_decided(Waiting& waiting, bool all) {
  size_t crowd = waiting.calls.size() > kCallsMax ? waiting.calls.size() - kCallsMax : 0;
  if (!all && crowd == 0 && waiting.asked_ns == waiting.decided_ns) return;
  waiting.asked_ns = waiting.decided_ns;
  std::erase_if(waiting.calls, [&](Call& call) {
    if (call.done) return true;
    const bool forced = crowd > 0;
    if (forced) --crowd;
    if (!all && !forced) {
      // By then the thread has told of more than this call.
      if (call.call.left_ns + kClockSlackNs >= waiting.decided_ns) return false;
      if (call.owner == Owner::kUnasked) {
        const bool own = sink_.by_recorder(*waiting.process, call.call);
        call.owner = own ? Owner::kRecorder : Owner::kProgram;
      }
      if (call.owner == Owner::kRecorder && waiting.decided_ns != kNever) return false;
    }
    const bool written = sink_.kernel_only(*waiting.process, *waiting.thread, call.call);
    if (!written) waiting.asked_ns = kNever - 1;  // Ask again.
    return written;
  });
}

void SyscallJoin::settle(int64_t known_ns, bool whole) {
  known_ns_ = known_ns;
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    Waiting& waiting = it->second;
    match(waiting);
    match_children(waiting, known_ns);
    write_alone(waiting, known_ns);
    if (whole) {
      waiting.decided_ns = waiting.told_ns;
      waiting.told_ns = waiting.thread->events_until_ns;
    }
    write_decided(waiting, false);
    it = waiting.calls.empty() && waiting.rows.empty() ? waiting_.erase(it) : std::next(it);
  }
}

void SyscallJoin::close(Process& process) {
  // What a vfork child did its parent has told by now, perhaps in this very window.
  for (auto& [thread, waiting] : waiting_) {
    if (waiting.process == process.parent) match_children(waiting, known_ns_ + kClockSlackNs);
  }
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    Waiting& waiting = it->second;
    if (waiting.process != &process) {
      ++it;
      continue;
    }
    match(waiting);
    write_decided(waiting, true);
    it = waiting.calls.empty() && waiting.rows.empty() ? waiting_.erase(it) : std::next(it);
  }
}

void SyscallJoin::finish() {
  for (auto& [thread, waiting] : waiting_) match(waiting);
  for (auto& [thread, waiting] : waiting_) {
    match_children(waiting, kNever);
    write_alone(waiting, kNever);
  }
  for (auto& [thread, waiting] : waiting_) write_decided(waiting, true);
  waiting_.clear();
}

}  // namespace heapledger::collector
