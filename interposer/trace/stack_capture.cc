// SPDX-License-Identifier: Apache-2.0
#include "interposer/trace/stack_capture.h"

#include <elf.h>
#include <errno.h>
#include <string.h>
#include <sys/auxv.h>
#include <ucontext.h>

#include "interposer/base/bits.h"
#include "interposer/base/env.h"
#include "interposer/base/sys.h"
#include "interposer/trace/ring_producer.h"
#include "interposer/trace/stack_walk.h"
#include "interposer/trace/thread_local.h"

namespace heapledger::trace {
namespace {

constexpr int kRegisterIp = 16;             // UNW_X86_64_RIP (libunwind-x86_64.h).
constexpr size_t kLoaderEntryBytes = 0x80;  // The linker's _start is shorter than that.
constexpr size_t kStepsMax = 1u << 20;
constexpr uint64_t kForkWaitNs = 200'000'000;

constinit Unwinder g_unwinder;
constinit uintptr_t g_loader_entry = 0;
constinit uintptr_t g_context_start = 0;
constinit std::atomic<bool> g_usable{false};         // libunwind may be called at all.
constinit std::atomic<bool> g_fast_walk{true};       // unw_backtrace may be trusted.
constinit std::atomic<uint32_t> g_forks_pending{0};  // Futex: threads between fork's handlers.
constinit std::atomic<bool> g_fork_unsure{false};    // One of them found a thread inside libunwind.

// Outermost return addresses whose nature is known: address * 2 + is_root. Collisions overwrite.
constexpr size_t kRootsKnown = 256;
constinit std::atomic<uint64_t> g_roots[kRootsKnown];

// libunwind's unw_cursor_t is 127 words, unw_context_t is ucontext_t (121 words) and
// unw_proc_info_t 9 words, in 1.x for x86-64. No larger than need be: a thread's stack may be tiny.
struct alignas(16) Cursor {
  uint64_t words[128];
};
struct alignas(16) Context {
  uint64_t words[128];
};
struct alignas(16) ProcInfo {
  uint64_t words[16];
};

// Steps from here to the stack's end. Fills frames[0 .. limit). Tells whether the end is a root,
// and its address.
struct SteppedWalk {
  size_t count = 0;
  uintptr_t last = 0;
  bool root = false;
};

__attribute__((noinline)) SteppedWalk step_through(uintptr_t* frames, size_t limit) {
  SteppedWalk walk;
  Context context;
  Cursor cursor;
  Cursor here;
  if (g_unwinder.get_context(&context) < 0 || g_unwinder.init_local(&cursor, &context) < 0) {
    return walk;
  }
  for (size_t i = 0; i < kStepsMax; ++i) {
    uint64_t ip = 0;
    if (g_unwinder.get_register(&cursor, kRegisterIp, &ip) < 0 || ip == 0) return walk;
    if (walk.count < limit) frames[walk.count++] = ip;
    walk.last = ip;
    here = cursor;
    const int result = g_unwinder.step(&cursor);
    if (result > 0) continue;
    // The end: a root where the frame has unwind information, and that says there is no caller.
    ProcInfo info;
    walk.root = result == 0 && g_unwinder.get_proc_info(&here, &info) == 0;
    return walk;
  }
  return walk;
}

bool is_root(uintptr_t ip) {
  if (is_bare_root(ip)) return true;
  std::atomic<uint64_t>& known = g_roots[(ip ^ ip >> 8) % kRootsKnown];
  const uint64_t value =
      known.load(std::memory_order_relaxed);  // A word of its own: nothing else to order.
  if (value >> 1 == ip) return (value & 1) != 0;
  const SteppedWalk walk = step_through(nullptr, 0);
  if (walk.last != ip) return false;
  known.store(uint64_t{ip} << 1 | (walk.root ? 1 : 0), std::memory_order_relaxed);
  return walk.root;
}

// Holds the thread inside libunwind; `entered` false: it must not be called now.
class UnwinderScope {
 public:
  explicit UnwinderScope(std::atomic<uint32_t>* busy) : busy_(busy) {
    // It makes system calls that a filter may kill for.
    if (!g_usable.load(std::memory_order_acquire) || t_local.own != 0 ||
        t_local.loader_depth != 0 || is_sandboxed()) {
      return;
    }
    for (int tries = 0; tries < 50; ++tries) {
      // Seq_cst, with fork_begins: either it sees this flag, or the load below sees its.
      busy_->store(1, std::memory_order_seq_cst);
      const uint32_t pending = g_forks_pending.load(std::memory_order_seq_cst);
      // The thread that forks, in the program's own handlers: it will be out again before the fork,
      // and nobody else is inside, in the parent or in the child.
      const bool alone = t_local.forking && !g_fork_unsure.load(std::memory_order_relaxed);
      if (pending == 0 || alone) {
        t_local.own = kOwnUnwinding;
        entered_ = true;
        return;
      }
      busy_->store(0, std::memory_order_release);
      if (t_local.forking) return;
      constexpr timespec kNap = {0, 20'000'000};
      base::sys::futex_wait(reinterpret_cast<volatile uint32_t*>(&g_forks_pending), pending, &kNap,
                            false);
    }
  }
  ~UnwinderScope() {
    if (!entered_) return;
    t_local.own = 0;
    // Release: pairs with the acquire load in fork_begins.
    busy_->store(0, std::memory_order_release);
  }
  UnwinderScope(const UnwinderScope&) = delete;
  UnwinderScope& operator=(const UnwinderScope&) = delete;

