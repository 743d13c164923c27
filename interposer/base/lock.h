// SPDX-License-Identifier: Apache-2.0
//
// A mutual-exclusion lock of four bytes that needs no libc: usable before constructors, inside
// malloc, across fork.
//
// States: 0 free, 1 held, 2 held and somebody may sleep. An uncontended lock or unlock is one
// atomic instruction and no system call. Not recursive. A forked child that inherits it held calls
// reset(). Constant initialisation: all zero is "free".
#pragma once

#include <cstdint>

namespace heapledger::base {

class Lock {
 public:
  constexpr Lock() = default;
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

  // Acquire: pairs with the release in unlock().
  void lock() noexcept {
    uint32_t expected = kFree;
    if (!__atomic_compare_exchange_n(&state_, &expected, kHeld, false, __ATOMIC_ACQUIRE,
                                     __ATOMIC_RELAXED)) {
      lock_slow();
    }
  }
  bool try_lock() noexcept {
    uint32_t expected = kFree;
    return __atomic_compare_exchange_n(&state_, &expected, kHeld, false, __ATOMIC_ACQUIRE,
                                       __ATOMIC_RELAXED);
  }
  // Release: pairs with the acquire in lock() and try_lock().
  void unlock() noexcept {
    if (__atomic_exchange_n(&state_, kFree, __ATOMIC_RELEASE) == kContended) wake();
  }
  // Only a hint, unless no other thread exists.
  bool is_held() const noexcept { return __atomic_load_n(&state_, __ATOMIC_RELAXED) != kFree; }
  // In a forked child, where the other threads that might wait or hold it do not exist.
  void reset() noexcept { __atomic_store_n(&state_, kFree, __ATOMIC_RELEASE); }

 private:
  static constexpr uint32_t kFree = 0;
  static constexpr uint32_t kHeld = 1;
  static constexpr uint32_t kContended = 2;

  void lock_slow() noexcept;
  void wake() noexcept;

  uint32_t state_ = kFree;
};

// Holds a lock for a scope.
class LockGuard {
 public:
  explicit LockGuard(Lock& lock) noexcept : lock_(lock) { lock_.lock(); }
  ~LockGuard() { lock_.unlock(); }
  LockGuard(const LockGuard&) = delete;
  LockGuard& operator=(const LockGuard&) = delete;

 private:
  Lock& lock_;
};

}  // namespace heapledger::base
