// SPDX-License-Identifier: Apache-2.0
//
// Arithmetic on addresses and sizes. Everything here is constexpr, takes powers of two where it
// says so, and cannot fail.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace heapledger::base {

inline constexpr size_t kPageBytes = 4096;  // x86-64: the only page size a mapping is rounded to.

// Rounds up to a multiple of `alignment`, a power of two. Wraps to a small value near SIZE_MAX:
// check sizes before.
constexpr size_t align_up(size_t value, size_t alignment) {
  return (value + alignment - 1) & ~(alignment - 1);
}
constexpr size_t align_down(size_t value, size_t alignment) { return value & ~(alignment - 1); }
constexpr bool is_aligned(size_t value, size_t alignment) { return (value & (alignment - 1)) == 0; }

inline uintptr_t address_of(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }
inline void* pointer_to(uintptr_t address) { return reinterpret_cast<void*>(address); }

// The product, or SIZE_MAX where it does not fit: callers refuse both by the same "too large" test.
constexpr size_t multiply_saturating(size_t a, size_t b) {
  size_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? SIZE_MAX : product;
}

// Keeps the compiler from moving memory accesses across; costs no instruction. Orders a thread
// against its own signal handlers, nothing else.
inline void compiler_barrier() { __atomic_signal_fence(__ATOMIC_SEQ_CST); }

}  // namespace heapledger::base
