// SPDX-License-Identifier: Apache-2.0
#include "interposer/base/sys.h"

#include <errno.h>
#include <linux/futex.h>

namespace heapledger::base::sys {

namespace {

// Repeats a call for as long as a signal interrupts it.
template <class Call>
long retrying(Call attempt) {
  long result = 0;
  do {
    result = attempt();
  } while (result == -EINTR);
  return result;
}

}  // namespace

long read(int fd, void* buffer, size_t size) noexcept {
  return retrying([=] { return call(SYS_read, fd, word(buffer), word(size)); });
}

long write(int fd, const void* buffer, size_t size) noexcept {
  return retrying([=] { return call(SYS_write, fd, word(buffer), word(size)); });
}

long writev(int fd, const iovec* parts, int count) noexcept {
  return retrying([=] { return call(SYS_writev, fd, word(parts), count); });
}

long connect(int fd, const sockaddr* address, socklen_t length) noexcept {
  return retrying([=] { return call(SYS_connect, fd, word(address), length); });
}

long sendmsg(int fd, const msghdr* message, int flags) noexcept {
  return retrying([=] { return call(SYS_sendmsg, fd, word(message), flags); });
}

long recvmsg(int fd, msghdr* message, int flags) noexcept {
  return retrying([=] { return call(SYS_recvmsg, fd, word(message), flags); });
}

long futex_wait(const volatile uint32_t* address, uint32_t expected, const timespec* timeout,
                bool shared) noexcept {
  const long operation = shared ? FUTEX_WAIT : FUTEX_WAIT_PRIVATE;
  return call(SYS_futex, word(address), operation, expected, word(timeout));
}

long futex_wake(volatile uint32_t* address, int count, bool shared) noexcept {
  return call(SYS_futex, word(address), shared ? FUTEX_WAKE : FUTEX_WAKE_PRIVATE, count);
}

long clone_call(unsigned long flags, void* stack_end, int (*body)(void*), void* argument) noexcept {
  // The child finds its function and argument on its own stack: it shares no register window with
  // this frame.
  auto stack = reinterpret_cast<uintptr_t>(stack_end) & ~uintptr_t{15};
  auto* slots = reinterpret_cast<uintptr_t*>(stack) - 2;
  slots[0] = reinterpret_cast<uintptr_t>(body);
  slots[1] = reinterpret_cast<uintptr_t>(argument);
  long result = SYS_clone;
  register long r10 __asm__("r10") = 0;
  register long r8 __asm__("r8") = 0;
  __asm__ volatile(
      "syscall\n\t"
      "test %%rax, %%rax\n\t"
      "jnz 1f\n\t"
      "xor %%ebp, %%ebp\n\t"  // The outermost frame: unwinders stop here.
      "pop %%rax\n\t"
      "pop %%rdi\n\t"
      "call *%%rax\n\t"
      "mov %%eax, %%edi\n\t"
      "mov %[exit], %%eax\n\t"
      "syscall\n\t"
      "hlt\n"
      "1:"
      : "+a"(result)
      : "D"(flags), "S"(slots), "d"(0L), "r"(r10), "r"(r8), [exit] "i"(SYS_exit)
      : "rcx", "r11", "memory");
  return result;
}

}  // namespace heapledger::base::sys
