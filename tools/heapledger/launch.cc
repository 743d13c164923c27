// SPDX-License-Identifier: Apache-2.0
#include "tools/heapledger/launch.h"

#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <functional>

#include "schema/shared_region.h"
#include "tools/heapledger/command_error.h"

namespace heapledger::front {

namespace {

namespace fs = std::filesystem;

constexpr size_t kSessionBytesMax = 256;

[[noreturn]] void become_program(int socket, const std::vector<std::string>& command,
                                 const Environment& changes, const Signals& signals, pid_t parent) {
  // A program whose pid the user holds would die by SIGKILL; ours must, when `record` does.
  prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
  if (getppid() != parent) _exit(kFailure);
  char session[kSessionBytesMax] = {};
  const ssize_t size = recv(socket, session, sizeof session - 1, 0);
  if (size <= 0) _exit(kFailure);  // `record` gave up.
  for (const auto& [variable, value] : changes) {
    if (value.empty()) {
      unsetenv(variable.c_str());
    } else {
      setenv(variable.c_str(), value.c_str(), 1);
    }
  }
  setenv(schema::kSessionVariable, session, 1);
  std::vector<char*> arguments;
  for (const std::string& argument : command) {
    arguments.push_back(const_cast<char*>(argument.c_str()));
  }
  arguments.push_back(nullptr);
  signals.restore_in_child();
  execvp(arguments[0], arguments.data());
  const int error = errno;
  send(socket, &error, sizeof error, MSG_NOSIGNAL);
  _exit(error == ENOENT ? kNotFound : kCannotExecute);
}

}  // namespace

Launch::Launch(const std::vector<std::string>& command, const Environment& changes,
               const Signals& signals) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
    throw system_error("socketpair");
  socket_ = Descriptor(ends[0]);
  const Descriptor other(ends[1]);
  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ < 0) throw system_error("fork");
  if (pid_ == 0) {
    socket_.reset();
    become_program(other.number(), command, changes, signals, parent);
  }
}

void Launch::go(const std::string& session) {
  send(socket_.number(), session.data(), session.size(), MSG_NOSIGNAL);
}

int Launch::outcome() {
  int error = 0;
  const ssize_t size = recv(socket_.number(), &error, sizeof error, 0);
  socket_.reset();
  return size == static_cast<ssize_t>(sizeof error) ? error : 0;
}

// A folder that is ours alone: others could otherwise put a library of theirs in its place.
static fs::path private_folder() {
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  const std::string base = runtime != nullptr && *runtime == '/' &&
                                   std::string(runtime).find_first_of(" :$") == std::string::npos
                               ? runtime
                               : "/tmp";
  const fs::path folder = base + "/heapledger-" + std::to_string(geteuid());
  struct stat status {};
  if (mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) throw system_error(folder.string());
  if (lstat(folder.c_str(), &status) != 0) throw system_error(folder.string());
  if (!S_ISDIR(status.st_mode) || status.st_uid != geteuid() || (status.st_mode & 077) != 0) {
    throw CommandError(folder.string(), "is not a private folder of this user");
  }
  return folder;
}

std::string preloadable_path(const std::string& library) {
  if (library.find_first_of(" :$\t\n") == std::string::npos) return library;
  // One link per library path: recordings by several builds do not disturb each other, and a link
  // may stay, as processes that are still recorded may exec at any time.
  const fs::path folder = private_folder() / std::to_string(std::hash<std::string>{}(library));
  const fs::path link = folder / fs::path(library).filename();
  std::error_code error;
  fs::create_directory(folder, error);
  if (fs::read_symlink(link, error) != library) {
    fs::remove(link, error);
    fs::create_symlink(library, link, error);
    if (error) throw CommandError(link.string(), error.message());
  }
  return link.string();
}

}  // namespace heapledger::front
