// SPDX-License-Identifier: Apache-2.0
//
// The environment as the kernel handed it to the process, and the auxiliary vector, readable at the
// very first malloc call.
//
// That call comes from the dynamic linker, before libc has set `environ`. On x86-64 the linker's
// `__libc_stack_end` points at argc; argv, a null, the environment, a null and the auxiliary vector
// follow. The environment is found at the first call, so make that one before main can change argv.
// Later putenv() calls are not seen, which is what glibc's own tunables do too. Thread
// safety: reads only. No allocation, no locks, errno kept. Cost: a linear walk.
#pragma once

#include <cstddef>

namespace heapledger::base {

// The value of NAME=value in the initial environment (the first such entry), or nullptr.
const char* env_lookup(const char* name) noexcept;

// The entries themselves, ending with nullptr, for rules that depend on their order.
const char* const* env_entries() noexcept;

// The program's arguments, ending with nullptr.
const char* const* program_arguments() noexcept;

// The value of AT_xxx, or 0 where the kernel gave none; errno kept.
unsigned long aux_value(unsigned long type) noexcept;

// True where the process runs with more rights than its caller: the environment must then not be
// trusted.
bool is_secure() noexcept;

// The value part of `entry` if it is NAME=value with this name, else nullptr.
const char* env_value_if_named(const char* entry, const char* name) noexcept;

}  // namespace heapledger::base
