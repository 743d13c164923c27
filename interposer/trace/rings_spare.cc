// SPDX-License-Identifier: Apache-2.0
#include "interposer/trace/rings_spare.h"

#include <sys/mman.h>

#include "interposer/base/sys.h"
#include "interposer/trace/own_calls.h"
#include "interposer/trace/recorder.h"

namespace heapledger::trace {
namespace {

namespace sys = base::sys;
using schema::SyscallName;

constexpr uint32_t kRingsKept = 16;  // For the threads that come after a limit.

// Keeps all threads of the process from claiming rings. The caller has claimed its own.
void hold_claims() {
  ProcessPage* page = g_recorder.process();
  page->claims_held.fetch_add(1, std::memory_order_seq_cst);
  // Seq_cst, with claim_slot(): either it sees the hold, or this sees it under way.
  while (page->claims_running.load(std::memory_order_seq_cst) != 0) sys::sched_yield();
}

void release_claims() { g_recorder.process()->claims_held.fetch_sub(1, std::memory_order_seq_cst); }

struct Spare {
  std::byte* rings;  // The spare part of the shared region.
  size_t ring_bytes;
  std::byte* memory;  // Of the private memory.
  size_t memory_bytes;
};

uint32_t first_spare() {
  const Region& region = g_recorder.region;
  const uint32_t used = region.control->ring_slots_used.load(std::memory_order_acquire);
  return used < region.ring_slots ? used : region.ring_slots;
}

Spare spare_from(uint32_t first) {
  const Region& region = g_recorder.region;
  const size_t count = region.ring_slots - first;
  return {region.data + first * region.ring_bytes, count * region.ring_bytes,
          reinterpret_cast<std::byte*>(g_recorder.ring(first)), count * g_recorder.ring_stride};
}

void protect(CallScope& scope, const Spare& spare, int protection) {
  own_call(scope, SyscallName::kMprotect, SYS_mprotect, spare.rings, spare.ring_bytes, protection);
  own_call(scope, SyscallName::kMprotect, SYS_mprotect, spare.memory, spare.memory_bytes,
           protection);
}

}  // namespace

void give_up_spare_rings() noexcept {
  CallScope scope(nullptr);
  if (!scope.recording()) return;
  hold_claims();
  Region& region = g_recorder.region;
  const uint32_t first = first_spare() + kRingsKept;
  if (first < region.ring_slots) {
    const Spare spare = spare_from(first);
    region.ring_slots = first;
    region.mapped_bytes -= spare.ring_bytes;
    own_call(scope, SyscallName::kMunmap, SYS_munmap, spare.rings, spare.ring_bytes, 0);
    own_call(scope, SyscallName::kMunmap, SYS_munmap, spare.memory, spare.memory_bytes, 0);
  }
  release_claims();
}

SpareRingsHidden::SpareRingsHidden() noexcept : hidden_(false), first_(0) {
  CallScope scope(nullptr);
  if (!scope.recording()) return;
  hold_claims();
  hidden_ = true;
  first_ = first_spare();
  protect(scope, spare_from(first_), PROT_NONE);
}

SpareRingsHidden::~SpareRingsHidden() {
  if (!hidden_) return;
  const Region& region = g_recorder.region;
  sys::call(SYS_munlock, sys::word(region.control), sys::word(region.mapped_bytes));
  sys::call(SYS_munlock, sys::word(g_recorder.private_memory),
            sys::word(4096 + region.ring_slots * g_recorder.ring_stride));
  count_recorder_syscalls(2);
  {
    CallScope scope(nullptr);
    protect(scope, spare_from(first_), PROT_READ | PROT_WRITE);
  }
  release_claims();
}

}  // namespace heapledger::trace
