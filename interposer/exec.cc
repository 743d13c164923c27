// SPDX-License-Identifier: Apache-2.0
// Announces that a process is about to become another program, so that a child which never says
// Hello (static, setuid) still gets its row. The calls go through to libc otherwise unchanged.
//
// An environment without the session gets it back (child_environment.h).
//
// May run in a vfork child, on the parent's memory and a small stack: no allocation, no large
// locals; the one buffer needed, for a path, is the thread's own. The execl forms gather their
// arguments on the stack, as libc's do.
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <unistd.h>

#include <cstring>

#include "interposer/base/sys.h"
#include "interposer/child_environment.h"
#include "interposer/lifecycle.h"
#include "interposer/trace/recorder.h"
#include "interposer/trace/ring_producer.h"

#define HL_EXPORT extern "C" __attribute__((visibility("default")))

extern "C" char** environ;

namespace {

using heapledger::ChildEnvironment;
using heapledger::real;
namespace trace = heapledger::trace;
namespace sys = heapledger::base::sys;

using Arguments = const char* const*;

// In a sandbox, which this call might end, 0: nothing is announced there.
uint32_t own_pid() { return trace::is_sandboxed() ? 0 : static_cast<uint32_t>(sys::getpid()); }

bool is_executable(const char* path) {
  return sys::call(SYS_faccessat, AT_FDCWD, sys::word(path), X_OK) == 0;
}

// Writes directory[0 .. length) '/' file to `path`; false where it does not fit.
bool join_path(const char* directory, size_t length, const char* file, char* path) {
  const size_t file_bytes = strlen(file) + 1;
  if (length + 1 + file_bytes > trace::kPathBytes) return false;
  memcpy(path, directory, length);
  if (length != 0) path[length++] = '/';  // An empty entry of PATH is the current directory.
  memcpy(path + length, file, file_bytes);
  return true;
}

// Where execvp would find `file`; `file` itself where it would not.
const char* search_path(const char* file, char* path) {
  if (strchr(file, '/') != nullptr) return file;
  const char* directories = "/bin:/usr/bin";  // libc's rule where PATH is unset.
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    if (strncmp(*entry, "PATH=", 5) == 0) directories = *entry + 5;
  }
  for (;;) {
    const char* end = strchrnul(directories, ':');
    const auto length = static_cast<size_t>(end - directories);
    if (join_path(directories, length, file, path) && is_executable(path)) return path;
    if (*end == 0) return file;
    directories = end + 1;
  }
}

// How the program that is about to run is named.
enum class Named : uint8_t { kByPath, kByFile, kByDescriptor };

const char* descriptor_path(int fd, char* path) {
  char link[32] = "/proc/self/fd/";
  size_t end = strlen(link);
  char digits[12];
  size_t count = 0;
  for (unsigned rest = fd < 0 ? 0 : static_cast<unsigned>(fd); count == 0 || rest != 0;
       rest /= 10) {
    digits[count++] = static_cast<char>('0' + rest % 10);
  }
  while (count != 0) link[end++] = digits[--count];
  link[end] = 0;
  const long length = sys::readlink(link, path, trace::kPathBytes - 1);
  if (sys::failed(length)) return "";
  path[length] = 0;
  return path;
}

void announce(Named named, const char* file, int fd, Arguments argv, uint32_t pid,
              const void* caller) {
  if (!heapledger::traced() || trace::is_sandboxed()) return;
  trace::CallScope scope(caller);
  char* path = scope.path_buffer();
  if (path == nullptr) return trace::count_lost_event();
  const char* found = file;
  if (named == Named::kByFile) found = search_path(file, path);
  if (named == Named::kByDescriptor) found = descriptor_path(fd, path);
  scope.on_exec(pid, found, argv);
}

// Only a failed exec returns.
int failed_exec(int result, const void* caller) {
  if (heapledger::traced() && !trace::is_sandboxed()) {
    const int saved_errno = errno;
    trace::CallScope scope(caller);
    scope.on_exec(own_pid(), nullptr, nullptr);
    errno = saved_errno;
  }
  return result;
}

void note_left_out(const ChildEnvironment& environment, const void* caller) {
  if (!environment.leaves_library_out() || !heapledger::traced()) return;
  trace::CallScope scope(caller);
  scope.on_text(heapledger::schema::EventKind::kNote,
                trace::is_sandboxed()
                    ? "a program was started behind a seccomp filter: not recorded"
                    : "a program was started in a root where libheapledger.so is not: not recorded",
                true);
}

