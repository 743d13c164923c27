// SPDX-License-Identifier: Apache-2.0
// What the recorder does in the program for itself, so that it is not taken for the program's
// doing.
//
// 1. Its memory system calls. All of them happen at start, before there is a ring to write to: they
// are kept here and written once there is one, as events of origin `recorder`.
// 2. Its allocations: libunwind's thread-local storage, libunwind itself, an environment entry.
// They come from a heap of their own (own_heap.h) and make no event, neither at their birth
// (is_own_call) nor at their end. Thread safety: the log belongs to start-up, which is
// single-threaded; the rest is thread-local.
#pragma once

#include <cstddef>
#include <cstdint>

#include "interposer/trace/thread_local.h"
#include "schema/event.h"
#include "schema/shared_region.h"

namespace heapledger::trace {

class CallScope;

// The id in the header of a block that the recorder caused (for whoever looks at it). Its slot
// number is beyond any region's.
inline constexpr uint64_t kOwnBlock = 0xfff2'0000'0000'0000;

// Raw system calls, noted down.
long own_mmap(void* address, size_t length, int protection, int flags, int fd = -1) noexcept;
long own_munmap(void* address, size_t length) noexcept;
long own_madvise(void* address, size_t length, int advice) noexcept;

// Private memory, zeroed; null where there is none. The program's limit of data (RLIMIT_DATA) does
// not count it: the kernel takes memory that can grow downwards for a stack. A page below it that
// nobody may touch keeps it from growing.
void* own_memory(size_t bytes) noexcept;
// Gives it all back.
void release_own_memory(void* memory, size_t bytes) noexcept;

// A memory system call (address, bytes, argument) once there is a ring: written at once, without a
// stack.
long own_call(CallScope& scope, schema::SyscallName name, long number, void* address, size_t bytes,
              int argument) noexcept;

// Writes what was noted so far.
void write_own_calls(CallScope& scope) noexcept;
// When the first of them was made, on the region's clock; 0: none was.
uint64_t first_own_call(schema::Clock clock) noexcept;

// While one exists, everything this thread allocates is the recorder's.
class OwnWork {
 public:
  OwnWork() noexcept : before_(t_local.own) {
    t_local.own = static_cast<uint8_t>(before_ | kOwnWork);
  }
  ~OwnWork() { t_local.own = before_; }
  OwnWork(const OwnWork&) = delete;
  OwnWork& operator=(const OwnWork&) = delete;

 private:
  uint8_t before_;
};

// Where libunwind's code and the dynamic linker's (its helper for thread-local storage) lie.
struct CodeRange {
  uintptr_t start = 0;
  uintptr_t end = 0;
};
void set_own_code(CodeRange unwinder, CodeRange linker) noexcept;

bool is_own_call_slow(const void* caller) noexcept;

// Whether libunwind itself made the call: it also does so outside of a walk, at a thread's end.
bool is_call_of_unwinder(const void* caller) noexcept;

// Whether the call that returns to `caller` was caused by the recorder. Inside libunwind that is
// decided by the caller: a signal handler of the program may have interrupted it.
inline bool is_own_call(const void* caller) noexcept {
  return __builtin_expect(t_local.own != 0, 0) && is_own_call_slow(caller);
}

}  // namespace heapledger::trace
