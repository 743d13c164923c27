// SPDX-License-Identifier: Apache-2.0
// The shared region: one memfd per exec image, made by the collector, mapped by the program and the
// collector, kept open by the collector alone. All that the two say to each other after start goes
// through it, so it survives the program's SIGKILL.
//
//     offset 0              ControlPage
//     process_offset        ProcessSlot[process_slots]     the image's process and its forked
//     children slot_offset           RingSlot[ring_slots]           one per live thread (and signal
//     level) data_offset           ring data, ring_bytes each
//
// The file is sparse: a ring costs memory once it is used. The collector returns its pages
// (fallocate PUNCH_HOLE) when the slot is free again.
//
// Invariants. 1. A ring has one producer (the thread that owns the slot) and one consumer (the
// collector). 2. head and tail only grow; head - tail <= ring_bytes; both are multiples of 8; byte
// b of the stream is at data + b % ring_bytes. 3. Bytes below head are written for good; bytes
// below tail are never read again. 4. An event never wraps: a kPad event fills what is left before
// the end. 5. A slot's sequence goes on through all its owners, and slot numbers are unique in the
// region: an id is unique among all processes of the image. 6. Every word that one side reads while
// the other writes is an atomic of at most 8 bytes. Thread safety is stated at each field by its
// writer.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace heapledger::schema {

inline constexpr uint64_t kRegionMagic = 0x3130524745444c48;  // "HLDGER01" in memory.
inline constexpr uint32_t kWireVersion = 2;  // Changes with any layout in this file or event.h.

inline constexpr uint32_t kProcessSlotsDefault = 1024;
inline constexpr uint32_t kRingSlotsDefault = 4096;
inline constexpr uint64_t kRingBytesDefault = uint64_t{1} << 20;

enum class Clock : uint32_t {
  kTsc = 0,
  kMonotonicRaw = 1
};  // Ticks of the time stamps: rdtsc, or nanoseconds.

// Fault source asked for; what was got is in the trace's meta.
enum class FaultSource : uint32_t { kAuto = 0, kPerf = 1, kGetrusage = 2, kNone = 3 };

// A forked child that found all process slots taken by living processes. It records nothing but how
// much that is. Entries are filled in order, each once, and never given back.
struct RefusedProcess {
  std::atomic<uint32_t> pid;   // As it sees itself. Program: last, release; 0: not filled yet.
  uint32_t parent_slot;        // As in ProcessSlot, of the nearest ancestor that has one.
  uint64_t parent_start_tick;  // Likewise.
  uint64_t start_tick;
  std::atomic<uint64_t> events_lost;  // Program: relaxed adds.
};
inline constexpr uint32_t kRefusedKept = 96;

// Page 0. Written by the collector before it hands the region out; the atomics afterwards as said.
struct ControlPage {
  uint64_t magic;         // kRegionMagic
  uint32_t wire_version;  // kWireVersion
  Clock clock;
  uint64_t region_bytes;  // Length of the whole mapping.
  uint64_t process_offset;
  uint64_t slot_offset;
  uint64_t data_offset;
  uint64_t ring_bytes;  // A power of two.
  uint32_t process_slots;
  uint32_t ring_slots;
  uint32_t stack_depth;    // Frames kept per stack, from the innermost; 0: --no-stacks.
  uint32_t free_stacks;    // 1: releases carry stacks too.
  uint32_t collector_pid;  // In the collector's pid namespace.
  uint32_t verify_stacks;  // 1: each stack is walked by libunwind as well, and compared.

  alignas(64) std::atomic<uint32_t> heartbeat;  // Collector: counts its loops, at least one a
                                                // second. Producers that wait read it.
  std::atomic<uint32_t>
      recording;  // Collector: 1 while it drains; 0: it has ended; do not wait, do not record.
  std::atomic<uint32_t> ring_slots_used;     // Program: slots that were ever claimed (high-water
                                             // mark): the collector scans to it.
  std::atomic<uint32_t> process_slots_used;  // Program: likewise for ProcessSlot.
  std::atomic<uint32_t>
      doorbell;  // Futex. Program: increments and wakes when a ring is half full and the collector
  std::atomic<uint32_t> collector_sleeps;  // sleeps on the doorbell (collector: 1 while it does).

