// SPDX-License-Identifier: Apache-2.0
// Claiming and giving back rings.
#include "interposer/trace/thread_ring.h"

#include <signal.h>

#include <optional>

#include "interposer/base/signal_block.h"
#include "interposer/base/sys.h"
#include "interposer/trace/process.h"
#include "interposer/trace/recorder.h"
#include "interposer/trace/thread_local.h"

namespace heapledger::trace {
namespace {

namespace sys = base::sys;
using schema::RingSlot;
using schema::RingState;

// A thread that got no ring tries again with its later calls, but not with each of them.
constexpr uint64_t kTryAgainNs = 10'000'000;

constexpr uint32_t kNone = UINT32_MAX;

// While one exists, no ring is taken out of reach (rings_spare.h); `allowed` false: some are just
// now. Not a lock: a signal handler may claim a ring while its thread is claiming one.
class ClaimRunning {
 public:
  ClaimRunning() : page_(g_recorder.process()) {
    page_->claims_running.fetch_add(1, std::memory_order_seq_cst);
    allowed_ = page_->claims_held.load(std::memory_order_seq_cst) == 0;
  }
  ~ClaimRunning() { page_->claims_running.fetch_sub(1, std::memory_order_seq_cst); }
  ClaimRunning(const ClaimRunning&) = delete;
  ClaimRunning& operator=(const ClaimRunning&) = delete;

  bool allowed() const { return allowed_; }

