// SPDX-License-Identifier: Apache-2.0
// Walks the calling thread's stack with libunwind's unw_backtrace: for the frames that no recipe
// can describe (stack_walk.h), and where there are no recipes at all.
//
// libunwind is not linked: lifecycle.cc loads it at start and hands its functions over here (style:
// a needed libunwind would capture the program's own unwinding).
//
// Rules. 1. Never re-entered: a signal handler that interrupts libunwind gets no stack of it. 2.
// libunwind takes the loader's lock: it is not called under a lock of the heap, nor inside dlopen,
// dlclose and dl_iterate_phdr of the same thread (LoaderScope), nor between fork's prepare handler
// and the parent and child handlers (fork_begins waits until no thread is inside; a child whose
// parent could not be brought to rest does not use libunwind at all). 3. A walk counts as complete
// only where it ended in a frame whose unwind information says "outermost"; that is asked once per
// such return address and remembered.
// 4. What libunwind keeps of a file is out of date when the file is unloaded: its cache of unwind
// rows is flushed then. unw_backtrace has another cache, which nothing can clear: where an unloaded
// file's addresses were reused, frames are stepped one by one from then on (slow, right). Runs
// inside malloc: no allocation, no locks held by heap, errno kept. Cost: 10 ns per frame, 0.7 us
// where stepped.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace heapledger::trace {

// libunwind's functions, as dlsym found them. `backtrace` null: there is no libunwind.
struct Unwinder {
  int (*backtrace)(void** frames, int count) = nullptr;
  int (*get_context)(void* context) = nullptr;
  int (*init_local)(void* cursor, void* context) = nullptr;
  int (*step)(void* cursor) = nullptr;
  int (*get_register)(void* cursor, int number, uint64_t* value) = nullptr;
  int (*get_proc_info)(void* cursor, void* info) = nullptr;
  void (*flush_cache)(void* address_space, uint64_t low, uint64_t high) = nullptr;
  void** local_address_space = nullptr;
};

// Names under which libunwind 1.x exports them for x86-64, in the order above.
inline constexpr const char* kUnwinderSymbols[] = {
    "unw_backtrace",        "_Ux86_64_getcontext",       "_ULx86_64_init_local",
    "_ULx86_64_step",       "_ULx86_64_get_reg",         "_ULx86_64_get_proc_info",
    "_Ux86_64_flush_cache", "_ULx86_64_local_addr_space"};

// Called once, by lifecycle.cc.
void set_unwinder(const Unwinder& unwinder) noexcept;

// A file was unmapped; another one was mapped where one had been unmapped (rule 4).
void flush_unwinder() noexcept;
void distrust_fast_walk() noexcept;

// Code that nothing calls, although its unwind information, if any, does not say so: where the
// dynamic linker starts a program, and where makecontext lets a context begin. A walk that ends
// there has reached the root. Learnt at start, by one thread.
void learn_bare_roots() noexcept;
bool is_bare_root(uintptr_t ip) noexcept;

struct UnwoundStack {
  size_t count = 0;       // Frames in the buffer, innermost first; 0: libunwind could not be asked.
  bool complete = false;  // The outermost one is the thread's first.
};

// Fills frames[0 .. depth) with return addresses, beginning at `caller`, the return address of the
// exported function that the program called. `frames` has room for depth + kOwnFramesMax. `busy` is
// the thread's own flag that others look at (rule 2).
UnwoundStack unwind_stack(uintptr_t* frames, size_t depth, uintptr_t caller,
                          std::atomic<uint32_t>* busy) noexcept;

// The same, one frame after the other in any case (rule 4).
UnwoundStack step_stack(uintptr_t* frames, size_t depth, uintptr_t caller,
                        std::atomic<uint32_t>* busy) noexcept;

// While one exists, this thread does not call libunwind.
class LoaderScope {
 public:
  LoaderScope() noexcept;
  ~LoaderScope();
  LoaderScope(const LoaderScope&) = delete;
  LoaderScope& operator=(const LoaderScope&) = delete;
};

// Fork (rule 2). `busy_flag` gives the flag of the i-th ring, i < count.
void fork_begins(std::atomic<uint32_t>* (*busy_flag)(uint32_t), uint32_t count,
                 const std::atomic<uint32_t>* own) noexcept;
void fork_ends_in_parent() noexcept;
void fork_ends_in_child() noexcept;
// A child that came without the handlers (_Fork, raw clone) while other threads may have been
// inside.
void distrust_unwinder() noexcept;

}  // namespace heapledger::trace
