// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/tracepoints.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "interposer/collector/unique_fd.h"

namespace heapledger::collector {
namespace {

// include/uapi/linux/mount.h; glibc has wrappers since 2.36, Ubuntu 22.04 has not.
constexpr unsigned kFsopenCloexec = 1;
constexpr unsigned kFsmountCloexec = 1;
constexpr unsigned kFsconfigCreate = 6;

constexpr const char* kMounts[] = {"/sys/kernel/tracing", "/sys/kernel/debug/tracing"};
constexpr const char* kEvents = "events/syscalls";

UniqueFd open_events(int root) {
  return UniqueFd(openat(root, kEvents, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

// A mount that no path leads to; gone with its descriptor.
UniqueFd mount_detached() {
  const UniqueFd context(static_cast<int>(syscall(SYS_fsopen, "tracefs", kFsopenCloexec)));
  if (!context) return {};
  if (syscall(SYS_fsconfig, context.get(), kFsconfigCreate, nullptr, nullptr, 0) != 0) return {};
  return UniqueFd(static_cast<int>(syscall(SYS_fsmount, context.get(), kFsmountCloexec, 0)));
}

UniqueFd find_events(std::string& why) {
  for (const char* mount : kMounts) {
    const UniqueFd root(open(mount, O_PATH | O_DIRECTORY | O_CLOEXEC));
    UniqueFd events = open_events(root.get());
    if (events) return events;
    // Where nothing is mounted the folder is empty; a folder that may not be entered is tracefs.
    if (errno == EACCES) {
      why = fmt::format("{} is not readable", mount);
      return {};
    }
  }
  const UniqueFd mount = mount_detached();
  if (!mount) {
    why = fmt::format("tracefs is not mounted, and may not be: {}", std::strerror(errno));
    return {};
  }
  UniqueFd events = open_events(mount.get());
  if (!events) why = "the kernel has no tracepoints of system calls";
  return events;
}

std::string read_text(int folder, const std::string& path) {
  const UniqueFd file(openat(folder, path.c_str(), O_RDONLY | O_CLOEXEC));
  std::string text;
  char part[4096];
  for (ssize_t size = 0; file && (size = read(file.get(), part, sizeof part)) > 0;) {
    text.append(part, static_cast<size_t>(size));
  }
  return text;
}

// The number behind `label` in a line; -1: there is none.
long number_behind(const std::string& line, const char* label) {
  const size_t at = line.find(label);
  if (at == line.npos) return -1;
  const char* digits = line.c_str() + at + std::strlen(label);
  char* end = nullptr;
  const long number = std::strtol(digits, &end, 10);
  return end == digits ? -1 : number;
}

}  // namespace

Tracepoint parse_format(const std::string& text) {
  Tracepoint point;
  bool behind_number = false;  // Arguments and result come after the system call's number.
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    if (line.starts_with("ID:")) {
      const long id = number_behind(line, "ID:");
      point.id = id > 0 && id <= UINT16_MAX ? static_cast<uint32_t>(id) : 0;
    }
    if (line.find("field:") == line.npos) continue;
    if (line.find("__syscall_nr;") != line.npos) {
      behind_number = true;
      continue;
    }
    if (!behind_number) continue;
    const long offset = number_behind(line, "offset:");
    const bool sane = offset >= 8 && offset <= 256 && number_behind(line, "size:") == 8;
    if (!sane || point.fields == kCallArguments) return {};
    point.offset[point.fields++] = static_cast<uint16_t>(offset);
  }
  return point.id == 0 ? Tracepoint{} : point;
}

std::optional<Tracepoints> find_tracepoints(std::string& why) {
  const UniqueFd events = find_events(why);
  if (!events) return std::nullopt;
  Tracepoints points;
  for (size_t i = 0; i < kMemoryCalls; ++i) {
    for (const bool enter : {true, false}) {
      const std::string name =
          fmt::format("sys_{}_{}", enter ? "enter" : "exit", schema::kSyscallNames[i]);
      Tracepoint& point = enter ? points[i].enter : points[i].exit;
      point = parse_format(read_text(events.get(), name + "/format"));
      if (point.fields != 0 && (enter || point.fields == 1)) continue;
      why = fmt::format("the kernel's tracepoint {} cannot be read", name);
      return std::nullopt;
    }
  }
  return points;
}

}  // namespace heapledger::collector