 private:
  ProcessPage* page_;
  bool allowed_;
};

uint32_t try_claim_slot() {
  const ClaimRunning running;
  if (!running.allowed()) return kNone;
  const Region& region = g_recorder.region;
  std::atomic<uint32_t>& used = region.control->ring_slots_used;
  for (uint32_t i = 0; i < region.ring_slots; ++i) {
    RingState expected = RingState::kFree;
    if (region.rings[i].state.load(std::memory_order_relaxed) != RingState::kFree) continue;
    // Acquire: pairs with the collector's release store of kFree, after it has read the last
    // owner's events.
    if (!region.rings[i].state.compare_exchange_strong(expected, RingState::kClaimed,
                                                       std::memory_order_acquire)) {
      continue;
    }
    uint32_t seen = used.load(std::memory_order_relaxed);
    while (seen <= i && !used.compare_exchange_weak(seen, i + 1, std::memory_order_release)) {
    }
    return i;
  }
  return kNone;
}

// The last events of a thread that has ended are on their way into the trace; then its ring is
// free.
bool is_ring_coming() {
  const Region& region = g_recorder.region;
  for (uint32_t i = 0; i < region.ring_slots; ++i) {
    // Relaxed: a hint.
    if (region.rings[i].state.load(std::memory_order_relaxed) == RingState::kEnded) return true;
  }
  return false;
}

// All slots are taken: by live threads, or by ended ones that the collector has yet to drain. The
// latter is worth waiting for, as long as the collector works on it. Where it was hopeless once,
// the process is not made to wait for that again.
uint32_t claim_slot() {
  ProcessPage* page = g_recorder.process();
  const uint64_t refused = page->rings_refused_ns.load(std::memory_order_relaxed);
  if (refused != 0 && monotonic_raw_ns() - refused < kTryAgainNs) return kNone;
  uint32_t slot = try_claim_slot();
  if (slot != kNone || is_sandboxed()) return slot;
  schema::ControlPage& control = *g_recorder.region.control;
  CollectorWatch watch(control, Patience{});
  const uint64_t patience = refused == 0 ? kHopelessNs : 0;
  uint64_t hope = monotonic_raw_ns();
  while (slot == kNone) {
    if (watch.gone()) {
      g_stopped.store(1, std::memory_order_relaxed);
      return kNone;
    }
    const uint64_t now = monotonic_raw_ns();
    if (is_ring_coming() || page->claims_held.load(std::memory_order_relaxed) != 0) hope = now;
    if (now - hope > patience) break;
    control.doorbell.fetch_add(1, std::memory_order_seq_cst);
    sys::futex_wake(reinterpret_cast<volatile uint32_t*>(&control.doorbell), 1, true);
    constexpr timespec kNap = {0, 1'000'000};
    sys::nanosleep(&kNap);
    count_recorder_syscalls(2);
    slot = try_claim_slot();
  }
  if (slot != kNone) return slot;
  note_gap(schema::kGapRings);
  page->rings_refused_ns.store(monotonic_raw_ns(), std::memory_order_relaxed);
  return kNone;
}

// `scope`: the call that it is for; null: not known.
void open_ring(ThreadRing* ring, uint32_t index, unsigned level, CallScope* scope) {
  const Region& region = g_recorder.region;
  ProcessPage* page = g_recorder.process();
  RingSlot& slot = region.rings[index];
  ring->slot = index;
  ring->level = level;
  ring->scope = scope;
  ring->nested[0] = ring->nested[1] = nullptr;
  ring->busy.store(0, std::memory_order_relaxed);
  ring->walk.attach(ring + 1, g_recorder.depth);
  ring->bounds = {};
  ring->pending_count = 0;
  const uint32_t tid = is_sandboxed() ? kept_tid() : static_cast<uint32_t>(sys::gettid());
  slot.pid.store(page->pid, std::memory_order_relaxed);
  slot.tid.store(tid, std::memory_order_relaxed);
  slot.process_slot.store(page->index, std::memory_order_relaxed);
  ring->producer.attach(&page->shared, &slot, region.data + index * region.ring_bytes,
                        region.ring_bytes);

  schema::ThreadStartEvent event{};
  constexpr size_t kWords = sizeof(event) / 8;
  // The image's first ring takes in what the recorder did before there was one (own_calls.h).
  // Relaxed: only who was first matters.
  const bool opened = page->opened.exchange(true, std::memory_order_relaxed);
  const bool first = level == 0 && page->slot->parent_slot == UINT32_MAX && !opened;
  event.head = {schema::EventKind::kThreadStart,        0, kWords, 0, 0,
                first ? page->slot->start_tick : tick()};
  event.pid = page->pid;
  event.tid = tid;
  event.process_slot = page->index;
  event.level = level;
  event.next_sequence = ring->producer.next_sequence();
  uint64_t* at = ring->producer.reserve(kWords);
  if (at != nullptr) {
    memcpy(at, &event, sizeof(event));
    ring->producer.commit(kWords);
  } else {
    ring->producer.detach();
  }
  // Release: pairs with the collector's acquire load; the owner's name and first event are there.
  slot.state.store(RingState::kLive, std::memory_order_release);
  if (!is_sandboxed()) count_recorder_syscalls(1);
}

void close_ring(ThreadRing* ring) {
  RingSlot* slot = ring->producer.slot();
  if (slot == nullptr) return;
  schema::PlainEvent event{};
  constexpr size_t kWords = sizeof(event) / 8;
  event.head = {schema::EventKind::kThreadEnd, 0, kWords, 0, 0, tick()};
  uint64_t* at = ring->producer.reserve(kWords);
  if (at != nullptr) {
    memcpy(at, &event, sizeof(event));
    ring->producer.commit(kWords);
  }
  ring->producer.detach();
  // Release: pairs with the collector's acquire load; nothing is written to the ring after.
  slot->state.store(RingState::kEnded, std::memory_order_release);
}

// Whether the call of `scope` is over although it never returned, as seen from a call that began at
// `here`: frames that are still there lie further out. Only what is sure counts as over: on the
// alternate signal stack nothing is known of the thread's own, nor of stacks that are far apart.
bool is_abandoned(const CallScope* scope, uintptr_t here, const stack_t& alternate) {
  constexpr uintptr_t kFar = 1 << 20;
  const uintptr_t there = base::address_of(scope);
  const uintptr_t begin = base::address_of(alternate.ss_sp);
  const bool has_alternate = (alternate.ss_flags & SS_DISABLE) == 0;
  const bool there_is_alternate = has_alternate && there - begin < alternate.ss_size;
  const bool here_is_alternate = (alternate.ss_flags & SS_ONSTACK) != 0;
  if (here_is_alternate != there_is_alternate) return there_is_alternate;
  return there <= here && here - there < kFar;
}

// A handler has jumped out of calls (siglongjmp): their levels are free again. Returns the level of
// the call that begins now. What they had not written is lost to the trace as to the program.
unsigned leave_abandoned_calls(unsigned level, const CallScope* scope) {
  ThreadRing* base = t_local.ring;
  if (base == nullptr || !base->producer.attached()) return level;
  stack_t alternate{};
  if (sys::failed(sys::call(SYS_sigaltstack, 0, sys::word(&alternate)))) return level;
  count_recorder_syscalls(1);
  for (unsigned live = 0; live < level && live < kLevels; ++live) {
    ThreadRing* ring = live == 0 ? base : base->nested[live - 1];
    if (ring == nullptr || !ring->producer.attached()) break;
    if (ring->scope == nullptr) continue;
    if (!is_abandoned(ring->scope, base::address_of(scope), alternate)) continue;
    ring->pending_count = 0;
    ring->walk.forget();  // The jump may have come before its event.
    // Release: pairs with the acquire load in fork_begins. libunwind holds its locks with signals
    // blocked only, so the jump left none behind.
    ring->busy.store(0, std::memory_order_release);
    t_local.own = static_cast<uint8_t>(t_local.own & ~kOwnUnwinding);
    t_local.level = static_cast<uint16_t>(live + 1);
    return live;
  }
  return level;
}

// Keeps handlers away where they may be kept away: a filter may kill for a system call.
class HandlersAway {
 public:
  HandlersAway() {
    if (is_sandboxed()) return;
    signals_.emplace();
    count_recorder_syscalls(2);
  }

