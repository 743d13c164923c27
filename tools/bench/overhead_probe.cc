// SPDX-License-Identifier: Apache-2.0
// overhead_probe: a library that tools/bench/overhead preloads into each program, under every
// recorder alike. As the program exits it appends one line to the file OVERHEAD_PROBE,
// "exe exit_ns cpu_ns rss_peak_kib minor_faults": the clock's time (CLOCK_MONOTONIC), the processor
// time of the program itself, its own peak RSS and page faults. What runs beside it (a launcher, an
// interpreter) is told from it by the executable. It calls nothing of malloc: the program's calls
// stay what they were.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>

namespace {

unsigned long long now_ns(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<unsigned long long>(now.tv_sec) * 1'000'000'000 +
         static_cast<unsigned long long>(now.tv_nsec);
}

// Without libc: each of its functions that the program has not called may bring 64 KiB of its code
// in, which would be in the figures.
long raw_call(long number, long first, long second, long third) {
  long result = number;
  asm volatile("syscall"
               : "+a"(result)
               : "D"(first), "S"(second), "d"(third)
               : "rcx", "r11", "memory");
  return result;
}

// VmHWM: unlike getrusage's figure it begins anew with each executable.
unsigned long rss_peak_kib() {
  static constexpr char kFile[] = "/proc/self/status";
  static constexpr char kName[] = "VmHWM:";
  char text[4096];
  const long file = raw_call(SYS_open, reinterpret_cast<long>(kFile), O_RDONLY | O_CLOEXEC, 0);
  if (file < 0) return 0;
  const long length = raw_call(SYS_read, file, reinterpret_cast<long>(text), sizeof text - 1);
  raw_call(SYS_close, file, 0, 0);
  unsigned long kib = 0;
  size_t matched = 0;
  for (long i = 0; i < length; ++i) {
    if (matched < sizeof kName - 1) {
      matched = text[i] == kName[matched] ? matched + 1 : 0;
    } else if (text[i] >= '0' && text[i] <= '9') {
      kib = kib * 10 + static_cast<unsigned long>(text[i] - '0');
    } else if (kib != 0) {
      break;
    }
  }
  return kib;
}

__attribute__((destructor)) void report() {
  // First: what follows is the probe's own.
  rusage usage{};
  raw_call(SYS_getrusage, RUSAGE_SELF, reinterpret_cast<long>(&usage), 0);
  const unsigned long peak_kib = rss_peak_kib();
  const char* path = std::getenv("OVERHEAD_PROBE");
  if (path == nullptr) return;
  const unsigned long long exit_ns = now_ns(CLOCK_MONOTONIC);
  std::array<char, 4096> exe{};
  if (readlink("/proc/self/exe", exe.data(), exe.size() - 1) < 0) return;
  std::array<char, 4400> line{};
  const int length =
      std::snprintf(line.data(), line.size(), "%s %llu %llu %lu %ld\n", exe.data(), exit_ns,
                    now_ns(CLOCK_PROCESS_CPUTIME_ID), peak_kib, usage.ru_minflt);
  const int file = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) return;
  // One write: lines of two processes do not mix. A line that is missing is the reader's to notice.
  if (write(file, line.data(), static_cast<size_t>(length)) != length) exe[0] = 0;
  close(file);
}

}  // namespace
