// SPDX-License-Identifier: Apache-2.0
#include "interposer/trace/stack_check.h"

#include <sys/mman.h>

#include "interposer/base/bits.h"
#include "interposer/base/sys.h"
#include "interposer/trace/own_calls.h"
#include "interposer/trace/process.h"
#include "interposer/trace/stack_capture.h"
#include "interposer/trace/stack_walk.h"

namespace heapledger::trace {
namespace {

// A buffer of frames for each ring. Written before there are threads.
struct Room {
  uintptr_t* frames = nullptr;
  size_t stride = 0;  // Words.
  size_t depth = 0;
};
constinit Room g_room;

// How many inner frames agree. `frames`: the innermost first.
size_t agreeing(const WalkedStack& walked, const uintptr_t* frames, size_t count) {
  const size_t most = walked.count < count ? walked.count : count;
  size_t same = 0;
  while (same < most && walked.frames[walked.count - 1 - same] == frames[same]) ++same;
  return same;
}

bool agrees(const WalkedStack& walked, const uintptr_t* frames, const UnwoundStack& found) {
  return found.count == walked.count && agreeing(walked, frames, found.count) == found.count;
}

void note_mismatch(schema::ProcessSlot& slot, const WalkedStack& walked, const uintptr_t* frames,
                   size_t count) {
  slot.stacks_mismatched.fetch_add(1, std::memory_order_relaxed);
  uint64_t none = 0;
  if (!slot.mismatch_inner.compare_exchange_strong(none, 1, std::memory_order_relaxed)) return;
  const size_t same = agreeing(walked, frames, count);
  slot.mismatch_inner.store(same == 0 ? 1 : frames[same - 1], std::memory_order_relaxed);
  slot.mismatch_walked.store(same < walked.count ? walked.frames[walked.count - 1 - same] : 0,
                             std::memory_order_relaxed);
  slot.mismatch_unwound.store(same < count ? frames[same] : 0, std::memory_order_relaxed);
  // Release: pairs with the collector's acquire.
  slot.mismatch_at.store(same + 1, std::memory_order_release);
}

}  // namespace

bool start_stack_check(uint32_t ring_slots, size_t depth) noexcept {
  const size_t stride = depth + kOwnFramesMax + 4;
  const size_t bytes = ring_slots * stride * sizeof(uintptr_t);
  if (mapping_allowance(bytes) < bytes) return false;
  void* memory = own_memory(bytes);
  if (memory == nullptr) return false;
  own_madvise(memory, bytes, MADV_DONTDUMP);
  g_room = {static_cast<uintptr_t*>(memory), stride, depth};
  return true;
}

void check_stack(const WalkedStack& walked, uintptr_t caller, uint32_t ring_slot,
                 std::atomic<uint32_t>* busy) noexcept {
  ProcessPage* page = this_process();
  if (page == nullptr || g_room.frames == nullptr) return;
  schema::ProcessSlot& slot = *page->slot;
  uintptr_t* frames = g_room.frames + ring_slot * g_room.stride;
  if (walked.complete) {
    UnwoundStack found = unwind_stack(frames, g_room.depth, caller, busy);
    const bool agreed = found.complete && agrees(walked, frames, found);
    if (!agreed) found = step_stack(frames, g_room.depth, caller, busy);
    if (found.complete) {
      slot.stacks_compared.fetch_add(1, std::memory_order_relaxed);
      if (!agreed && !agrees(walked, frames, found)) {
        note_mismatch(slot, walked, frames, found.count);
      }
      return;
    }
  }
  slot.stacks_incomparable.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace heapledger::trace