  bool entered() const { return entered_; }

 private:
  std::atomic<uint32_t>* busy_;
  bool entered_ = false;
};

// Moves the part of frames[0 .. count) that begins at `caller` to the front; 0 where the walk never
// came by it.
size_t drop_own_frames(uintptr_t* frames, size_t count, uintptr_t caller) {
  size_t own = 0;
  while (own < count && own <= kOwnFramesMax && frames[own] != caller) ++own;
  if (own == count || own > kOwnFramesMax) return 0;
  for (size_t i = own; i < count; ++i) frames[i - own] = frames[i];
  return count - own;
}

UnwoundStack walk_with_libunwind(uintptr_t* frames, size_t depth, uintptr_t caller, bool fast) {
  UnwoundStack walk;
  const size_t limit = depth + kOwnFramesMax;
  bool root = false;
  if (fast) {
    const int count =
        g_unwinder.backtrace(reinterpret_cast<void**>(frames), static_cast<int>(limit));
    walk.count = count > 0 ? static_cast<size_t>(count) : 0;
    root = walk.count > 0 && walk.count < limit && is_root(frames[walk.count - 1]);
  } else {
    const SteppedWalk stepped = step_through(frames, limit);
    walk.count = stepped.count;
    root = walk.count > 0 && frames[walk.count - 1] == stepped.last &&
           (stepped.root || is_bare_root(stepped.last));
  }
  walk.count = drop_own_frames(frames, walk.count, caller);
  walk.complete = root && walk.count <= depth;
  if (walk.count > depth) walk.count = depth;
  return walk;
}

}  // namespace

thread_local constinit ThreadLocal t_local __attribute__((tls_model("initial-exec"))) = {};

void set_unwinder(const Unwinder& unwinder) noexcept {
  g_unwinder = unwinder;
  // Release: pairs with the acquire load in UnwinderScope.
  g_usable.store(unwinder.backtrace != nullptr, std::memory_order_release);
}

void flush_unwinder() noexcept {
  if (!g_usable.load(std::memory_order_acquire)) return;
  // It raises a generation, atomically, which every later step compares with its cache's.
  g_unwinder.flush_cache(*g_unwinder.local_address_space, 0, 0);
}
void distrust_fast_walk() noexcept { g_fast_walk.store(false, std::memory_order_relaxed); }
void distrust_unwinder() noexcept { g_usable.store(false, std::memory_order_relaxed); }

void learn_bare_roots() noexcept {
  if (const uintptr_t linker = base::aux_value(AT_BASE); linker != 0) {
    g_loader_entry = linker + static_cast<const Elf64_Ehdr*>(base::pointer_to(linker))->e_entry;
  }
  alignas(16) char stack[512];
  ucontext_t context = {};
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = sizeof(stack);
  makecontext(
      &context, [] {}, 0);
  // The new context's first function finds its return address where any function does.
  const auto sp = static_cast<uintptr_t>(context.uc_mcontext.gregs[REG_RSP]);
  if (sp - base::address_of(stack) >= sizeof(stack)) return;
  memcpy(&g_context_start, base::pointer_to(sp), sizeof(g_context_start));
}

bool is_bare_root(uintptr_t ip) noexcept {
  return (g_loader_entry != 0 && ip - g_loader_entry < kLoaderEntryBytes) ||
         (ip == g_context_start && ip != 0);
}

namespace {
UnwoundStack unwind_or_step(uintptr_t* frames, size_t depth, uintptr_t caller,
                            std::atomic<uint32_t>* busy, bool fast) {
  UnwoundStack walk;
  const int saved_errno = errno;
  {
    UnwinderScope scope(busy);
    if (scope.entered()) walk = walk_with_libunwind(frames, depth, caller, fast);
  }
  errno = saved_errno;
  return walk;
}
}  // namespace

UnwoundStack unwind_stack(uintptr_t* frames, size_t depth, uintptr_t caller,
                          std::atomic<uint32_t>* busy) noexcept {
  const bool fast = g_fast_walk.load(std::memory_order_relaxed);
  return unwind_or_step(frames, depth, caller, busy, fast);
}

UnwoundStack step_stack(uintptr_t* frames, size_t depth, uintptr_t caller,
                        std::atomic<uint32_t>* busy) noexcept {
  return unwind_or_step(frames, depth, caller, busy, false);
}

LoaderScope::LoaderScope() noexcept { ++t_local.loader_depth; }
LoaderScope::~LoaderScope() { --t_local.loader_depth; }

void fork_begins(std::atomic<uint32_t>* (*busy_flag)(uint32_t), uint32_t count,
                 const std::atomic<uint32_t>* own) noexcept {
  t_local.forking = true;
  g_forks_pending.fetch_add(1, std::memory_order_seq_cst);
  timespec start{};
  clock_gettime(CLOCK_MONOTONIC, &start);
  for (uint32_t i = 0; i < count; ++i) {
    const std::atomic<uint32_t>* busy = busy_flag(i);
    if (busy == own) continue;
    while (busy->load(std::memory_order_seq_cst) != 0) {
      base::sys::sched_yield();
      timespec now{};
      clock_gettime(CLOCK_MONOTONIC, &now);
      const auto waited_ns = static_cast<uint64_t>((now.tv_sec - start.tv_sec) * 1'000'000'000 +
                                                   now.tv_nsec - start.tv_nsec);
      if (waited_ns > kForkWaitNs) {
        g_fork_unsure.store(true, std::memory_order_seq_cst);  // The child must know.
        return;
      }
    }
  }
}

void fork_ends_in_parent() noexcept {
  t_local.forking = false;
  if (g_forks_pending.fetch_sub(1, std::memory_order_seq_cst) != 1) return;
  g_fork_unsure.store(false, std::memory_order_relaxed);
  base::sys::futex_wake(reinterpret_cast<volatile uint32_t*>(&g_forks_pending), INT32_MAX, false);
}

void fork_ends_in_child() noexcept {
  t_local.forking = false;
  g_forks_pending.store(0, std::memory_order_seq_cst);
  if (g_fork_unsure.exchange(false, std::memory_order_relaxed)) distrust_unwinder();
}

}  // namespace heapledger::trace
