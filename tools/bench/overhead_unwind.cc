// SPDX-License-Identifier: Apache-2.0
// overhead_unwind: a library that tools/bench/overhead preloads to know what libunwind's own
// capture of each stack costs: malloc is glibc's, after a call of unw_backtrace whose result is
// thrown away. No event, no clock, no ring: the least that a recorder built on it must pay.
// Only malloc is hooked; the micro loads make no other allocations.
#include <dlfcn.h>

#include <array>
#include <cstddef>

extern "C" void* __libc_malloc(size_t size);

namespace {

constexpr int kDepth = 128;  // As heapledger's default.

using Backtrace = int (*)(void** frames, int count);
Backtrace backtrace_of_libunwind = nullptr;
__thread bool is_inside = false;

__attribute__((constructor)) void load() {
  is_inside = true;  // Loading allocates.
  void* library = dlopen("libunwind.so.8", RTLD_NOW | RTLD_LOCAL);
  if (library != nullptr) {
    backtrace_of_libunwind = reinterpret_cast<Backtrace>(dlsym(library, "unw_backtrace"));
  }
  is_inside = false;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) void* malloc(size_t size) {
  if (backtrace_of_libunwind != nullptr && !is_inside) {
    is_inside = true;
    std::array<void*, kDepth> frames;
    backtrace_of_libunwind(frames.data(), kDepth);
    is_inside = false;
  }
  return __libc_malloc(size);
}
