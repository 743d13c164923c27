// SPDX-License-Identifier: Apache-2.0
// How the library comes to life, and what it needs of libc by name.
//
// start_once() runs at the first call of any exported function, usually one of the dynamic linker's
// own, before any constructor: it decides whether to record, joins or starts the collector and maps
// the region. The constructor does the rest: libunwind, fork handlers, the key that notices ends of
// threads, the exit handler, the environment for children. Thread safety: everything here happens
// before the program has a second thread. dlopen and dlsym are called in lifecycle.cc only.
#pragma once

#include <dlfcn.h>
#include <link.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>

namespace heapledger {

enum class Mode : uint8_t {
  kNew,       // No call has arrived yet.
  kStarting,  // start_once() is under way: calls from inside it are served, unrecorded.
  kPlain,     // The allocator alone.
  kTraced,
};
extern constinit std::atomic<Mode> g_mode;

void start_once() noexcept;

// True where calls are recorded. The first call of the program gets its answer after start_once().
inline bool traced() noexcept {
  // Relaxed: written before there are other threads.
  const Mode mode = g_mode.load(std::memory_order_relaxed);
  if (__builtin_expect(mode == Mode::kTraced, 1)) return true;
  if (mode != Mode::kNew) return false;
  start_once();
  return g_mode.load(std::memory_order_relaxed) == Mode::kTraced;
}

// Sees to it that this thread's end will be noticed; cheap once done.
void arm_thread_end() noexcept;

// The functions behind ours: the next definitions in the program's scope, normally libc's.
struct Real {
  void* (*mmap)(void*, size_t, int, int, int, off_t);
  int (*munmap)(void*, size_t);
  void* (*mremap)(void*, size_t, size_t, int, ...);
  int (*madvise)(void*, size_t, int);
  int (*mprotect)(void*, size_t, int);
  int (*mlockall)(int);
  int (*setrlimit)(__rlimit_resource_t, const rlimit*);
  int (*prlimit)(pid_t, __rlimit_resource, const rlimit*, rlimit*);
  int (*execve)(const char*, char* const*, char* const*);
  int (*execvpe)(const char*, char* const*, char* const*);
  int (*fexecve)(int, char* const*, char* const*);
  int (*execveat)(int, const char*, char* const*, char* const*, int);  // glibc 2.34.
  int (*posix_spawn)(pid_t*, const char*, const posix_spawn_file_actions_t*,
                     const posix_spawnattr_t*, char* const*, char* const*);
  int (*posix_spawnp)(pid_t*, const char*, const posix_spawn_file_actions_t*,
                      const posix_spawnattr_t*, char* const*, char* const*);
  int (*system)(const char*);
  FILE* (*popen)(const char*, const char*);
  void* (*dlopen)(const char*, int);
  void* (*dlmopen)(Lmid_t, const char*, int);
  int (*dlclose)(void*);
  int (*dl_iterate_phdr)(int (*)(dl_phdr_info*, size_t, void*), void*);
  void (*exit_now)(int);  // _exit
  void (*quick_exit)(int);
  int (*prctl)(int, ...);
  void* (*reallocarray)(void*, size_t, size_t);
  void (*free)(void*);
  size_t (*malloc_usable_size)(void*);
};
// Resolved at start; where no version is named, each is there in every libc this runs on.
const Real& real() noexcept;

// libstdc++'s function of this mangled name, wherever the program has it; null without one. For
// failure paths.
void* find_cxx_function(const char* mangled) noexcept;

// The program has a malloc of its own, which comes before ours: blocks that the program may hand to
// its own free must not be ours. Set by start_once().
extern constinit std::atomic<bool> g_other_malloc;

// A dlmopen was seen: pointers that are not ours may come from another namespace's libc.
extern constinit std::atomic<bool> g_other_allocators;

}  // namespace heapledger
