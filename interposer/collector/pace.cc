// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/pace.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>

namespace heapledger::collector {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

// With so much more niceness than the program's, a tenth of a busy processor.
constexpr int kNice = 10;
// Whoever wakes on the processor waits for the end of such a slice at most. The least there is.
constexpr uint64_t kSliceNs = 100'000;

// As sched_setattr(2) has it; not all of glibc's and the kernel's headers do, or do together.
struct SchedAttributes {
  uint32_t size = sizeof(SchedAttributes);
  uint32_t policy = SCHED_BATCH;  // It never preempts one that wakes it.
  uint64_t flags = 0;
  int32_t nice = 0;
  uint32_t priority = 0;
  uint64_t runtime_ns = kSliceNs;  // The slice, from Linux 6.12 on; before it means nothing.
  uint64_t deadline_ns = 0;
  uint64_t period_ns = 0;
};

// Of the calling thread, as is all that these calls name a process.
void lower_priority() {
  SchedAttributes attributes;
  attributes.nice = std::min(getpriority(PRIO_PROCESS, 0) + kNice, 19);
  if (syscall(SYS_sched_setattr, 0, &attributes, 0) == 0) return;
  setpriority(PRIO_PROCESS, 0, attributes.nice);  // A seccomp filter may know only this one.
}

// Rests while the processors stay busy: each twice as long as the one before.
constexpr nanoseconds kRestMin = milliseconds(10);
constexpr nanoseconds kRestMax = milliseconds(100);
// Waiting for this part of the time means that there are others.
constexpr uint64_t kWaitShare = 8;

uint64_t cpu_now_ns() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

}  // namespace

// Once there is much, until there is half of that: else the end of a rest would be the next one's
// beginning, and the program would be disturbed at the worst rate of all.
bool Pace::presses(const Behind& behind) {
  const uint64_t much = behind.bytes_max / kMuchShare / (pressed_ ? 2 : 1);
  const int64_t old = kOldNs / (pressed_ ? 2 : 1);
  pressed_ = behind.bytes >= much || behind.age_ns >= old;
  return pressed_;
}

nanoseconds Pace::rest(const RunTimes& now, const Behind& behind) {
  const uint64_t run = now.run_ns - looked_at_.run_ns;
  const uint64_t waited = now.waited_ns - looked_at_.waited_ns;
  looked_at_ = now;
  const bool crowded = waited * kWaitShare >= run + waited;
  if (presses(behind) || !crowded) {
    next_rest_ = kRestMin;
    return nanoseconds(0);
  }
  const nanoseconds rest = std::max(next_rest_, kRestMin);
  next_rest_ = std::min(rest * 2, kRestMax);
  return rest;
}

void Patience::begin() {
  lower_priority();
  schedstat_ = UniqueFd(open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC));
}

std::optional<RunTimes> Patience::times() const {
  std::array<char, 128> text;
  const ssize_t bytes = pread(schedstat_.get(), text.data(), text.size(), 0);
  if (bytes <= 0) return std::nullopt;
  const char* const end = text.data() + bytes;
  RunTimes times;
  const auto [next, error] = std::from_chars(text.data(), end, times.run_ns);
  if (error != std::errc() || next == end) return std::nullopt;
  if (std::from_chars(next + 1, end, times.waited_ns).ec != std::errc()) return std::nullopt;
  return times;
}

void Patience::rest(const Behind& behind) {
  if (!schedstat_ || !pace_.is_due(cpu_now_ns())) return;
  const auto now = times();
  if (!now) return;
  const nanoseconds rest = pace_.rest(*now, behind);
  if (rest.count() == 0) return;
  std::unique_lock lock(mutex_);
  hurried_.wait_for(lock, rest, [this] { return hurries_; });
}

void Patience::hurry() {
  {
    const std::lock_guard lock(mutex_);
    hurries_ = true;
  }
  hurried_.notify_one();
}

}  // namespace heapledger::collector