 private:
  std::optional<base::SignalBlock> signals_;
};

// A free slot's ring, made this thread's; null: there is none.
ThreadRing* take_ring(unsigned level, CallScope* scope) {
  if (is_sandboxed() && kept_tid() == 0) {
    note_gap(schema::kGapSandbox);
    return nullptr;
  }
  const uint32_t index = claim_slot();
  if (index == kNone) return nullptr;
  ThreadRing* ring = g_recorder.ring(index);
  open_ring(ring, index, level, scope);
  return ring->producer.attached() ? ring : nullptr;
}

// The ring of level 0. No handler comes between the claim and the place where the ring is found.
// `scope` null: a handler makes it, for a call that it has interrupted just before that.
ThreadRing* claim_base(CallScope* scope) {
  ThreadRing* base = nullptr;
  {
    const HandlersAway away;
    base = t_local.ring;
    if (base != nullptr && base->producer.attached()) return base;
    base = take_ring(0, scope);
    if (base != nullptr) t_local.ring = base;
  }
  if (base != nullptr && g_recorder.on_first_event != nullptr) g_recorder.on_first_event();
  return base;
}

}  // namespace

ThreadRing* claim_ring(unsigned level, CallScope* scope) noexcept {
  if (this_process() == nullptr) return nullptr;
  if (level != 0 && !is_sandboxed()) level = leave_abandoned_calls(level, scope);
  if (level >= kLevels) return nullptr;
  ThreadRing* base = t_local.ring;
  const bool base_ready = base != nullptr && base->producer.attached();
  if (!base_ready) {
    // Where a filter may kill for a system call, a handler may have interrupted the very claim:
    // what it does is lost.
    if (level != 0 && is_sandboxed()) return nullptr;
    base = claim_base(level == 0 ? scope : nullptr);
  }
  if (level == 0 || base == nullptr) return base;
  ThreadRing* nested = base->nested[level - 1];
  if (nested != nullptr && nested->producer.attached()) return nested;
  return base->nested[level - 1] = take_ring(level, scope);
}

void end_thread() noexcept {
  ThreadRing* ring = t_local.ring;
  if (ring == nullptr) return;
  // A signal handler must not claim into what is being closed.
  const HandlersAway away;
  ++t_local.level;
  base::compiler_barrier();
  t_local.ring = nullptr;
  if (ring->producer.attached()) {
    for (ThreadRing* nested : ring->nested) {
      if (nested != nullptr) close_ring(nested);
    }
    close_ring(ring);
  }
  base::compiler_barrier();
  --t_local.level;
}

}  // namespace heapledger::trace
