// SPDX-License-Identifier: Apache-2.0
//
// Raw system calls: what libc's wrappers do, without errno, cancellation points or anything a
// program could interpose.
//
// The shim cannot use libc's wrappers: some of them are the very functions it exports (mmap, brk),
// some set errno (free must not), and all of them may be called before libc is ready. Every
// function returns what the kernel returns: the result, or a negative error number in [-4095, -1]
// (see `failed`). The calls that can be interrupted say whether they retry EINTR. Thread safety: as
// the kernel's. Runs inside malloc: no allocation, no locks, errno kept.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

#include <cstddef>
#include <cstdint>

namespace heapledger::base::sys {

// The system call itself. r10 carries the fourth argument, since the `syscall` instruction
// overwrites rcx.
inline long call(long number, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0,
                 long f = 0) noexcept {
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  long result = number;
  __asm__ volatile("syscall"
                   : "+a"(result)
                   : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}

constexpr bool failed(long result) { return static_cast<unsigned long>(result) > -4096UL; }

inline long word(const volatile void* pointer) {
  return static_cast<long>(reinterpret_cast<uintptr_t>(pointer));
}
inline long word(size_t value) { return static_cast<long>(value); }

// ---- Memory. The pointers are `void*` cast from the result: test with failed() on the long form
// where it matters.

// Asks the kernel to move the break. Returns the break that holds afterwards: the old one where it
// refused; 0 asks.
inline uintptr_t brk(uintptr_t address) noexcept {
  return static_cast<uintptr_t>(call(SYS_brk, static_cast<long>(address)));
}
inline long mmap(void* address, size_t length, int protection, int flags, int fd = -1,
                 off_t offset = 0) noexcept {
  return call(SYS_mmap, word(address), word(length), protection, flags, fd, offset);
}
inline long munmap(void* address, size_t length) noexcept {
  return call(SYS_munmap, word(address), word(length));
}
inline long mremap(void* old_address, size_t old_length, size_t new_length, int flags,
                   void* new_address = nullptr) noexcept {
  return call(SYS_mremap, word(old_address), word(old_length), word(new_length), flags,
              word(new_address));
}
inline long madvise(void* address, size_t length, int advice) noexcept {
  return call(SYS_madvise, word(address), word(length), advice);
}
inline long mprotect(void* address, size_t length, int protection) noexcept {
  return call(SYS_mprotect, word(address), word(length), protection);
}

// ---- Threads and processes.

inline pid_t getpid() noexcept { return static_cast<pid_t>(call(SYS_getpid)); }
inline pid_t getppid() noexcept { return static_cast<pid_t>(call(SYS_getppid)); }
inline pid_t gettid() noexcept { return static_cast<pid_t>(call(SYS_gettid)); }
inline long setsid() noexcept { return call(SYS_setsid); }
inline long kill(pid_t pid, int signal) noexcept { return call(SYS_kill, pid, signal); }
inline long tgkill(pid_t group, pid_t thread, int signal) noexcept {
  return call(SYS_tgkill, group, thread, signal);
}
inline long wait4(pid_t pid, int* status, int options, rusage* usage = nullptr) noexcept {
  return call(SYS_wait4, pid, word(status), options, word(usage));
}
inline long execve(const char* path, const char* const* argv, const char* const* envp) noexcept {
  return call(SYS_execve, word(path), word(argv), word(envp));
}
inline long prctl(int option, long a = 0, long b = 0, long c = 0, long d = 0) noexcept {
  return call(SYS_prctl, option, a, b, c, d);
}
inline long sched_yield() noexcept { return call(SYS_sched_yield); }
[[noreturn]] inline void exit_group(int status) noexcept {
  for (;;) call(SYS_exit_group, status);
}

// Signal masks as the kernel has them: one 64-bit word.
inline long sigprocmask(int how, const uint64_t* set, uint64_t* old) noexcept {
  return call(SYS_rt_sigprocmask, how, word(set), word(old), sizeof(uint64_t));
}

// clone(2) onto a stack of its own: `body(argument)` runs in the child, and its result is the
// child's exit status. Returns the child's tid, or an error. With CLONE_VM | CLONE_VFORK this is a
// vfork that cannot damage the caller's frame; the parent sleeps until the child has called execve
// or ended. `stack_end` is the high end of the child's stack.
long clone_call(unsigned long flags, void* stack_end, int (*body)(void*), void* argument) noexcept;

// ---- Files and sockets.

inline long openat(int directory, const char* path, int flags, unsigned mode = 0) noexcept {
  return call(SYS_openat, directory, word(path), flags, mode);
}
inline long open(const char* path, int flags, unsigned mode = 0) noexcept {
  return openat(AT_FDCWD, path, flags, mode);
}
inline long close(int fd) noexcept { return call(SYS_close, fd); }
inline long fcntl(int fd, int command, long argument = 0) noexcept {
  return call(SYS_fcntl, fd, command, argument);
}
inline long fstat(int fd, struct stat* status) noexcept {
  return call(SYS_fstat, fd, word(status));
}
inline long ftruncate(int fd, off_t length) noexcept { return call(SYS_ftruncate, fd, length); }
inline long memfd_create(const char* name, unsigned flags) noexcept {
  return call(SYS_memfd_create, word(name), flags);
}
inline long readlink(const char* path, char* buffer, size_t size) noexcept {
  return call(SYS_readlink, word(path), word(buffer), word(size));
}
inline long socket(int domain, int type, int protocol) noexcept {
  return call(SYS_socket, domain, type, protocol);
}
inline long socketpair(int domain, int type, int protocol, int* pair) noexcept {
  return call(SYS_socketpair, domain, type, protocol, word(pair));
}
inline long dup3(int from, int to, int flags) noexcept { return call(SYS_dup3, from, to, flags); }
inline long pipe2(int* pair, int flags) noexcept { return call(SYS_pipe2, word(pair), flags); }

// These retry EINTR: the shim never wants to see it.
long read(int fd, void* buffer, size_t size) noexcept;
long write(int fd, const void* buffer, size_t size) noexcept;
long writev(int fd, const iovec* parts, int count) noexcept;
long connect(int fd, const sockaddr* address, socklen_t length) noexcept;
long sendmsg(int fd, const msghdr* message, int flags) noexcept;
long recvmsg(int fd, msghdr* message, int flags) noexcept;

// ---- Time and waiting.

inline long clock_gettime(clockid_t clock, timespec* time) noexcept {
  return call(SYS_clock_gettime, clock, word(time));
}
inline long getrusage(int who, rusage* usage) noexcept {
  return call(SYS_getrusage, who, word(usage));
}
inline long nanosleep(const timespec* duration) noexcept {
  return call(SYS_nanosleep, word(duration));
}

// Sleeps while `*address == expected`, at most `timeout` (relative; null: for ever). Returns 0,
// -EAGAIN, -ETIMEDOUT or -EINTR. `shared` is for words in memory that several processes map.
long futex_wait(const volatile uint32_t* address, uint32_t expected, const timespec* timeout,
                bool shared) noexcept;
// Wakes up to `count` sleepers; returns how many.
long futex_wake(volatile uint32_t* address, int count, bool shared) noexcept;

}  // namespace heapledger::base::sys
