// SPDX-License-Identifier: Apache-2.0
// The program's own memory system calls: passed on to libc's functions, and recorded with their
// stacks.
//
// What libunwind maps for itself while it walks a stack is the recorder's, not the program's:
// counted, not recorded. brk and sbrk share the break with the heap: sbrk works from the break the
// heap knows, as libc's would from its own copy, and what the program moves is noted there, so that
// the heap sees foreign memory instead of losing its own.
#include <errno.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <unistd.h>

#include "interposer/heap.h"
#include "interposer/lifecycle.h"
#include "interposer/trace/own_calls.h"
#include "interposer/trace/recipe_table.h"
#include "interposer/trace/recorder.h"

#define HL_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using heapledger::g_heap;
using heapledger::real;
using heapledger::base::address_of;
using heapledger::base::kPageBytes;
using heapledger::schema::Origin;
using heapledger::schema::SyscallName;
namespace trace = heapledger::trace;
namespace sys = heapledger::base::sys;

uint64_t word(int64_t value) { return static_cast<uint64_t>(value); }

// True where the call is to be recorded as the program's.
bool is_recorded(const void* caller) {
  if (!heapledger::traced()) return false;
  if (!trace::is_own_call(caller) && !trace::is_call_of_unwinder(caller)) return true;
  trace::count_recorder_syscalls(1);
  return false;
}

// What the kernel returned, from what libc's wrapper made of it.
int64_t kernel_result(int result) { return result == -1 ? -errno : result; }
int64_t kernel_result(const void* result) {
  return result == MAP_FAILED ? -errno : static_cast<int64_t>(address_of(result));
}

// Calls `work` and records it as `name` with these arguments. errno is what `work` left.
template <class Work>
auto record(SyscallName name, const uint64_t (&args)[6], const void* caller, Work work) {
  if (!is_recorded(caller)) return work();
  trace::CallScope scope(caller);
  scope.take_stack();
  const uint64_t entered = trace::tick();
  auto result = work();
  scope.on_syscall(name, Origin::kProgram, entered, trace::tick() - entered, args,
                   kernel_result(result));
  return result;
}

// What lies in this range is about to go, perhaps code: how to walk through it must be forgotten
// before other code can come there. mprotect is no such occasion: what unwind information says does
// not depend on it, and code without any (a JIT compiler's) has no recipe to go stale.
void forget_code_in(const void* address, size_t length) {
  const uintptr_t start = heapledger::base::align_down(address_of(address), kPageBytes);
  const uintptr_t end = heapledger::base::align_up(address_of(address) + length, kPageBytes);
  if (start < end) trace::forget_code_if_known(start, end);
}

void* record_mmap(void* address, size_t length, int protection, int flags, int fd, off_t offset,
                  const void* caller) {
  if ((flags & MAP_FIXED) != 0) forget_code_in(address, length);
  return record(
      SyscallName::kMmap,
      {address_of(address), length, word(protection), word(flags), word(fd), word(offset)}, caller,
      [=] { return real().mmap(address, length, protection, flags, fd, offset); });
}

// Moves the break to `address` (0: asks where it is) for the program. Returns the break afterwards.
uintptr_t move_break(uintptr_t address, const void* caller) {
  if (!heapledger::traced()) {
    const uintptr_t result = sys::brk(address);
    g_heap.note_break(result);
    return result;
  }
  trace::CallScope scope(caller);
  scope.take_stack();
  const uint64_t entered = trace::tick();
  const uintptr_t result = sys::brk(address);
  g_heap.note_break(result);
  scope.on_syscall(SyscallName::kBrk, Origin::kProgram, entered, trace::tick() - entered, {address},
                   static_cast<int64_t>(result));
  return result;
}

}  // namespace

HL_EXPORT void* mmap(void* address, size_t length, int protection, int flags, int fd,
                     off_t offset) noexcept {
  return record_mmap(address, length, protection, flags, fd, offset, __builtin_return_address(0));
}
HL_EXPORT void* mmap64(void* address, size_t length, int protection, int flags, int fd,
                       off64_t offset) noexcept {
  return record_mmap(address, length, protection, flags, fd, offset, __builtin_return_address(0));
}

HL_EXPORT int munmap(void* address, size_t length) noexcept {
  forget_code_in(address, length);
  return record(SyscallName::kMunmap, {address_of(address), length}, __builtin_return_address(0),
                [=] { return real().munmap(address, length); });
}

HL_EXPORT void* mremap(void* address, size_t old_length, size_t new_length, int flags,
                       ...) noexcept {
  void* new_address = nullptr;
  if ((flags & MREMAP_FIXED) != 0) {
    va_list arguments;
    va_start(arguments, flags);
    new_address = va_arg(arguments, void*);
    va_end(arguments);
    forget_code_in(new_address, new_length);
  }
  forget_code_in(address, old_length);
  return record(SyscallName::kMremap,
                {address_of(address), old_length, new_length, word(flags), address_of(new_address)},
                __builtin_return_address(0),
                [=] { return real().mremap(address, old_length, new_length, flags, new_address); });
}

HL_EXPORT int madvise(void* address, size_t length, int advice) noexcept {
  return record(SyscallName::kMadvise, {address_of(address), length, word(advice)},
                __builtin_return_address(0),
                [=] { return real().madvise(address, length, advice); });
}

HL_EXPORT int mprotect(void* address, size_t length, int protection) noexcept {
  return record(SyscallName::kMprotect, {address_of(address), length, word(protection)},
                __builtin_return_address(0),
                [=] { return real().mprotect(address, length, protection); });
}

HL_EXPORT int brk(void* address) noexcept {
  const uintptr_t wanted = address_of(address);
  if (move_break(wanted, __builtin_return_address(0)) >= wanted) return 0;
  errno = ENOMEM;
  return -1;
}

HL_EXPORT void* sbrk(intptr_t increment) noexcept {
  const void* caller = __builtin_return_address(0);
  uintptr_t old = g_heap.known_break();
  if (old == 0) old = move_break(0, caller);
  if (increment == 0) return heapledger::base::pointer_to(old);
  const uintptr_t wanted = old + static_cast<uintptr_t>(increment);
  const bool wraps = increment > 0 ? wanted < old : wanted > old;
  if (!wraps && move_break(wanted, caller) >= wanted) return heapledger::base::pointer_to(old);
  errno = ENOMEM;
  return reinterpret_cast<void*>(-1);
}
