// SPDX-License-Identifier: Apache-2.0
#include "tools/heapledger/doctor_checks.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/perf_event.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "tools/heapledger/command_error.h"
#include "tools/heapledger/companions.h"
#include "tools/heapledger/descriptor.h"
#include "tools/heapledger/launch.h"
#include "tools/heapledger/narration.h"

namespace heapledger::front {

namespace {

namespace fs = std::filesystem;
using enum CheckState;

constexpr uint64_t kDiskBytesMin = uint64_t{1} << 30;

// Both newer than Debian 12's kernel headers: include/uapi/linux/fs.h (6.7), pidfd.h (6.13).
struct PagemapScan {
  uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
  uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
struct PageRegion {
  uint64_t start, end, categories;
};
constexpr unsigned long kPagemapScan = _IOWR('f', 16, PagemapScan);
constexpr uint64_t kPageIsPresent = 1 << 3;
struct PidfdInfo {
  uint64_t mask, cgroupid;
  uint32_t rest[12];
};
constexpr unsigned long kPidfdGetInfo = _IOWR(0xFF, 11, PidfdInfo);
constexpr uint64_t kPidfdInfoExit = 1 << 3;

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// Runs a command with its streams on /dev/null; returns what it wrote to stdout.
struct Output {
  int wait_status = -1;
  std::string text;
};
Output run_quietly(const std::vector<std::string>& command, const Environment& changes) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw system_error("pipe");
  Descriptor reader(ends[0]), writer(ends[1]);
  const pid_t pid = fork();
  if (pid == 0) {
    const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    dup2(null, STDIN_FILENO);
    dup2(writer.number(), STDOUT_FILENO);
    dup2(null, STDERR_FILENO);
    for (const auto& [name, value] : changes) setenv(name.c_str(), value.c_str(), 1);
    std::vector<char*> argv;
    for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    execv(argv[0], argv.data());
    _exit(kNotFound);
  }
  writer.reset();
  Output output;
  std::array<char, 4096> buffer{};
  for (ssize_t size = 0; (size = read(reader.number(), buffer.data(), buffer.size())) > 0;) {
    output.text.append(buffer.data(), static_cast<size_t>(size));
  }
  while (pid > 0 && waitpid(pid, &output.wait_status, 0) < 0 && errno == EINTR) {
  }
  return output;
}

bool can_count_faults(bool kernel_too) {
  perf_event_attr attributes{};
  attributes.type = PERF_TYPE_SOFTWARE;
  attributes.size = sizeof attributes;
  attributes.config = PERF_COUNT_SW_PAGE_FAULTS;
  attributes.sample_period = 1;
  attributes.sample_type = PERF_SAMPLE_IP | PERF_SAMPLE_ADDR | PERF_SAMPLE_TID | PERF_SAMPLE_TIME;
  attributes.disabled = 1;
  attributes.inherit = 1;
  attributes.exclude_kernel = kernel_too ? 0 : 1;
  attributes.exclude_hv = 1;
  const Descriptor counter(static_cast<int>(
      syscall(SYS_perf_event_open, &attributes, getpid(), 0, -1, PERF_FLAG_FD_CLOEXEC)));
  return counter.is_open();
}

Check check_faults() {
  const std::string level = first_line("/proc/sys/kernel/perf_event_paranoid");
  const std::string name = "page faults";
  if (can_count_faults(true)) {
    return {name, kOk, fmt::format("perf sees every fault (perf_event_paranoid {})", level), ""};
  }
  std::string collector;
  try {
    collector = find_collector();
  } catch (const CommandError&) {
  }
  if (!collector.empty() && getxattr(collector.c_str(), "security.capability", nullptr, 0) > 0) {
    return {name, kOk, "perf sees every fault (the collector carries a capability)", ""};
  }
  const std::string more = "sudo setcap cap_perfmon+ep " +
                           shell_word(collector.empty() ? "heapledger-collector" : collector);
  if (can_count_faults(false)) {
    return {name, kLimited,
            fmt::format("perf sees the program's own faults, not those made inside the kernel "
                        "(perf_event_paranoid {})",
                        level),
            more};
  }
  return {name, kLimited,
          fmt::format("perf is refused (perf_event_paranoid {}): getrusage counts, snapshots say "
                      "which blocks",
                      level),
          more};
}

// The command that would allow more, if there is one, by what the collector says stands in the way.
std::string tracepoints_command(const std::string& why) {
  if (geteuid() == 0) return "";  // Then it is a container's limit, or the kernel's.
  const std::string access = fmt::format("gid={},mode=750", getegid());
  if (why.find("not readable") != std::string::npos) {
    return "sudo mount -o remount," + access + " /sys/kernel/tracing";
  }
  if (why.find("not mounted") != std::string::npos) {
    return "sudo mount -t tracefs -o " + access + " nodev /sys/kernel/tracing";
  }
  if (why.find("perf_event_paranoid") != std::string::npos) {
    return "sudo sysctl kernel.perf_event_paranoid=2";
  }
  if (why.find("perf_event_mlock_kb") != std::string::npos) {
    return "sudo sysctl kernel.perf_event_mlock_kb=4096";
  }
  return "";
}

// Asked of the collector, which is who needs them, and may have other rights than we.
Check check_tracepoints() {
  const Output output = run_quietly({find_collector(), "--probe-syscalls"}, {});
  if (output.wait_status == 0) {
    return {"tracepoints", kOk, "usable: --syscalls kernel records every memory system call", ""};
  }
  const std::string why = output.text.substr(0, output.text.find('\n'));
  return {"tracepoints", kLimited,
          fmt::format("--syscalls kernel falls back to the wrappers: {}",
                      why.empty() ? "the collector does not start" : why),
          tracepoints_command(why)};
}

Check check_pagemap() {
  const Descriptor pagemap(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  volatile char page = 1;  // On the stack: surely present.
  const auto address = reinterpret_cast<uint64_t>(&page);
  const auto page_bytes = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  uint64_t entry = 0;
  const auto offset = static_cast<off_t>(address / page_bytes * sizeof entry);
  if (pread(pagemap.number(), &entry, sizeof entry, offset) != sizeof entry || entry >> 63 == 0) {
    return {"pagemap", kLimited, "refused: faults alone say what is resident", ""};
  }
  PageRegion found{};
  PagemapScan scan{};
  scan.size = sizeof scan;
  scan.start = address / page_bytes * page_bytes;
  scan.end = scan.start + page_bytes;
  scan.vec = reinterpret_cast<uint64_t>(&found);
  scan.vec_len = 1;
  scan.category_mask = kPageIsPresent;
  scan.return_mask = kPageIsPresent;
  const bool scans = ioctl(pagemap.number(), kPagemapScan, &scan) == 1;
  return {"pagemap", kOk,
          scans ? "readable, with PAGEMAP_SCAN" : "readable (no PAGEMAP_SCAN: slower)", ""};
}

Check check_exit_status() {
  const pid_t pid = fork();
  if (pid == 0) _exit(7);
  const Descriptor pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  waitpid(pid, nullptr, 0);
  PidfdInfo info{};
  info.mask = kPidfdInfoExit;
  if (ioctl(pidfd.number(), kPidfdGetInfo, &info) == 0 && (info.mask & kPidfdInfoExit) != 0) {
    return {"exit statuses", kOk, "of every process, by PIDFD_GET_INFO", ""};
  }
  return {"exit statuses", kLimited,
          "of the program and of processes that call exit; the kernel has no PIDFD_GET_INFO", ""};
}

Check check_memfd() {
  const Descriptor memory(memfd_create("heapledger-doctor", MFD_CLOEXEC));
  if (memory.is_open()) return {"shared memory", kOk, "memfd_create works", ""};
  return {"shared memory", kNo, fmt::format("memfd_create: {}", std::strerror(errno)), ""};
}

Check check_unwinder() {
  void* library = dlopen("libunwind.so.8", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return {"call stacks", kLimited,
            "libunwind is missing: stacks end at frames that only it can walk",
            "sudo apt-get install libunwind8"};
  }
  dlclose(library);
  return {"call stacks", kOk, "libunwind.so.8 is there", ""};
}

Check check_disk() {
  struct statvfs file_system {};
  if (statvfs(".", &file_system) != 0) return {"disk", kNo, std::strerror(errno), ""};
  const uint64_t bytes = uint64_t{file_system.f_bavail} * file_system.f_frsize;
  const std::string detail = bytes_text(bytes) + " free in this folder";
  if (access(".", W_OK) != 0) return {"disk", kLimited, "this folder is not writable (use -o)", ""};
  return {"disk", bytes >= kDiskBytesMin ? kOk : kLimited, detail, ""};
}

Check check_clock() {
  const std::string source =
      first_line("/sys/devices/system/clocksource/clocksource0/current_clocksource");
  std::ifstream cpu("/proc/cpuinfo");
  bool steady = false;
  for (std::string line; std::getline(cpu, line) && !steady;) {
    steady = line.starts_with("flags") && line.find(" nonstop_tsc") != std::string::npos &&
             line.find(" constant_tsc") != std::string::npos;
  }
  if (steady) return {"clock", kOk, "time stamps by the processor's counter (TSC)", ""};
  return {"clock", kLimited, "no steady TSC (clock source " + source + "): stamps cost more", ""};
}

Check check_preload() {
  const std::string shim = preloadable_path(find_shim());
  const Output output = run_quietly({"/bin/cat", "/proc/self/maps"},
                                    {{"LD_PRELOAD", shim}, {"HEAPLEDGER_RECORD", "off"}});
  if (output.wait_status == 0 && output.text.find("libheapledger.so") != std::string::npos) {
    return {"preload", kOk, "a program runs on our allocator", ""};
  }
  return {"preload", kNo, shim + " could not be loaded into /bin/cat", ""};
}

Check check_recording() {
  std::string folder = "/tmp/heapledger-doctor-XXXXXX";
  if (mkdtemp(folder.data()) == nullptr) return {"recording", kNo, std::strerror(errno), ""};
  const std::string trace = folder + "/trace.db";
  const Output output =
      run_quietly({own_path(), "record", "--quiet", "-o", trace, "/bin/true"}, {});
  std::error_code error;
  const auto size = fs::file_size(trace, error);
  fs::remove_all(folder);
  if (output.wait_status == 0 && !error && size > 0) {
    return {"recording", kOk, "/bin/true was recorded", ""};
  }
  return {"recording", kNo, "/bin/true could not be recorded",
          "heapledger record -o /tmp/true.db /bin/true"};
}

// A check that cannot even be tried has failed, with its reason.
Check guarded(const char* name, Check (*check)()) {
  try {
    return check();
  } catch (const std::exception& error) {
    return {name, kNo, error.what(), ""};
  }
}

}  // namespace

std::vector<Check> run_checks() {
  return {guarded("page faults", &check_faults),  guarded("tracepoints", &check_tracepoints),
          guarded("pagemap", &check_pagemap),     guarded("exit statuses", &check_exit_status),
          guarded("shared memory", &check_memfd), guarded("call stacks", &check_unwinder),
          guarded("clock", &check_clock),         guarded("disk", &check_disk),
          guarded("preload", &check_preload),     guarded("recording", &check_recording)};
}

}  // namespace heapledger::front
