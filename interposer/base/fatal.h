// SPDX-License-Identifier: Apache-2.0
//
// The end of a program whose heap is broken, or of one that found a bug of ours.
//
// glibc ends a program that misuses malloc by one line on stderr (the bare message, e.g. "free():
// invalid pointer") and abort(). Users, test suites and crash handlers know these texts, so ours
// are the same to the byte. Before abort() a hook runs once: the recorder sets it, to leave a
// complete trace behind. Nothing here allocates or takes a lock of the heap.
#pragma once

namespace heapledger::base {

using FatalHook = void (*)(const char* message);

// Called by fatal() before abort(), at most once per process, possibly while locks of the heap are
// held: it must not allocate.
void set_fatal_hook(FatalHook hook) noexcept;

// Writes `message` and a newline to stderr, runs the hook, aborts. Thread safety: any thread; the
// first one runs the hook.
[[noreturn]] void fatal(const char* message) noexcept;

// Writes "heapledger: " message newline to stderr and returns: outcome "bad configuration", which
// never ends the program.
void warn(const char* message) noexcept;

}  // namespace heapledger::base

// A condition that only a bug of ours can break. Always on: for cheap tests.
#define HL_STRINGIFY_(x) #x
#define HL_STRINGIFY(x) HL_STRINGIFY_(x)
#define HL_CHECK(condition)                                \
  (__builtin_expect(!!(condition), 1)                      \
       ? static_cast<void>(0)                              \
       : ::heapledger::base::fatal("heapledger: " __FILE__ \
                                   ":" HL_STRINGIFY(__LINE__) ": check failed: " #condition))

// The same, only in debug builds (HL_DEBUG): for tests that walk.
#if defined(HL_DEBUG)
#define HL_DCHECK(condition) HL_CHECK(condition)
#else
#define HL_DCHECK(condition) static_cast<void>(sizeof(!(condition)))
#endif
