// SPDX-License-Identifier: Apache-2.0
// One row of table `process` in the making, with what the writer needs to fill it: its threads, its
// address space, the calls and faults that wait for their batch.
//
// A process that was only seen by the kernel's records (a fork that has claimed no slot yet, an
// exec whose Hello has not come) has no row id: it may still turn out to be something else. Its
// faults wait with it.
//
// Thread safety: none (writer thread).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>

#include "interposer/collector/address_space.h"
#include "interposer/collector/call_packer.h"
#include "interposer/collector/packer.h"
#include "interposer/collector/region.h"
#include "schema/fault_batch.h"

namespace heapledger::collector {

struct FaultBefore {
  bool operator()(const schema::FaultRow& a, const schema::FaultRow& b) const {
    return a.time_ns < b.time_ns;
  }
};
using FaultPacker = Packer<schema::FaultRow, FaultBefore, schema::kBatchFaults>;

struct Thread {
  uint32_t id = 0;
  pid_t tid = 0;
  std::string name;
  std::optional<int64_t> start_ns;
  std::optional<int64_t> end_ns;
  int64_t stall_ns = 0;
  int64_t events_until_ns = INT64_MIN;  // Time of its last call that was read.
  std::optional<uint64_t> minor_faults;
  std::optional<uint64_t> major_faults;
  bool changed = true;  // Since it was last written.
};

// The mappings that the allocator holds, by its own system calls: start -> end.
using MappedRanges = std::map<uint64_t, uint64_t>;

struct Process {
  uint32_t id = 0;  // Row; 0: has none yet.
  pid_t pid = 0;
  pid_t ppid = 0;
  Process* parent = nullptr;
  bool forked = false;
  uint32_t image = 0;
  std::string exe;
  std::string command;
  bool recorded = false;
  uint32_t gaps = 0;          // Bits of schema::Gap: it is recorded in part.
  std::string beside_malloc;  // An allocator that its program has linked in beside malloc.
  std::string reason;
  std::optional<int64_t> start_ns;
  std::optional<int64_t> end_ns;
  const char* ended_by = nullptr;
  std::optional<int> exit_status;
  std::optional<int> signal;

  struct Settings {
    uint64_t mmap_threshold, mmap_threshold_dynamic, trim_threshold, top_pad, mmap_max, arena_max,
        tcache_count;
  };
  std::optional<Settings> settings;
  std::optional<uint64_t> heap_start;

  uint64_t events = 0;
  uint64_t events_lost = 0;
  uint64_t incomplete_stacks = 0;
  struct StackCheck {
    uint64_t compared, mismatched, incomparable;
    std::string first_mismatch;  // In words; empty: none.
  };
  std::optional<StackCheck> stack_check;  // With --verify-stacks.
  int64_t stall_ns = 0;
  uint64_t recorder_syscalls = 0;
  std::optional<uint64_t> rusage_start_minor, rusage_start_major, rusage_minor, rusage_major;
  uint64_t perf_minor = 0;
  uint64_t perf_major = 0;
  uint64_t perf_lost = 0;
  std::optional<uint64_t> rss_peak_bytes;

  // How far it is known.
  RegionPtr region;        // Set by its Hello, or its fork's claim of a slot.
  uint32_t slot = 0;       // In that region.
  bool exec_seen = false;  // The kernel's record of the exec that began it was matched.
  bool fork_seen = false;  // Likewise of the fork.
  bool refused = false;    // A fork that found no slot: an image that follows is another row.
  bool over = false;
  bool reopened = false;  // It was over; who tends the live ones has to take it up again.
  int64_t hello_ns = 0;
  int live_threads = 1;  // By the kernel's records.
  int64_t last_exit_ns = 0;

  std::shared_ptr<AddressSpace> space;
  MappedRanges allocator_ranges;
  std::unordered_map<pid_t, std::unique_ptr<Thread>> threads;
  std::vector<std::unique_ptr<Thread>> past_threads;  // Their tids were given out again.
  CallPacker calls;
  FaultPacker faults;
  bool changed = true;

  // Cached: the thread of the last fault.
  Thread* last_thread = nullptr;
};

// The thread that was last given this tid, also when it has ended: /proc names a thread, and its
// faults go on, for moments after its end. Made if none is known. `next_id`: of the next new row.
Thread& thread_of(Process& process, pid_t tid, int64_t time_ns, uint32_t& next_id);
// The same for an account of its start: where the last thread with this tid has ended by then, it
// is another.
Thread& begin_thread(Process& process, pid_t tid, int64_t time_ns, uint32_t& next_id);

// Reads settings and counters out of the program's slot, as far as they make sense.
void read_start(Process& process, const schema::ProcessSlot& slot);
void read_counters(Process& process, const schema::ProcessSlot& slot);
// The same for what --verify-stacks counts.
void read_stack_check(Process& process, const schema::ProcessSlot& slot);

// Keeps `ranges` in step with a successful system call of the allocator.
void apply_mapping_call(MappedRanges& ranges, const schema::SyscallEvent& call);
// How many bytes of [start, end) are in the ranges.
uint64_t mapped_bytes(const MappedRanges& ranges, uint64_t start, uint64_t end);

}  // namespace heapledger::collector
