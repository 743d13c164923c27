// SPDX-License-Identifier: Apache-2.0
#include "interposer/base/lock.h"

#include "interposer/base/sys.h"

namespace heapledger::base {

void Lock::lock_slow() noexcept {
  // Holders leave within a fraction of a microsecond unless they are inside a system call: a short
  // spin is worth a sleep.
  for (int spin = 0; spin < 64; ++spin) {
    if (__atomic_load_n(&state_, __ATOMIC_RELAXED) == kFree && try_lock()) return;
    __builtin_ia32_pause();
  }
  // Taking it as "contended" is right also for the last waiter: it costs one wake that finds
  // nobody.
  while (__atomic_exchange_n(&state_, kContended, __ATOMIC_ACQUIRE) != kFree) {
    sys::futex_wait(&state_, kContended, nullptr, false);
  }
}

void Lock::wake() noexcept { sys::futex_wake(&state_, 1, false); }

}  // namespace heapledger::base
