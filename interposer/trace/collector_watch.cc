// SPDX-License-Identifier: Apache-2.0
#include "interposer/trace/collector_watch.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>

#include "interposer/base/sys.h"
#include "interposer/trace/ring_producer.h"

namespace heapledger::trace {
namespace {

namespace sys = base::sys;

uint64_t monotonic_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000U + static_cast<uint64_t>(now.tv_nsec);
}

// "/proc/PID/stat"; `path` has room for 32 bytes.
void stat_path(pid_t pid, char* path) {
  char digits[12];
  size_t count = 0;
  for (auto rest = static_cast<unsigned>(pid); count == 0 || rest != 0; rest /= 10) {
    digits[count++] = static_cast<char>('0' + rest % 10);
  }
  memcpy(path, "/proc/", 6);
  path += 6;
  while (count != 0) *path++ = digits[--count];
  memcpy(path, "/stat", 6);
}

}  // namespace

CollectorWatch::CollectorWatch(const schema::ControlPage& control,
                               const Patience& patience) noexcept
    : control_(control),
      patience_(patience),
      beat_(control.heartbeat.load(std::memory_order_relaxed)),
      since_ns_(monotonic_ns()) {}

bool CollectorWatch::gone() noexcept {
  // Acquire: pairs with the collector's store when it ends; nothing of it is used after.
  if (control_.recording.load(std::memory_order_acquire) == 0) return true;
  const uint32_t beat = control_.heartbeat.load(std::memory_order_relaxed);
  const uint64_t now_ns = monotonic_ns();
  if (beat != beat_) {
    beat_ = beat;
    since_ns_ = now_ns;
    return false;
  }
  const uint64_t silent_ns = now_ns - since_ns_;
  if (silent_ns >= patience_.silent_ns) return true;
  if (silent_ns < patience_.gone_ns || is_sandboxed()) return false;
  // In another pid namespace the number means nothing; then only the silence above counts, and
  // this comes too early at worst for a collector that could not count one loop in that time.
  return sys::kill(static_cast<pid_t>(control_.collector_pid), 0) == -ESRCH;
}

bool is_halted(pid_t pid) noexcept {
  if (pid <= 0 || is_sandboxed()) return false;
  char path[32];
  stat_path(pid, path);
  const long fd = sys::open(path, O_RDONLY | O_CLOEXEC);
  if (sys::failed(fd)) return false;
  char text[128];
  const long count = sys::read(static_cast<int>(fd), text, sizeof(text));
  sys::close(static_cast<int>(fd));
  // "PID (NAME) STATE ...", and a name may contain anything.
  const void* end = count > 0 ? memrchr(text, ')', static_cast<size_t>(count)) : nullptr;
  if (end == nullptr) return false;
  const char* state = static_cast<const char*>(end) + 2;
  return state < text + count && memchr("TtZX", *state, 4) != nullptr;
}

}  // namespace heapledger::trace
