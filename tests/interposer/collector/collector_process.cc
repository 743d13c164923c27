// SPDX-License-Identifier: Apache-2.0
#include "tests/interposer/collector/collector_process.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <vector>

namespace heapledger::collector::testing {
namespace {

void become(uid_t user) {
  if (user == 0) return;
  setgroups(0, nullptr);
  if (setgid(user) != 0 || setuid(user) != 0) _exit(126);
  // The kernel lets nobody look at a process that changed its user, until it runs a program.
  prctl(PR_SET_DUMPABLE, 1);
}

// Opened before the user changes: the build may lie in a folder that is the first user's alone.
int open_program(const std::string& path) { return open(path.c_str(), O_PATH | O_CLOEXEC); }

void execute(int program, char* const* arguments, char* const* variables) {
  execveat(program, "", arguments, variables, AT_EMPTY_PATH);
  _exit(127);
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> all;
  for (std::string& text : texts) all.push_back(text.data());
  all.push_back(nullptr);
  return all;
}

}  // namespace

CollectorProcess::CollectorProcess(const Environment& environment, uid_t user) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) abort();
  fd_ = pair[0];
  std::vector<std::string> variables;
  for (const auto& [name, value] : environment) variables.push_back(name + "=" + value);
  std::vector<std::string> arguments = {HEAPLEDGER_COLLECTOR_FILE, "--control-fd",
                                        std::to_string(pair[1])};
  pid_ = fork();
  if (pid_ == 0) {
    fcntl(pair[1], F_SETFD, 0);
    const int program = open_program(arguments[0]);
    become(user);
    execute(program, pointers(arguments).data(), pointers(variables).data());
  }
  close(pair[1]);
}

CollectorProcess::~CollectorProcess() {
  hang_up();
  if (waited_) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

nlohmann::json CollectorProcess::wait_for(const std::string& type, int seconds) {
  const time_t deadline = time(nullptr) + seconds;
  while (time(nullptr) < deadline) {
    pollfd waiting{fd_, POLLIN, 0};
    if (poll(&waiting, 1, 200) <= 0) continue;
    char text[65536];
    const ssize_t got = recv(fd_, text, sizeof text, 0);
    if (got <= 0) return {};
    nlohmann::json message = nlohmann::json::parse(text, text + got);
    if (message.at("type") == type) return message;
  }
  return {};
}

void CollectorProcess::send(const nlohmann::json& message) {
  const std::string text = message.dump();
  ::send(fd_, text.data(), text.size(), MSG_NOSIGNAL);
}

void CollectorProcess::hang_up() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

int CollectorProcess::wait_exit() {
  int status = 0;
  waitpid(pid_, &status, 0);
  waited_ = true;
  return status;
}

pid_t CollectorProcess::run(const std::vector<std::string>& command, const std::string& session,
                            uid_t user) {
  int gate[2];
  int settled[2];
  if (pipe2(gate, O_CLOEXEC) != 0 || pipe2(settled, O_CLOEXEC) != 0) abort();
  std::vector<std::string> arguments = command;
  const pid_t child = fork();
  if (child == 0) {
    char go = 0;
    close(gate[1]);
    const int program = open_program(arguments[0]);
    become(user);  // Before it is attached to: only its own user may.
    if (write(settled[1], "s", 1) != 1) _exit(125);
    if (read(gate[0], &go, 1) != 1) _exit(125);
    setenv("HEAPLEDGER_SESSION", session.c_str(), 1);
    execute(program, pointers(arguments).data(), environ);
  }
  close(gate[0]);
  close(settled[1]);
  char byte = 0;
  if (read(settled[0], &byte, 1) != 1) abort();
  close(settled[0]);
  send({{"type", "launch"}, {"pid", child}, {"command", command}, {"exe", command[0]}});
  attached = wait_for("attached");
  if (write(gate[1], "g", 1) != 1) abort();
  close(gate[1]);
  return child;
}

int CollectorProcess::report_end(pid_t child) {
  int status = 0;
  rusage usage{};
  wait4(child, &status, 0, &usage);
  send({{"type", "exited"},
        {"pid", child},
        {"wait_status", status},
        {"minor", usage.ru_minflt},
        {"major", usage.ru_majflt},
        {"max_rss_bytes", usage.ru_maxrss * 1024},
        {"user_ns", 0},
        {"system_ns", 0}});
  return status;
}

Folder::Folder() {
  std::string form = std::filesystem::temp_directory_path() / "collector_test_XXXXXX";
  path = mkdtemp(form.data());
  chmod(path.c_str(), 0777);
}

Folder::~Folder() { std::filesystem::remove_all(path); }

}  // namespace heapledger::collector::testing
