// SPDX-License-Identifier: Apache-2.0
#include "interposer/base/env.h"

#include <errno.h>
#include <sys/auxv.h>

#include <atomic>
#include <cstdint>
#include <cstring>

// Exported by the dynamic linker (GLIBC_2.2.5) and set before it relocates anything.
extern "C" void* __libc_stack_end;  // NOLINT(readability-identifier-naming): the linker's name.

namespace heapledger::base {

namespace {

const char* const* stack_words() { return static_cast<const char* const*>(__libc_stack_end); }

// Past the null that ends a list of pointers.
const char* const* after_null(const char* const* words) {
  while (*words != nullptr) ++words;
  return words + 1;
}

}  // namespace

const char* const* program_arguments() noexcept { return stack_words() + 1; }

const char* const* env_entries() noexcept {
  // Found once, before main: programs shorten argv in place (GoogleTest does), which moves its
  // null. argc may not be used to skip argv: the linker, run as a program, drops its own arguments.
  static constinit std::atomic<const char* const*> found{nullptr};
  // Relaxed: every thread finds the same.
  const char* const* entries = found.load(std::memory_order_relaxed);
  if (entries == nullptr) {
    entries = after_null(program_arguments());
    found.store(entries, std::memory_order_relaxed);
  }
  return entries;
}

const char* env_value_if_named(const char* entry, const char* name) noexcept {
  const size_t length = std::strlen(name);
  return std::strncmp(entry, name, length) == 0 && entry[length] == '=' ? entry + length + 1
                                                                        : nullptr;
}

const char* env_lookup(const char* name) noexcept {
  for (const char* const* entry = env_entries(); *entry != nullptr; ++entry) {
    const char* value = env_value_if_named(*entry, name);
    if (value != nullptr) return value;
  }
  return nullptr;
}

// Not from behind the environment's end: that moves when the linker takes LD_PRELOAD and its kind
// out of a privileged program's, and when the program itself calls unsetenv.
unsigned long aux_value(unsigned long type) noexcept {
  const int saved = errno;
  const unsigned long value = getauxval(type);
  errno = saved;
  return value;
}

bool is_secure() noexcept { return aux_value(AT_SECURE) != 0; }

}  // namespace heapledger::base
