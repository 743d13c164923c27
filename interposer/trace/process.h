// SPDX-License-Identifier: Apache-2.0
// This process as the region knows it: its slot, its beginning by start or fork, its end.
//
// The process page lies in wiped-on-fork memory beside the ThreadRings: a forked child finds it
// empty, whichever way it was forked, and adopts a slot of its own (adopt_child). A vfork or
// posix_spawn child shares memory with its parent and is not a process of its own here. Thread
// safety: start() runs once, alone; fork handlers under fork's rules; the rest on any thread. No
// allocation.
#pragma once

#include <cstddef>
#include <cstdint>

#include "interposer/base/lock.h"
#include "interposer/trace/region.h"
#include "interposer/trace/ring_producer.h"
#include "interposer/trace/thread_ring.h"
#include "interposer/trace/tick.h"

namespace heapledger::trace {

// The allocator's settings at start, for ProcessSlot.
struct StartSettings {
  uint64_t mmap_threshold = 0;
  uint64_t trim_threshold = 0;
  uint64_t top_pad = 0;
  uint64_t mmap_max = 0;
  uint64_t arena_max = 0;
  uint32_t mmap_threshold_dynamic = 0;
  uint32_t tcache_count = 0;
};

// In the wiped mapping, at its start.
struct ProcessPage {
  schema::ProcessSlot* slot;  // Null: this process has not adopted one yet.
  uint32_t index;
  uint32_t pid;
  std::atomic<uint64_t>* lost_here;  // Not null: all slots were taken, and this counts its events.
  std::atomic<uint64_t> rings_refused_ns;  // When a thread last found no ring (thread_ring.cc).
  std::atomic<bool> opened;                // A ring was claimed.
  std::atomic<uint32_t> claims_running;    // Threads that are claiming rings (thread_ring.cc).
  std::atomic<uint32_t> claims_held;       // Not zero: they must wait (rings_spare.cc).
  base::Lock adopting;
  RingProducer::Shared shared;
};

// Everything of the recorder that is one per process and survives fork. Written by start(),
// read-only afterwards.
struct Recorder {
  Region region;
  schema::Clock clock;
  uint32_t depth;  // Frames per stack; 0: none are taken.
  bool free_stacks;
  bool verify_stacks;         // Each stack is compared with libunwind's (stack_check.h).
  bool follow;                // False: forked children record nothing.
  std::byte* private_memory;  // ProcessPage, then the ThreadRings.
  size_t ring_stride;
  StartSettings settings;
  void (*on_first_event)();  // Called in each thread after it has claimed its ring; may allocate.

  ProcessPage* process() const noexcept { return reinterpret_cast<ProcessPage*>(private_memory); }
  ThreadRing* ring(uint32_t slot) const noexcept {
    return reinterpret_cast<ThreadRing*>(private_memory + 4096 + slot * ring_stride);
  }
};
extern constinit Recorder g_recorder;

// 1: recording has ended for good in this process (and its children).
extern constinit std::atomic<uint32_t> g_stopped;

inline constexpr uint32_t kDepthMax = 8192;

inline uint64_t tick() noexcept { return tick_now(g_recorder.clock); }

// Begins recording into the region: takes its process slot 0. Null on success, else why not.
const char* start(const Region& region, const StartSettings& settings, bool follow,
                  void (*on_first_event)()) noexcept;

inline bool is_recording() noexcept {
  return g_recorder.region.control != nullptr && g_stopped.load(std::memory_order_relaxed) == 0;
}

// A slot for a process that has none: a forked child at its first event. False where none could be
// had: it is not recorded, but its children try again.
bool adopt_child() noexcept;

// How long it is hoped that a slot is freed where none belongs to anything that has ended.
inline constexpr uint64_t kHopelessNs = 2'000'000'000;

// The page of this very process, adopted if need be; null where it is not recorded.
inline ProcessPage* this_process() noexcept {
  if (!is_recording()) return nullptr;
  ProcessPage* page = g_recorder.process();
  if (page->slot == nullptr && !adopt_child()) return nullptr;
  return page;
}

void count_lost_event() noexcept;

// Something of this process, and of its forked children, is not recorded.
void note_gap(schema::Gap gap) noexcept;

// The pid or tid that a sandboxed process or thread cannot ask for: libc keeps the tid beside the
// thread's own storage. learn_tid_place() finds where, while the kernel may still be asked;
// kept_tid() is 0 where it is not known.
void learn_tid_place() noexcept;
uint32_t kept_tid() noexcept;

void count_recorder_syscalls(uint64_t count) noexcept;

// Fork handlers. The child's adopts its slot at once, so that a child that never allocates is seen
// too.
void before_fork() noexcept;
void after_fork_in_parent() noexcept;
void after_fork_in_child() noexcept;

// The first break the allocator saw.
void note_heap_start(uint64_t address) noexcept;

// Asks the collector for a snapshot and waits for it, at most so long.
void request_snapshot(uint64_t limit_ns) noexcept;

// The process is about to end by exit(status) or _exit(status): counters, stamp, last snapshot. The
// first call counts. Does nothing in a vfork child.
void process_ends(int status) noexcept;

}  // namespace heapledger::trace
