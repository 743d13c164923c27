// SPDX-License-Identifier: Apache-2.0
// The futex calls that the collector needs, between processes (never private).
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <span>

namespace heapledger::collector {

using FutexWord = std::atomic<uint32_t>;

void futex_wake(FutexWord& word);  // All waiters.

struct FutexWait {
  FutexWord* word;
  uint32_t expected;
};

// Sleeps until one of the words is woken or no longer as expected, or the time is over. Where the
// kernel has no futex_waitv (before 5.16) it just sleeps for at most a millisecond.
void futex_wait_any(std::span<const FutexWait> waits, std::chrono::nanoseconds timeout);

}  // namespace heapledger::collector
