// SPDX-License-Identifier: Apache-2.0
#include "interposer/trace/process.h"

#include <errno.h>
#include <sys/mman.h>

#include <cstring>

#include "interposer/base/bits.h"
#include "interposer/base/sys.h"
#include "interposer/trace/own_calls.h"
#include "interposer/trace/recipe_table.h"
#include "interposer/trace/stack_capture.h"
#include "interposer/trace/stack_check.h"
#include "interposer/trace/thread_local.h"

namespace heapledger::trace {

constinit Recorder g_recorder{};
constinit std::atomic<uint32_t> g_stopped{0};

namespace {

namespace sys = base::sys;
using schema::ProcessSlot;
using schema::ProcessState;

constexpr uint64_t kExitSnapshotNs = 1'000'000'000;
constexpr uint64_t kHopelessAgainNs = 50'000'000;  // Where another one has just hoped in vain.
constexpr uint32_t kRingsLeast = 16;               // Fewer threads are not worth a recording.

// Survive fork: what a child must know of its parent.
constinit uint32_t g_last_process_index = UINT32_MAX;
constinit uint64_t g_last_process_start = 0;
constinit uint64_t g_fork_tick = 0;
constinit uint32_t g_last_pid = 0;
constinit bool g_fork_handled = false;  // The handlers ran for this fork.
constinit std::atomic<uint32_t> g_gaps{0};

constinit size_t g_tid_place = 0;  // From the thread pointer; 0: unknown.
// glibc's struct pthread has the tid at 720 (2.36); it does not end before 2,000.
constexpr size_t kTidPlaceFirst = 256;
constexpr size_t kTidPlaceLast = 1024;

void raise_to(std::atomic<uint32_t>& high_water, uint32_t value) {
  uint32_t seen = high_water.load(std::memory_order_relaxed);
  while (seen < value &&
         !high_water.compare_exchange_weak(seen, value, std::memory_order_release)) {
  }
}

uint32_t claim_slot() {
  const Region& region = g_recorder.region;
  for (uint32_t i = 0; i < region.process_slots; ++i) {
    ProcessState expected = ProcessState::kFree;
    // Acquire: pairs with the collector's release store of kFree.
    if (region.processes[i].state.compare_exchange_strong(expected, ProcessState::kClaimed,
                                                          std::memory_order_acquire)) {
      raise_to(region.control->process_slots_used, i + 1);
      return i;
    }
  }
  return UINT32_MAX;
}

// The last events of a process that has ended are on their way into the trace; then its slot is
// free.
bool is_slot_coming() {
  const Region& region = g_recorder.region;
  for (uint32_t i = 0; i < region.process_slots; ++i) {
    // Relaxed: a hint.
    if (region.processes[i].state.load(std::memory_order_relaxed) == ProcessState::kEnded) {
      return true;
    }
  }
  return false;
}

// All slots are taken: by live processes, or by ended ones that the collector has yet to let go,
// where programs fork fast. The latter is worth waiting for, as long as the collector works on it.
uint32_t wait_for_slot() {
  uint32_t index = claim_slot();
  if (index != UINT32_MAX || is_sandboxed()) return index;
  schema::ControlPage& control = *g_recorder.region.control;
  CollectorWatch watch(control, Patience{});
  const uint64_t start = monotonic_raw_ns();
  const uint64_t refused = control.refused_ns.load(std::memory_order_relaxed);
  const bool again = refused != 0 && start - refused < 5 * kHopelessNs;
  uint64_t hope = start;
  while (index == UINT32_MAX) {
    if (watch.gone()) {
      g_stopped.store(1, std::memory_order_relaxed);
      break;
    }
    const uint64_t now = monotonic_raw_ns();
    if (is_slot_coming()) hope = now;
    if (now - hope > (again ? kHopelessAgainNs : kHopelessNs)) break;
    control.doorbell.fetch_add(1, std::memory_order_seq_cst);
    sys::futex_wake(reinterpret_cast<volatile uint32_t*>(&control.doorbell), 1, true);
    constexpr timespec kNap = {0, 1'000'000};
    sys::nanosleep(&kNap);
    index = claim_slot();
  }
  return index;
}

// The process goes on without being recorded, and counts what is missing.
void note_refused(ProcessPage* page, uint64_t start_tick) {
  schema::ControlPage& control = *g_recorder.region.control;
  control.refused_ns.store(monotonic_raw_ns(), std::memory_order_relaxed);
  const uint32_t index = control.refused_count.fetch_add(1, std::memory_order_relaxed);
  if (index >= schema::kRefusedKept) {
    page->lost_here = &control.refused_events;
    return;
  }
  schema::RefusedProcess& entry = control.refused[index];
  entry.parent_slot = g_last_process_index;
  entry.parent_start_tick = g_last_process_start;
  entry.start_tick = start_tick;
  // Release: pairs with the collector's acquire; the entry is filled.
  entry.pid.store(static_cast<uint32_t>(is_sandboxed() ? kept_tid() : sys::getpid()),
                  std::memory_order_release);
  page->lost_here = &entry.events_lost;
}

void fill_slot(ProcessSlot& slot, uint64_t start_tick) {
  const StartSettings& settings = g_recorder.settings;
  const bool may_ask = !is_sandboxed();  // Otherwise this is a fork's only thread.
  slot.pid = may_ask ? static_cast<uint32_t>(sys::getpid()) : kept_tid();
  slot.ppid = may_ask ? static_cast<uint32_t>(sys::getppid()) : g_last_pid;
  g_last_pid = slot.pid;
  slot.parent_slot = g_last_process_index;
  slot.start_tick = start_tick;
  slot.parent_start_tick = g_last_process_start;
  slot.parent_fork_tick = g_fork_handled ? g_fork_tick : start_tick;
  slot.mmap_threshold = settings.mmap_threshold;
  slot.trim_threshold = settings.trim_threshold;
  slot.top_pad = settings.top_pad;
  slot.mmap_max = settings.mmap_max;
  slot.arena_max = settings.arena_max;
  slot.mmap_threshold_dynamic = settings.mmap_threshold_dynamic;
  slot.tcache_count = settings.tcache_count;
  slot.heap_start = 0;
  slot.gaps.store(g_gaps.load(std::memory_order_relaxed), std::memory_order_relaxed);
  rusage usage{};
  if (may_ask) sys::getrusage(RUSAGE_SELF, &usage);
  slot.start_minor_faults = static_cast<uint64_t>(usage.ru_minflt);
  slot.start_major_faults = static_cast<uint64_t>(usage.ru_majflt);
  slot.end_minor_faults.store(0, std::memory_order_relaxed);
  slot.end_major_faults.store(0, std::memory_order_relaxed);
  slot.end_tick.store(0, std::memory_order_relaxed);
  slot.exit_status.store(0, std::memory_order_relaxed);
  slot.events_lost.store(0, std::memory_order_relaxed);
  slot.mismatch_at.store(0, std::memory_order_relaxed);
  slot.mismatch_inner.store(0, std::memory_order_relaxed);
  slot.stacks_compared.store(0, std::memory_order_relaxed);
  slot.stacks_mismatched.store(0, std::memory_order_relaxed);
  slot.stacks_incomparable.store(0, std::memory_order_relaxed);
  slot.recorder_syscalls.store(may_ask ? 3 : 0, std::memory_order_relaxed);  // Those above.
  slot.snapshot_wanted.store(0, std::memory_order_relaxed);
  slot.snapshot_done.store(0, std::memory_order_relaxed);
}

bool adopt_slot(ProcessPage* page, uint64_t start_tick) {
  const uint32_t index = wait_for_slot();
  if (index == UINT32_MAX) return false;
  ProcessSlot& slot = g_recorder.region.processes[index];
  fill_slot(slot, start_tick);
  slot.state.store(ProcessState::kLive,
                   std::memory_order_release);  // Pairs with the collector's acquire load.
  g_last_process_index = index;
  g_last_process_start = start_tick;
  page->index = index;
  page->pid = slot.pid;
  page->shared = {g_recorder.region.control, &g_stopped, &slot, Patience{}};
  page->slot = &slot;
  return true;
}

bool collector_is_gone() {
  const schema::ControlPage& control = *g_recorder.region.control;
  return control.recording.load(std::memory_order_acquire) == 0 ||
         sys::kill(static_cast<pid_t>(control.collector_pid), 0) == -ESRCH;
}

}  // namespace

const char* start(const Region& given, const StartSettings& settings, bool follow,
                  void (*on_first_event)()) noexcept {
  Region region = given;
  const uint32_t wanted_depth = region.control->stack_depth;
  const uint32_t depth = wanted_depth < kDepthMax ? wanted_depth : kDepthMax;
  const size_t stride = base::align_up(sizeof(ThreadRing) + StackWalk::bytes_for(depth), 4096);
  const uint64_t allowed = mapping_allowance(4096 + region.ring_slots * stride);
  const uint64_t least = region.ring_slots < kRingsLeast ? region.ring_slots : kRingsLeast;
  if (allowed < 4096 + least * stride) {
    return "the limit of address space leaves no room for it";
  }
  region.ring_slots = static_cast<uint32_t>((allowed - 4096) / stride);
  const size_t bytes = 4096 + region.ring_slots * stride;
  void* address = own_memory(bytes);
  if (address == nullptr) return "no memory for the recorder";
  if (sys::failed(own_madvise(address, bytes, MADV_WIPEONFORK))) {
    release_own_memory(address, bytes);
    return "this kernel has no MADV_WIPEONFORK";
  }
  own_madvise(address, bytes, MADV_DONTDUMP);

  if (depth != 0) {
    start_recipes();  // Without them libunwind walks.
    learn_bare_roots();
  }
  const bool verify = region.control->verify_stacks != 0 && depth != 0 &&
                      start_stack_check(region.ring_slots, depth);
  g_recorder = {region,
                region.control->clock,
                depth,
                region.control->free_stacks != 0,
                verify,
                follow,
                static_cast<std::byte*>(address),
                stride,
                settings,
                on_first_event};
  // From its own first call on: all events of the process lie after its start.
  if (!adopt_slot(g_recorder.process(), first_own_call(g_recorder.clock))) {
    g_stopped.store(1, std::memory_order_relaxed);
    return "the recording has no room for another process";
  }
  return nullptr;
}

bool adopt_child() noexcept {
  // A sandboxed child knows its pid only where libc made it.
  const bool nameless = is_sandboxed() && (!g_fork_handled || kept_tid() == 0);
  if (nameless && g_last_process_index < g_recorder.region.process_slots) {
    g_recorder.region.processes[g_last_process_index].gaps.fetch_or(schema::kGapSandbox,
                                                                    std::memory_order_relaxed);
  }
  if (!g_recorder.follow || nameless) {
    g_stopped.store(1, std::memory_order_relaxed);
    return false;
  }
  ProcessPage* page = g_recorder.process();
  if (page->lost_here != nullptr) return false;
  base::LockGuard guard(page->adopting);
  if (page->slot != nullptr) return true;
  if (page->lost_here != nullptr) return false;
  if (!g_fork_handled) distrust_unwinder();  // Some thread of the parent may have been inside it.
  const uint64_t start_tick = tick();
  const bool adopted = adopt_slot(page, start_tick);
  g_fork_handled = false;
  if (!adopted && is_recording()) note_refused(page, start_tick);
  return adopted;
}

void count_lost_event() noexcept {
  if (g_recorder.region.control == nullptr) return;
  const ProcessPage* page = g_recorder.process();
  std::atomic<uint64_t>* lost = page->slot != nullptr ? &page->slot->events_lost : page->lost_here;
  if (lost != nullptr) lost->fetch_add(1, std::memory_order_relaxed);
}

void note_gap(schema::Gap gap) noexcept {
  g_gaps.fetch_or(gap, std::memory_order_relaxed);
  ProcessSlot* slot = g_recorder.region.control != nullptr ? g_recorder.process()->slot : nullptr;
  if (slot != nullptr) slot->gaps.fetch_or(gap, std::memory_order_relaxed);
}

void learn_tid_place() noexcept {
  if (g_tid_place != 0) return;
  const auto tid = static_cast<uint32_t>(sys::gettid());
  const char* thread = static_cast<const char*>(__builtin_thread_pointer());
  size_t found = 0;
  for (size_t place = kTidPlaceFirst; place < kTidPlaceLast; place += sizeof(tid)) {
    uint32_t word = 0;
    memcpy(&word, thread + place, sizeof(word));
    if (word != tid) continue;
    if (found != 0) return;  // Not sure which.
    found = place;
  }
  g_tid_place = found;
}

uint32_t kept_tid() noexcept {
  if (g_tid_place == 0) return 0;
  uint32_t tid = 0;
  memcpy(&tid, static_cast<const char*>(__builtin_thread_pointer()) + g_tid_place, sizeof(tid));
  return tid;
}

void count_recorder_syscalls(uint64_t count) noexcept {
  if (g_recorder.private_memory == nullptr) return;
  ProcessSlot* slot = g_recorder.process()->slot;
  if (slot != nullptr) slot->recorder_syscalls.fetch_add(count, std::memory_order_relaxed);
}

void before_fork() noexcept {
  if (!is_recording()) return;
  const ThreadRing* own = t_local.ring;
  const Region& region = g_recorder.region;
  const uint32_t used = region.control->ring_slots_used.load(std::memory_order_acquire);
  fork_begins([](uint32_t i) { return &g_recorder.ring(i)->busy; },
              used < region.ring_slots ? used : region.ring_slots,
              own != nullptr ? &own->busy : nullptr);
  g_fork_tick = tick();
  g_fork_handled = true;
}

void after_fork_in_parent() noexcept {
  if (g_recorder.region.control == nullptr) return;
  g_fork_handled = false;
  fork_ends_in_parent();
}

void after_fork_in_child() noexcept {
  if (g_recorder.region.control == nullptr) return;
  fork_ends_in_child();
  this_process();
}

void note_heap_start(uint64_t address) noexcept {
  ProcessPage* page = this_process();
  if (page != nullptr && page->slot->heap_start == 0) page->slot->heap_start = address;
}

void request_snapshot(uint64_t limit_ns) noexcept {
  ProcessPage* page = this_process();
  if (page == nullptr || is_sandboxed() || collector_is_gone()) return;
  ProcessSlot& slot = *page->slot;
  schema::ControlPage& control = *g_recorder.region.control;
  // Release: what the program did before is in its rings, for whoever sees the wish.
  const uint32_t wanted = slot.snapshot_wanted.fetch_add(1, std::memory_order_release) + 1;
  control.doorbell.fetch_add(1, std::memory_order_seq_cst);
  sys::futex_wake(reinterpret_cast<volatile uint32_t*>(&control.doorbell), 1, true);
  uint64_t calls = 2;
  bool napped = false;
  const uint64_t deadline = monotonic_raw_ns() + limit_ns;
  for (;;) {
    // Acquire: pairs with the collector's release store.
    const uint32_t done = slot.snapshot_done.load(std::memory_order_acquire);
    if (static_cast<int32_t>(done - wanted) >= 0) break;
    const uint64_t now = monotonic_raw_ns();
    if (now >= deadline || collector_is_gone()) break;
    if (napped && is_halted(static_cast<pid_t>(control.collector_pid))) break;
    napped = true;
    constexpr uint64_t kNapNs = 50'000'000;
    const uint64_t left = deadline - now < kNapNs ? deadline - now : kNapNs;
    const timespec nap = {0, static_cast<long>(left)};
    calls += 2;
    const long result = sys::futex_wait(reinterpret_cast<volatile uint32_t*>(&slot.snapshot_done),
                                        done, &nap, true);
    if (result == -EPERM || result == -ENOSYS) break;  // A filter refuses futex.
  }
  count_recorder_syscalls(calls);
}

void process_ends(int status) noexcept {
  if (!is_recording() || is_sandboxed()) return;
  const uint64_t now = tick();
  ProcessPage* page = this_process();
  if (page == nullptr || static_cast<uint32_t>(sys::getpid()) != page->pid) return;
  ProcessSlot& slot = *page->slot;
  uint64_t none = 0;
  if (!slot.end_tick.compare_exchange_strong(none, now, std::memory_order_relaxed)) return;
  rusage usage{};
  sys::getrusage(RUSAGE_SELF, &usage);
  slot.end_minor_faults.store(static_cast<uint64_t>(usage.ru_minflt), std::memory_order_relaxed);
  slot.end_major_faults.store(static_cast<uint64_t>(usage.ru_majflt), std::memory_order_relaxed);
  slot.exit_status.store((static_cast<uint32_t>(status) & 0xffU) + 1, std::memory_order_release);
  count_recorder_syscalls(2);
  request_snapshot(kExitSnapshotNs);
}

}  // namespace heapledger::trace
