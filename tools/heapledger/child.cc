// SPDX-License-Identifier: Apache-2.0
#include "tools/heapledger/child.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tools/heapledger/command_error.h"
#include "tools/heapledger/descriptor.h"

namespace heapledger::front {

namespace {

using Words = std::vector<std::string>;

struct Pipe {
  Descriptor read_end, write_end;

  void open() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) throw system_error("pipe");
    read_end = Descriptor(ends[0]);
    write_end = Descriptor(ends[1]);
  }
  void read_all(std::string& text) const {
    char buffer[4096];
    for (;;) {
      const ssize_t got = read(read_end.number(), buffer, sizeof buffer);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return;
      text.append(buffer, static_cast<size_t>(got));
    }
  }
};

int64_t now_ns() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

int64_t ns_of(const timeval& time) {
  return (int64_t{time.tv_sec} * 1'000'000 + time.tv_usec) * 1000;
}

}  // namespace

int run_and_wait(const Words& command, ChildOutput output) {
  const TerminalSignals signals;
  const pid_t pid = fork();
  if (pid < 0) throw system_error("fork");
  if (pid == 0) {
    signals.give_back();
    set_streams(output);
    execv(command[0].c_str(), pointers(command).data());
    _exit(kNotFound);
  }
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

std::string output_of(const Words& command) {
  Words environment;
  for (char** entry = environ; *entry != nullptr; ++entry) environment.emplace_back(*entry);
  std::string text;
  ChildOutput output;
  output.show_stderr = true;
  output.text = &text;
  const PlainRun run = run_plain(command, environment, output);
  if (!WIFEXITED(run.status) || WEXITSTATUS(run.status) != 0) {
    if (WIFEXITED(run.status)) throw CommandError("", "", WEXITSTATUS(run.status));
    throw CommandError(command[0], fmt::format("killed by signal {}", WTERMSIG(run.status)));
  }
  return text;
}

// Spawned, not forked: a forked child would make page faults of its own before its exec.
PlainRun run_plain(const Words& command, const Words& environment, ChildOutput output) {
  const TerminalSignals signals;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  if (input_is_file()) {
    lseek(STDIN_FILENO, 0, SEEK_SET);
  } else {
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  }
  for (const auto& [fd, is_shown] :
       {std::pair{STDOUT_FILENO, output.show_stdout}, {STDERR_FILENO, output.show_stderr}}) {
    if (fd == STDOUT_FILENO && output.text != nullptr) continue;
    if (!is_shown) posix_spawn_file_actions_addopen(&actions, fd, "/dev/null", O_WRONLY, 0);
  }
  Pipe pipe;
  if (output.text != nullptr) {
    pipe.open();
    posix_spawn_file_actions_adddup2(&actions, pipe.write_end.number(), STDOUT_FILENO);
  }
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  const sigset_t defaults = signals.defaults();
  posix_spawnattr_setsigdefault(&attributes, &defaults);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
  pid_t pid = 0;
  const int64_t start_ns = now_ns();
  const int error = posix_spawnp(&pid, command[0].c_str(), &actions, &attributes,
                                 pointers(command).data(), pointers(environment).data());
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) {
    const CommandError reason = system_error(command[0], error);
    throw CommandError(reason.what(), "", error == ENOENT ? kNotFound : kCannotExecute);
  }
  pipe.write_end.reset();
  if (output.text != nullptr) pipe.read_all(*output.text);
  PlainRun run;
  rusage usage{};
  while (wait4(pid, &run.status, 0, &usage) < 0 && errno == EINTR) {
  }
  run.wall_ns = now_ns() - start_ns;
  run.kernel_ns = ns_of(usage.ru_stime);
  run.cpu_ns = ns_of(usage.ru_utime) + run.kernel_ns;
  run.waits = static_cast<uint64_t>(usage.ru_nvcsw);
  run.minor_faults = static_cast<uint64_t>(usage.ru_minflt);
  return run;
}

}  // namespace heapledger::front