  // Processes that found no slot. Program: relaxed adds, and when the last one was refused, so that
  // the next ones need not wait as long (CLOCK_MONOTONIC_RAW).
  std::atomic<uint32_t> refused_count;
  std::atomic<uint64_t> refused_ns;
  std::atomic<uint64_t> refused_events;  // Lost events of those beyond `refused`.
  RefusedProcess refused[kRefusedKept];
};
static_assert(sizeof(ControlPage) <= 4096);

// ProcessSlot::state.
enum class ProcessState : uint32_t { kFree = 0, kClaimed = 1, kLive = 2, kEnded = 3 };

// ProcessSlot::gaps: what of a recorded process is not in its rings.
enum Gap : uint32_t {
  kGapOwnMalloc = 1,  // It has a malloc of its own: none of its calls.
  kGapSandbox = 2,    // Behind its seccomp filter: threads or children that know no id of theirs.
  kGapRings = 4,      // More threads at once than rings: the calls of those that got none.
  kGapBesideMalloc = 8,  // The collector's word: the calls of a second allocator with other names.
};

// One process of the image. Claimed by the program (slot 0 by the image's first process, then by
// each forked child: CAS kFree -> kClaimed, fill, store-release kLive). The collector marks it
// kEnded as soon as the process is gone, so that whoever waits for a slot knows that one is coming,
// and frees it once its rings are decoded.
struct alignas(64) ProcessSlot {
  std::atomic<ProcessState> state;
  uint32_t pid;          // As the process sees it.
  uint32_t ppid;         // Of getppid() at that time.
  uint32_t parent_slot;  // Process slot of the fork's parent; UINT32_MAX for slot 0.
  uint64_t start_tick;   // Its first moment: init of the image, or the child's return from fork.
  uint64_t parent_start_tick;  // Of the process that held parent_slot at the fork: another one may
                               // hold it by now. 0 for slot 0.
  uint64_t parent_fork_tick;   // Forked: a stamp taken in the parent before the fork, where known,
                              // else start_tick: events of the parent's threads after it are not in
                              // the child's memory.

  // Settings the allocator runs with, at start (see heap/settings.h); dynamic changes are policy
  // events.
  uint64_t mmap_threshold;
  uint64_t trim_threshold;
  uint64_t top_pad;
  uint64_t mmap_max;
  uint64_t arena_max;
  uint32_t mmap_threshold_dynamic;
  uint32_t tcache_count;
  uint64_t heap_start;  // First break the allocator saw; 0 until then.

  // The program's own view of its faults: at start of recording and at its end
  // (getrusage(RUSAGE_SELF)).
  uint64_t start_minor_faults;
  uint64_t start_major_faults;
  std::atomic<uint64_t> end_minor_faults;
  std::atomic<uint64_t> end_major_faults;
  std::atomic<uint64_t> end_tick;     // When exit() or _exit() was entered; 0: it was not seen.
  std::atomic<uint32_t> exit_status;  // Status handed to _exit, + 1; 0: not seen.

  std::atomic<uint32_t> gaps;  // Bits of Gap. Program: relaxed.

  // Counted, so that each report can say what is missing. Program: relaxed adds.
  std::atomic<uint64_t> events_lost;  // No ring could be had, or the collector was gone.
  std::atomic<uint64_t>
      recorder_syscalls;  // System calls the recorder itself made (mmap of the region, futex, ...).

  // With verify_stacks: stacks that were compared, that differed, and that could not be compared
  // since one of the two walks did not come to the outermost frame. Program: relaxed adds.
  std::atomic<uint64_t> stacks_compared;
  std::atomic<uint64_t> stacks_mismatched;
  std::atomic<uint64_t> stacks_incomparable;
  // The first one that differed: how many inner frames agree, + 1 (0: none differed so far); the
  // last of them, and the next frame by our walk and by libunwind's (0: it has none). Program: the
  // first word last, release; pairs with the collector's acquire.
  std::atomic<uint64_t> mismatch_at;
  std::atomic<uint64_t> mismatch_inner;
  std::atomic<uint64_t> mismatch_walked;
  std::atomic<uint64_t> mismatch_unwound;

