// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector_start.h"

#include <errno.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <cstring>

#include "interposer/base/env.h"
#include "interposer/base/sys.h"
#include "interposer/trace/own_calls.h"

namespace heapledger {
namespace {

namespace sys = base::sys;

constexpr size_t kPathMax = 4096;
constexpr size_t kStackBytes = 32 * 1024;
constexpr timeval kStartLimit = {20, 0};
constexpr int kSignals = 64;

// Where the collector lies, seen from the folder of this library: a build tree, an installation, a
// multi-arch installation.
constexpr const char* kPlaces[] = {
    "/heapledger-collector",
    "/../libexec/heapledger/heapledger-collector",
    "/../../libexec/heapledger/heapledger-collector",
    "/../bin/heapledger-collector",
    "/../../bin/heapledger-collector",
};

// Scratch memory for the whole start, mapped and unmapped again.
struct Workspace {
  char path[kPathMax];
  char maps[64 * 1024];
  alignas(16) std::byte first_stack[kStackBytes];
  alignas(16) std::byte second_stack[kStackBytes];
  char number[12];
  const char* argv[5];
  int control_fd;
  const char** envp;
};

// The path of the file that contains `address`, from one line of /proc/self/maps:
// "start-end perms offset dev inode   path".
bool path_in_line(const char* line, const char* end, uintptr_t address, char* path) {
  uintptr_t bounds[2] = {0, 0};
  const char* at = line;
  for (uintptr_t& bound : bounds) {
    for (; at < end && *at != '-' && *at != ' '; ++at) {
      const int digit = *at <= '9' ? *at - '0' : *at - 'a' + 10;
      bound = bound * 16 + static_cast<uintptr_t>(digit);
    }
    ++at;
  }
  if (address < bounds[0] || address >= bounds[1]) return false;
  const auto* slash = static_cast<const char*>(memchr(line, '/', static_cast<size_t>(end - line)));
  if (slash == nullptr || static_cast<size_t>(end - slash) >= kPathMax) return false;
  memcpy(path, slash, static_cast<size_t>(end - slash));
  path[end - slash] = 0;
  return true;
}

bool own_path(Workspace* space) {
  const long fd = sys::open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (sys::failed(fd)) return false;
  const auto address = reinterpret_cast<uintptr_t>(&start_collector);
  size_t held = 0;
  bool found = false;
  while (!found) {
    const long count =
        sys::read(static_cast<int>(fd), space->maps + held, sizeof(space->maps) - held);
    if (count <= 0) break;
    held += static_cast<size_t>(count);
    char* line = space->maps;
    char* const end = space->maps + held;
    while (auto* newline =
               static_cast<char*>(memchr(line, '\n', static_cast<size_t>(end - line)))) {
      if ((found = path_in_line(line, newline, address, space->path))) break;
      line = newline + 1;
    }
    held = static_cast<size_t>(end - line);
    memmove(space->maps, line, held);
  }
  sys::close(static_cast<int>(fd));
  return found;
}

bool is_executable(const char* path) {
  return sys::call(SYS_faccessat, AT_FDCWD, sys::word(path), 1 /* X_OK */) == 0;
}

bool find_collector(Workspace* space) {
  const char* named = base::env_lookup("HEAPLEDGER_COLLECTOR");
  if (named != nullptr) {
    const size_t length = strlen(named);
    if (length >= kPathMax) return false;
    memcpy(space->path, named, length + 1);
    return is_executable(space->path);
  }
  if (!own_path(space)) return false;
  char* slash = strrchr(space->path, '/');
  for (const char* place : kPlaces) {
    const size_t length = strlen(place) + 1;
    if (slash + length > space->path + kPathMax) continue;
    memcpy(slash, place, length);
    if (is_executable(space->path)) return true;
  }
  return false;
}

// The environment without what would load this library into the collector.
void copy_environment(Workspace* space) {
  const char** out = space->envp;
  for (const char* const* entry = base::env_entries(); *entry != nullptr; ++entry) {
    if (base::env_value_if_named(*entry, "LD_PRELOAD") == nullptr) *out++ = *entry;
  }
  *out = nullptr;
}

// In the grandchild, on the program's memory: becomes the collector. Raw system calls only.
int become_collector(void* argument) {
  const auto* space = static_cast<const Workspace*>(argument);
  const long null = sys::open("/dev/null", O_RDWR | O_CLOEXEC);
  if (!sys::failed(null)) {
    for (int fd = 0; fd <= 2; ++fd) {
      if (fd == null) {
        sys::fcntl(fd, F_SETFD, 0);
      } else {
        sys::dup3(static_cast<int>(null), fd, 0);
      }
    }
  }
  sys::fcntl(space->control_fd, F_SETFD, 0);
  struct {
    uint64_t handler, flags, restorer, mask;
  } normal = {};
  for (int signal = 1; signal <= kSignals; ++signal) {
    sys::call(SYS_rt_sigaction, signal, sys::word(&normal), 0, sizeof(uint64_t));
  }
  const uint64_t none = 0;
  sys::sigprocmask(SIG_SETMASK, &none, nullptr);
  sys::execve(space->path, space->argv, space->envp);
  return 127;
}

// In the child: leaves the session and forks again, so that the collector is nobody's child.
int leave_session(void* argument) {
  auto* space = static_cast<Workspace*>(argument);
  sys::setsid();
  return sys::failed(sys::clone_call(CLONE_VM | CLONE_VFORK, space->second_stack + kStackBytes,
                                     become_collector, space))
             ? 127
             : 0;
}

void format_number(int value, char* text) {
  char digits[12];
  size_t count = 0;
  for (auto rest = static_cast<unsigned>(value); count == 0 || rest != 0; rest /= 10) {
    digits[count++] = static_cast<char>('0' + rest % 10);
  }
  while (count != 0) *text++ = digits[--count];
  *text = 0;
}

// Waits for "ready NAME" or "error TEXT".
const char* read_answer(int fd, char* session, size_t size) {
  sys::call(SYS_setsockopt, fd, SOL_SOCKET, SO_RCVTIMEO, sys::word(&kStartLimit),
            sizeof(kStartLimit));
  const long count = sys::read(fd, session, size - 1);
  if (count <= 6) return "the collector could not be started";
  session[count] = 0;
  if (strncmp(session, "error ", 6) == 0) return session + 6;
  if (strncmp(session, "ready ", 6) != 0) return "the collector gave no answer";
  memmove(session, session + 6, static_cast<size_t>(count) - 5);
  return nullptr;
}

const char* launch(Workspace* space, char* session, size_t size) {
  if (!find_collector(space)) return "heapledger-collector is not beside libheapledger.so";
  copy_environment(space);
  int pair[2];
  if (sys::failed(sys::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))) {
    return "no socket";
  }
  // Above 2, which the collector's /dev/null takes.
  const long control = sys::fcntl(pair[1], F_DUPFD_CLOEXEC, 3);
  sys::close(pair[1]);
  const char* why = "no descriptor";
  if (!sys::failed(control)) {
    space->control_fd = static_cast<int>(control);
    format_number(space->control_fd, space->number);
    space->argv[0] = "heapledger-collector";
    space->argv[1] = "--plain";
    space->argv[2] = "--control-fd";
    space->argv[3] = space->number;
    space->argv[4] = nullptr;
    const long child = sys::clone_call(CLONE_VM | CLONE_VFORK, space->first_stack + kStackBytes,
                                       leave_session, space);
    sys::close(space->control_fd);
    if (!sys::failed(child)) {
      int status = 0;
      while (sys::wait4(static_cast<pid_t>(child), &status, __WALL) == -EINTR) {
      }
      why = read_answer(pair[0], session, size);
    }
  }
  sys::close(pair[0]);
  return why;
}

}  // namespace

const char* start_collector(char* session, size_t size) noexcept {
  size_t entries = 1;
  for (const char* const* entry = base::env_entries(); *entry != nullptr; ++entry) ++entries;
  const size_t bytes = sizeof(Workspace) + entries * sizeof(char*);
  const long memory =
      trace::own_mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  if (sys::failed(memory)) return "no memory";
  auto* space = reinterpret_cast<Workspace*>(memory);
  space->envp = reinterpret_cast<const char**>(space + 1);
  const char* why = launch(space, session, size);
  trace::own_munmap(space, bytes);
  return why;
}

}  // namespace heapledger
