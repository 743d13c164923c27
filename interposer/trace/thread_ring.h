// SPDX-License-Identifier: Apache-2.0
// What a thread needs to write events: one ThreadRing per ring slot of the region, in private
// memory beside it.
//
// All ThreadRings lie in one mapping, the i-th belonging to ring slot i, so claiming a slot is all
// it takes to own one and nothing is ever allocated or freed. The mapping is MADV_WIPEONFORK: a
// forked child, however it was forked, finds its rings detached and its process page empty, and so
// never writes into a ring of its parent.
//
// Levels: an event made while another one of the same thread is being made (a signal handler;
// libunwind allocating) uses the thread's ring of level 1, then 2. Beyond that events are lost, and
// counted. Thread safety: a ThreadRing belongs to the thread that claimed its slot; `busy` alone is
// read by others.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "interposer/trace/ring_producer.h"
#include "interposer/trace/stack_bounds.h"
#include "interposer/trace/stack_walk.h"
#include "schema/event.h"

namespace heapledger::trace {

inline constexpr unsigned kLevels = 3;
inline constexpr unsigned kPendingMax = 16;
inline constexpr size_t kPathBytes = 4096;

// A system call or a decision of the allocator, noted down while it holds its locks; written out
// after the call.
struct PendingEvent {
  schema::EventKind kind;  // kSyscall or kPolicy.
  schema::SyscallName name;
  uint8_t cause;  // Or the PolicyKind.
  uint64_t tick;
  uint64_t duration_ticks;
  int64_t result;
  uint64_t args[6];  // kPolicy: old value, new value.
};

class CallScope;

struct ThreadRing {
  RingProducer producer;
  uint32_t slot;
  uint32_t level;
  CallScope* scope;  // The call under way; valid while t_local.level says there is one.
  ThreadRing* nested[kLevels - 1];  // Level 0 only: the rings of levels 1 and 2, once claimed.
  std::atomic<uint32_t> busy;       // 1 while the thread is inside libunwind (stack_capture.h).

  StackWalk walk;  // The ring's current stack, and the way to the next one.
  StackBounds bounds;

  uint32_t pending_count;
  PendingEvent pending[kPendingMax];
  char path[kPathBytes];  // Room for exec.cc: its callers' stacks may be tiny.
  // The memory of `walk` follows.
};

}  // namespace heapledger::trace
