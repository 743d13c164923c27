// SPDX-License-Identifier: Apache-2.0
// Which memory around a stack pointer may be read: the bounds that keep a walk out of memory that
// is not there.
//
// Two ranges per thread:
//
// own      The thread's own stack, which stays for as long as the thread runs: for the process'
//          first thread what lies below the place where it began, for others the block that glibc's
//          control block of the thread names (StackBounds::find_own).
// foreign  Another one: a signal's alternate stack, a coroutine's. Its pages are tried one by one,
//          upwards, with a system call that says whether the kernel could read there. It may be
//          unmapped any time while nobody runs on it, so what was found holds only until the next
//          unmapping (note_unmapping). In a seccomp sandbox no page is tried and nothing is known.
//
// Thread safety: bounds belong to their thread; a signal handler may interrupt any update. No
// allocation, no locks, errno kept. Cost: 1 ns where known, 0.1 us per page tried.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace heapledger::trace {

struct StackRange {
  uintptr_t low = 0;
  uintptr_t high = 0;

  bool covers(uintptr_t address) const noexcept { return address - low < high - low; }
};

// Counts unmappings (and other losses of memory) in this process.
extern constinit std::atomic<uint32_t> g_unmappings;
inline void note_unmapping() noexcept {
  // Release: pairs with the acquire loads of the walk.
  g_unmappings.fetch_add(1, std::memory_order_release);
}
inline uint32_t unmappings() noexcept { return g_unmappings.load(std::memory_order_acquire); }

class StackBounds {
 public:
  // The range around `sp`, readable from there on; empty: unknown.
  StackRange around(uintptr_t sp) noexcept {
    if (__builtin_expect(own_.covers(sp), 1)) return own_;
    return around_slow(sp);
  }
  bool is_own(uintptr_t sp) const noexcept { return own_.covers(sp); }

  // Makes `range`, which around() gave, reach up to `end` at least; false: it cannot.
  __attribute__((noinline, cold)) bool extend(StackRange* range, uintptr_t end) noexcept;

 private:
  __attribute__((noinline, cold)) StackRange around_slow(uintptr_t sp) noexcept;
  static StackRange find_own(uintptr_t sp) noexcept;

  StackRange own_;
  StackRange foreign_;
  uint32_t foreign_unmappings_ = 0;  // unmappings() when foreign_ was found.
};

}  // namespace heapledger::trace
