// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/futex.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>

namespace heapledger::collector {
namespace {

constexpr size_t kWaitsMax = FUTEX_WAITV_MAX;

timespec after_now(std::chrono::nanoseconds timeout) {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  const int64_t ns = time.tv_nsec + timeout.count();
  time.tv_sec += ns / 1'000'000'000;
  time.tv_nsec = ns % 1'000'000'000;
  return time;
}

}  // namespace

void futex_wake(FutexWord& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void futex_wait_any(std::span<const FutexWait> waits, std::chrono::nanoseconds timeout) {
  std::array<futex_waitv, kWaitsMax> entries{};
  const size_t count = std::min(waits.size(), kWaitsMax);
  for (size_t i = 0; i < count; ++i) {
    entries[i].val = waits[i].expected;
    entries[i].uaddr = reinterpret_cast<uintptr_t>(waits[i].word);
    entries[i].flags = FUTEX_32;
  }
  // Those that did not fit are looked at a millisecond later.
  if (count < waits.size()) {
    timeout = std::min(timeout, std::chrono::nanoseconds(std::chrono::milliseconds(1)));
  }
  const timespec deadline = after_now(timeout);
  const long result =
      syscall(SYS_futex_waitv, entries.data(), count, 0, &deadline, CLOCK_MONOTONIC);
  if (result < 0 && errno != EAGAIN && errno != ETIMEDOUT && errno != EINTR) {
    const std::chrono::nanoseconds millisecond = std::chrono::milliseconds(1);
    const timespec pause{0, std::min(timeout, millisecond).count()};
    nanosleep(&pause, nullptr);
  }
}

}  // namespace heapledger::collector
