// SPDX-License-Identifier: Apache-2.0
#include "interposer/base/lock.h"

#include "interposer/base/sys.h"

namespace heapledger::base {

void Lock::lock_slow() noexcept {
  // A few looks, then sleep. Two threads that take turns at one arena are served best if one of
  // them sleeps while the other makes many calls: a long spin hands the lock, and its cache lines,
  // to and fro at each of them (tools/bench/allocator, handover: 85 ns a call with 64 looks, 50
  // with 4).
  for (int look = 0; look < 4; ++look) {
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
