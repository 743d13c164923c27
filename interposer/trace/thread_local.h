// SPDX-License-Identifier: Apache-2.0
// The recorder's whole use of thread-local storage: 16 bytes, initial-exec, so that reading them
// never allocates and glibc's static surplus suffices.
//
// They survive fork (a child's memory is a copy), unlike the ThreadRing that `ring` points at,
// which the child finds wiped.
#pragma once

#include <cstdint>

namespace heapledger::trace {

struct ThreadRing;

// While not zero, calls that arrive on this thread may be the recorder's (own_calls.h).
enum OwnDoing : uint8_t {
  kOwnUnwinding = 1,  // libunwind runs.
  kOwnWork = 2,       // Everything is the recorder's.
};

struct ThreadLocal {
  ThreadRing* ring;  // Level 0's; null: none claimed yet, or given back. May be a wiped one (see
                     // thread_ring.h).
  uint16_t level;    // Events being made on this thread, one inside the other.
  uint8_t own;       // Bits of OwnDoing: what the recorder does at the moment.
  uint8_t armed;     // 1: the end of this thread will be noticed (lifecycle.cc).
  uint16_t loader_depth;  // LoaderScopes.
  bool plain;             // This thread's calls are not recorded, and it is armed (calls.h).
  bool forking;           // This thread is between fork's handlers.
};
static_assert(sizeof(ThreadLocal) == 16);

extern thread_local constinit ThreadLocal t_local __attribute__((tls_model("initial-exec")));

}  // namespace heapledger::trace
