// SPDX-License-Identifier: Apache-2.0
// overhead_probe: a library that tools/bench/overhead preloads into each program, under every
// recorder alike. As the program exits it appends one line to the file OVERHEAD_PROBE,
// "exe exit_ns cpu_ns rss_peak_kib minor_faults": the clock's time (CLOCK_MONOTONIC), the processor
// time of the program itself, its own peak RSS and page faults. What runs beside it (a launcher, an
// interpreter) is told from it by the executable. It calls nothing of malloc: the program's calls
// stay what they were.
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace {

unsigned long long now_ns(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<unsigned long long>(now.tv_sec) * 1'000'000'000 +
         static_cast<unsigned long long>(now.tv_nsec);
}

// VmHWM: unlike getrusage's figure it begins anew with each executable.
unsigned long rss_peak_kib() {
  std::array<char, 4096> text{};
  const int file = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  const ssize_t length = read(file, text.data(), text.size() - 1);
  close(file);
  const char* line = length > 0 ? std::strstr(text.data(), "VmHWM:") : nullptr;
  return line == nullptr ? 0 : std::strtoul(line + std::strlen("VmHWM:"), nullptr, 10);
}

__attribute__((destructor)) void report() {
  const char* path = std::getenv("OVERHEAD_PROBE");
  if (path == nullptr) return;
  const unsigned long long exit_ns = now_ns(CLOCK_MONOTONIC);
  std::array<char, 4096> exe{};
  if (readlink("/proc/self/exe", exe.data(), exe.size() - 1) < 0) return;
  std::array<char, 4400> line{};
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const int length =
      std::snprintf(line.data(), line.size(), "%s %llu %llu %lu %ld\n", exe.data(), exit_ns,
                    now_ns(CLOCK_PROCESS_CPUTIME_ID), rss_peak_kib(), usage.ru_minflt);
  const int file = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) return;
  // One write: lines of two processes do not mix. A line that is missing is the reader's to notice.
  if (write(file, line.data(), static_cast<size_t>(length)) != length) exe[0] = 0;
  close(file);
}

}  // namespace