  // A snapshot on request (a mark, exit): the program increments `wanted` (release), wakes the
  // doorbell, and waits on `done` with a time limit; the collector stores the `wanted` it has
  // served (release) and wakes it.
  alignas(64) std::atomic<uint32_t> snapshot_wanted;
  std::atomic<uint32_t> snapshot_done;
};
static_assert(sizeof(ProcessSlot) % 64 == 0 && sizeof(ProcessSlot) <= 512);

// RingSlot::state.
enum class RingState : uint32_t { kFree = 0, kClaimed = 1, kLive = 2, kEnded = 3 };

// One ring. Claimed by a thread (CAS kFree -> kClaimed, reset nothing: head, tail and next_sequence
// go on; write kThreadStart; store kLive); the thread stores kEnded after kThreadEnd where it can;
// the collector frees the slot (kFree) when it is drained and its thread is gone.
struct RingSlot {
  // Producer's line.
  alignas(64) std::atomic<uint64_t> head;  // Program, release: bytes written. Pairs with the
                                           // collector's acquire.
  std::atomic<uint64_t> next_sequence;     // Program, relaxed: the next id's sequence; kept here so
                                           // that the slot's next owner goes on.
  std::atomic<uint64_t> stall_ticks;       // Program, relaxed: time spent waiting for room.
  std::atomic<uint64_t> stalls;            // Program, relaxed: how often.
  std::atomic<uint64_t>
      events;  // Program, relaxed, before head's release: events written, pads not counted.

  // Consumer's line.
  alignas(64) std::atomic<uint64_t> tail;  // Collector, release: bytes consumed. Pairs with the
                                           // producer's acquire.
  std::atomic<uint32_t>
      tail_futex;  // Collector: incremented and woken after tail moved while `waiting` is set.
  std::atomic<uint32_t> waiting;  // Program: 1 while it sleeps on tail_futex.

  // Cold line: written on claim and release.
  alignas(64) std::atomic<RingState> state;
  std::atomic<uint32_t> pid;  // The owner, as it sees itself; for the collector's liveness check.
  std::atomic<uint32_t> tid;
  std::atomic<uint32_t> process_slot;
};
static_assert(sizeof(RingSlot) == 192);
static_assert(std::atomic<uint64_t>::is_always_lock_free);

// The session handshake. A new image connects to the collector's socket (abstract AF_UNIX
// SOCK_SEQPACKET, its name in HEAPLEDGER_SESSION), sends Hello, and receives HelloReply with the
// region's memfd (SCM_RIGHTS) as its only descriptor.
inline constexpr char kSessionVariable[] = "HEAPLEDGER_SESSION";
// Abstract names are the network namespace's own; an image in another one finds the socket of the
// same name in this folder.
inline constexpr char kSessionFolder[] = "/tmp/";

struct Hello {
  uint64_t magic;  // kRegionMagic
  uint32_t wire_version;
  uint32_t pid;  // As the process sees itself; the collector's own view comes from SO_PEERCRED.
};

enum class HelloStatus : uint32_t {
  kOk = 0,
  kRefused = 1
};  // Refused: another wire version, or the recording has ended.

struct HelloReply {
  uint64_t magic;
  uint32_t wire_version;
  HelloStatus status;
  uint64_t region_bytes;
};

// The same door, for `heapledger mark`: a request of its own magic, answered by a MarkReply. Only
// `text_bytes` bytes of the text are sent.
inline constexpr uint64_t kMarkMagic = 0x314b52414d4c4848;  // "HHLMARK1" in memory.
inline constexpr size_t kMarkTextMax = 1024;

struct MarkRequest {
  uint64_t magic;  // kMarkMagic
  uint32_t wire_version;
  uint32_t pid;     // As the collector sees it; 0: every process of the trace below.
  uint64_t device;  // The trace's file, as stat(2) names it.
  uint64_t inode;
  uint32_t text_bytes;
  uint32_t unused;
  char text[kMarkTextMax];
};

struct MarkReply {
  uint64_t magic;      // kMarkMagic
  uint32_t processes;  // That got the mark; 0: none of them is recorded here.
  uint32_t unused;
};

}  // namespace heapledger::schema
