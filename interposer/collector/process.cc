// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/process.h"

#include <fmt/format.h>

#include <algorithm>

namespace heapledger::collector {
namespace {

// A count that a program could really have reached; what is beyond was written over.
constexpr uint64_t kSaneCount = uint64_t{1} << 40;

std::optional<uint64_t> sane(uint64_t count) {
  return count < kSaneCount ? std::optional(count) : std::nullopt;
}

void read_gaps(Process& process, const schema::ProcessSlot& slot) {
  process.gaps |= slot.gaps.load(std::memory_order_relaxed);
  if ((process.gaps & schema::kGapRings) != 0) {
    process.reason = "more of its threads were alive than can be recorded at once";
  } else if ((process.gaps & schema::kGapOwnMalloc) != 0) {
    process.reason = "it has a malloc of its own: its calls are not recorded, its system calls are";
  } else if (!process.beside_malloc.empty()) {
    process.gaps |= schema::kGapBesideMalloc;
    process.reason = fmt::format(
        "it has an allocator beside malloc ({}): those calls are not recorded, its system calls "
        "are",
        process.beside_malloc);
  } else if ((process.gaps & schema::kGapSandbox) != 0) {
    process.reason = "behind its seccomp filter, new threads or children could not be recorded";
  }
}

void erase_range(MappedRanges& ranges, uint64_t start, uint64_t end) {
  auto it = ranges.upper_bound(start);
  if (it != ranges.begin()) --it;
  while (it != ranges.end() && it->first < end) {
    const uint64_t from = it->first;
    const uint64_t to = it->second;
    if (to <= start) {
      ++it;
      continue;
    }
    it = ranges.erase(it);
    if (from < start) ranges[from] = start;
    if (to > end) it = ranges.insert_or_assign(end, to).first;
  }
}

bool failed(int64_t result) { return result < 0 && result > -4096; }

}  // namespace

Thread& thread_of(Process& process, pid_t tid, int64_t time_ns, uint32_t& next_id) {
  Thread* cached = process.last_thread;
  if (cached != nullptr && cached->tid == tid) return *cached;
  std::unique_ptr<Thread>& place = process.threads[tid];
  if (place == nullptr) {
    place = std::make_unique<Thread>();
    place->id = next_id++;
    place->tid = tid;
    place->start_ns = time_ns;
  }
  process.last_thread = place.get();
  return *place;
}

Thread& begin_thread(Process& process, pid_t tid, int64_t time_ns, uint32_t& next_id) {
  // Its own account of its start may be read after the kernel's of its end.
  constexpr int64_t kLateNs = 10'000'000;
  const auto known = process.threads.find(tid);
  if (known != process.threads.end() && known->second->end_ns &&
      time_ns > *known->second->end_ns + kLateNs) {
    process.past_threads.push_back(std::move(known->second));
    process.threads.erase(known);
    process.last_thread = nullptr;
  }
  return thread_of(process, tid, time_ns, next_id);
}

void read_start(Process& process, const schema::ProcessSlot& slot) {
  process.settings = Process::Settings{slot.mmap_threshold, slot.mmap_threshold_dynamic,
                                       slot.trim_threshold, slot.top_pad,
                                       slot.mmap_max,       slot.arena_max,
                                       slot.tcache_count};
  process.rusage_start_minor = sane(slot.start_minor_faults);
  process.rusage_start_major = sane(slot.start_major_faults);
  read_gaps(process, slot);
  process.changed = true;
}

void read_counters(Process& process, const schema::ProcessSlot& slot) {
  process.events_lost += sane(slot.events_lost.load(std::memory_order_relaxed)).value_or(0);
  process.recorder_syscalls =
      sane(slot.recorder_syscalls.load(std::memory_order_relaxed)).value_or(0);
  const uint64_t minor = slot.end_minor_faults.load(std::memory_order_acquire);
  const uint64_t major = slot.end_major_faults.load(std::memory_order_acquire);
  if (minor != 0 && sane(minor)) {
    process.rusage_minor = minor;
    process.rusage_major = sane(major);
  }
  if (slot.heap_start != 0) process.heap_start = slot.heap_start;
  read_gaps(process, slot);
  process.changed = true;
}

void read_stack_check(Process& process, const schema::ProcessSlot& slot) {
  const auto count = [](const std::atomic<uint64_t>& counter) {
    return sane(counter.load(std::memory_order_relaxed)).value_or(0);
  };
  Process::StackCheck check{count(slot.stacks_compared),
                            count(slot.stacks_mismatched),
                            count(slot.stacks_incomparable),
                            {}};
  // Acquire: pairs with the program's release, after the words below.
  if (const uint64_t at = slot.mismatch_at.load(std::memory_order_acquire)) {
    const auto frame = [](const std::atomic<uint64_t>& address) {
      return fmt::format("{:#x}", address.load(std::memory_order_relaxed));
    };
    check.first_mismatch = fmt::format(
        "a stack differs from libunwind's: beyond its {} innermost frames, the last of them {}, "
        "comes {}, but {} by libunwind",
        at - 1, frame(slot.mismatch_inner), frame(slot.mismatch_walked),
        frame(slot.mismatch_unwound));
  }
  process.stack_check = std::move(check);
  process.changed = true;
}

void apply_mapping_call(MappedRanges& ranges, const schema::SyscallEvent& call) {
  if (failed(call.result)) return;
  const auto result = static_cast<uint64_t>(call.result);
  switch (call.name) {
    case schema::SyscallName::kMmap:
      erase_range(ranges, result, result + call.args[1]);
      ranges[result] = result + call.args[1];
      break;
    case schema::SyscallName::kMunmap:
      erase_range(ranges, call.args[0], call.args[0] + call.args[1]);
      break;
    case schema::SyscallName::kMremap:
      erase_range(ranges, call.args[0], call.args[0] + call.args[1]);
      erase_range(ranges, result, result + call.args[2]);
      ranges[result] = result + call.args[2];
      break;
    default:
      break;
  }
}

uint64_t mapped_bytes(const MappedRanges& ranges, uint64_t start, uint64_t end) {
  uint64_t bytes = 0;
  auto it = ranges.upper_bound(start);
  if (it != ranges.begin()) --it;
  for (; it != ranges.end() && it->first < end; ++it) {
    const uint64_t from = std::max(it->first, start);
    const uint64_t to = std::min(it->second, end);
    if (from < to) bytes += to - from;
  }
  return bytes;
}

}  // namespace heapledger::collector
