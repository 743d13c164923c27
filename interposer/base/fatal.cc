// SPDX-License-Identifier: Apache-2.0
#include "interposer/base/fatal.h"

#include <cstdlib>
#include <cstring>

#include "interposer/base/sys.h"

namespace heapledger::base {

namespace {

constinit FatalHook fatal_hook = nullptr;

// iovec wants a mutable pointer even for output.
iovec part(const char* text) { return {const_cast<char*>(text), std::strlen(text)}; }

}  // namespace

void set_fatal_hook(FatalHook hook) noexcept {
  // Release: pairs with the acquiring exchange in fatal(), so that what the hook needs is visible
  // to it.
  __atomic_store_n(&fatal_hook, hook, __ATOMIC_RELEASE);
}

void fatal(const char* message) noexcept {
  const iovec parts[] = {part(message), part("\n")};
  sys::writev(2, parts, 2);
  FatalHook hook = __atomic_exchange_n(&fatal_hook, nullptr, __ATOMIC_ACQ_REL);
  if (hook != nullptr) hook(message);
  std::abort();
}

void warn(const char* message) noexcept {
  const iovec parts[] = {part("heapledger: "), part(message), part("\n")};
  sys::writev(2, parts, 3);
}

}  // namespace heapledger::base
