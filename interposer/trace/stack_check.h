// SPDX-License-Identifier: Apache-2.0
// A second opinion on stacks: libunwind's, for each one that was walked by recipes (record
// --verify-stacks), counted in the ProcessSlot.
//
// Comparable are stacks where both walks came to a frame that the unwind information calls the
// outermost, within the depth limit. libunwind's unw_backtrace is asked first, for speed; but it
// keeps a cache that nothing can clear, and gives up where unw_step does not. So where it does not
// agree frame by frame, the frames are stepped one by one, and what that says is the truth.
//
// Thread safety: any thread, each with the ring that it owns. Runs inside malloc: no allocation, no
// locks held by heap, errno kept. Cost: 0.2 to 20 us per stack.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace heapledger::trace {

// Makes room for as many rings and frames. False: no memory. Once, at start.
bool start_stack_check(uint32_t ring_slots, size_t depth) noexcept;

struct WalkedStack {
  const uintptr_t* frames;  // The outermost first.
  size_t count;
  bool complete;  // Ends at a root, and is not cut.
};

// `caller` and `busy` as for unwind_stack(). `ring_slot`: of this thread's ring.
void check_stack(const WalkedStack& walked, uintptr_t caller, uint32_t ring_slot,
                 std::atomic<uint32_t>* busy) noexcept;

}  // namespace heapledger::trace