// Declares `envp`: what the new program gets for `given`, on this function's own stack.
#define HL_ENVIRONMENT(envp, given, program, caller)                                    \
  char* const* envp = given;                                                            \
  const ChildEnvironment envp##_change(given, program);                                 \
  note_left_out(envp##_change, caller);                                                 \
  if (envp##_change.bytes() != 0) {                                                     \
    envp = envp##_change.build(__builtin_alloca_with_align(envp##_change.bytes(), 64)); \
  }

int run(const char* path, char* const* argv, char* const* given, const void* caller) {
  HL_ENVIRONMENT(envp, given, path, caller);
  announce(Named::kByPath, path, -1, argv, own_pid(), caller);
  return failed_exec(real().execve(path, argv, envp), caller);
}

int run_file(const char* file, char* const* argv, char* const* given, const void* caller) {
  HL_ENVIRONMENT(envp, given, file, caller);
  announce(Named::kByFile, file, -1, argv, own_pid(), caller);
  return failed_exec(real().execvpe(file, argv, envp), caller);
}

size_t count_arguments(va_list arguments) {
  size_t count = 1;
  while (va_arg(arguments, char*) != nullptr) ++count;
  return count;
}

void copy_arguments(char** argv, const char* first, size_t count, va_list arguments) {
  argv[0] = const_cast<char*>(first);
  for (size_t i = 1; i <= count; ++i) argv[i] = va_arg(arguments, char*);
}

}  // namespace

HL_EXPORT int execve(const char* path, char* const argv[], char* const envp[]) noexcept {
  return run(path, argv, envp, __builtin_return_address(0));
}
HL_EXPORT int execv(const char* path, char* const argv[]) noexcept {
  return run(path, argv, environ, __builtin_return_address(0));
}
HL_EXPORT int execvp(const char* file, char* const argv[]) noexcept {
  return run_file(file, argv, environ, __builtin_return_address(0));
}
HL_EXPORT int execvpe(const char* file, char* const argv[], char* const envp[]) noexcept {
  return run_file(file, argv, envp, __builtin_return_address(0));
}

HL_EXPORT int fexecve(int fd, char* const argv[], char* const given[]) noexcept {
  const void* caller = __builtin_return_address(0);
  HL_ENVIRONMENT(envp, given, "", caller);
  announce(Named::kByDescriptor, nullptr, fd, argv, own_pid(), caller);
  return failed_exec(real().fexecve(fd, argv, envp), caller);
}

// A path that is relative to a directory is announced as it was written.
HL_EXPORT int execveat(int fd, const char* path, char* const argv[], char* const given[],
                       int flags) noexcept {
  const void* caller = __builtin_return_address(0);
  HL_ENVIRONMENT(envp, given, path, caller);
  announce(path[0] == 0 ? Named::kByDescriptor : Named::kByPath, path, fd, argv, own_pid(), caller);
  return failed_exec(real().execveat(fd, path, argv, envp, flags), caller);
}

// argv[0] is `first`; the list ends with a null, after which execle has the environment.
#define HL_GATHER(argv, first)                                                      \
  va_list arguments;                                                                \
  va_start(arguments, first);                                                       \
  const size_t count = count_arguments(arguments);                                  \
  va_end(arguments);                                                                \
  auto** argv = static_cast<char**>(__builtin_alloca((count + 1) * sizeof(char*))); \
  va_start(arguments, first);                                                       \
  copy_arguments(argv, first, count, arguments)

HL_EXPORT int execl(const char* path, const char* first, ...) noexcept {
  HL_GATHER(argv, first);
  va_end(arguments);
  return run(path, argv, environ, __builtin_return_address(0));
}
HL_EXPORT int execlp(const char* file, const char* first, ...) noexcept {
  HL_GATHER(argv, first);
  va_end(arguments);
  return run_file(file, argv, environ, __builtin_return_address(0));
}
HL_EXPORT int execle(const char* path, const char* first, ...) noexcept {
  HL_GATHER(argv, first);
  char* const* envp = va_arg(arguments, char* const*);
  va_end(arguments);
  return run(path, argv, envp, __builtin_return_address(0));
}

// The child's pid is known only now; its own Hello may have come first.
HL_EXPORT int posix_spawn(pid_t* pid, const char* path, const posix_spawn_file_actions_t* actions,
                          const posix_spawnattr_t* attributes, char* const argv[],
                          char* const given[]) {
  const void* caller = __builtin_return_address(0);
  HL_ENVIRONMENT(envp, given, path, caller);
  pid_t child = 0;
  const int result = real().posix_spawn(&child, path, actions, attributes, argv, envp);
  if (result != 0) return result;
  if (pid != nullptr) *pid = child;
  announce(Named::kByPath, path, -1, argv, static_cast<uint32_t>(child), caller);
  return 0;
}
HL_EXPORT int posix_spawnp(pid_t* pid, const char* file, const posix_spawn_file_actions_t* actions,
                           const posix_spawnattr_t* attributes, char* const argv[],
                           char* const given[]) {
  const void* caller = __builtin_return_address(0);
  HL_ENVIRONMENT(envp, given, file, caller);
  pid_t child = 0;
  const int result = real().posix_spawnp(&child, file, actions, attributes, argv, envp);
  if (result != 0) return result;
  if (pid != nullptr) *pid = child;
  announce(Named::kByFile, file, -1, argv, static_cast<uint32_t>(child), caller);
  return 0;
}
