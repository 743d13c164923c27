// SPDX-License-Identifier: Apache-2.0
#include "tools/heapledger/signals.h"

#include <sys/prctl.h>
#include <sys/resource.h>

#include <cstdio>
#include <string>

#include "tools/heapledger/command_error.h"

namespace heapledger::front {

namespace {

constexpr int kAncestorsMax = 64;

// Parent from /proc/PID/stat; the name in parentheses may hold anything, so the fields count from
// the last ')'. 0 where the process is gone.
pid_t parent_of(pid_t pid) {
  const std::string path = "/proc/" + std::to_string(pid) + "/stat";
  std::FILE* file = std::fopen(path.c_str(), "re");
  if (file == nullptr) return 0;
  char text[512] = {};
  const size_t size = std::fread(text, 1, sizeof text - 1, file);
  std::fclose(file);
  const std::string line(text, size);
  const size_t name_end = line.rfind(')');
  char state = 0;
  pid_t parent = 0;
  if (name_end == std::string::npos ||
      std::sscanf(line.c_str() + name_end + 1, " %c %d", &state, &parent) != 2) {
    return 0;
  }
  return parent;
}

bool descends_from(pid_t pid, pid_t ancestor) {
  for (int i = 0; i < kAncestorsMax && pid > 1; ++i) {
    if (pid == ancestor) return true;
    pid = parent_of(pid);
  }
  return false;
}

bool is_terminal_signal(uint32_t number) {
  switch (number) {
    case SIGINT:
    case SIGQUIT:
    case SIGHUP:
    case SIGTSTP:
    case SIGTTIN:
    case SIGTTOU:
    case SIGCONT:
    case SIGWINCH:
      return true;
    default:
      return false;
  }
}

}  // namespace

Signals::Signals() {
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, &inherited_mask_);
  // An ignored SIGCHLD (`trap '' CHLD`) would make the kernel throw the program's status away.
  struct sigaction action {};
  action.sa_handler = SIG_DFL;
  sigaction(SIGCHLD, &action, &inherited_child_action_);
  descriptor_ = Descriptor(signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!descriptor_.is_open()) throw system_error("signalfd");
}

void Signals::restore_in_child() const {
  sigaction(SIGCHLD, &inherited_child_action_, nullptr);
  sigprocmask(SIG_SETMASK, &inherited_mask_, nullptr);
}

std::optional<signalfd_siginfo> Signals::next() {
  signalfd_siginfo signal{};
  const ssize_t size = read(descriptor_.number(), &signal, sizeof signal);
  if (size != static_cast<ssize_t>(sizeof signal)) return std::nullopt;
  return signal;
}

void forward_signal(const signalfd_siginfo& signal, pid_t program) {
  const int number = static_cast<int>(signal.ssi_signo);
  if (number == SIGCHLD || number == SIGCONT) return;
  if (signal.ssi_code == SI_KERNEL && is_terminal_signal(signal.ssi_signo)) return;
  const auto sender = static_cast<pid_t>(signal.ssi_pid);
  const bool was_sent = signal.ssi_code <= 0;
  // Our own write to a closed pipe, and what the program's tree did to its whole group.
  if (was_sent && (sender == getpid() || descends_from(sender, program))) return;
  if (signal.ssi_code == SI_QUEUE) {
    sigval value{};
    value.sival_ptr = reinterpret_cast<void*>(signal.ssi_ptr);
    sigqueue(program, number, value);
  } else {
    kill(program, number);
  }
}

void stop_like_program(int signal) {
  struct sigaction standard {};
  standard.sa_handler = SIG_DFL;
  struct sigaction before {};
  sigset_t only, blocked;
  sigemptyset(&only);
  sigaddset(&only, signal);
  sigaction(signal, &standard, &before);
  raise(signal);  // Blocked as yet (but for SIGSTOP): it takes effect with the next line.
  sigprocmask(SIG_UNBLOCK, &only, &blocked);
  sigprocmask(SIG_SETMASK, &blocked, nullptr);
  sigaction(signal, &before, nullptr);
}

int die_like_program(int signal) {
  const rlimit no_core{0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);  // A core_pattern with a pipe heeds this, not the limit.
  struct sigaction standard {};
  standard.sa_handler = SIG_DFL;
  sigaction(signal, &standard, nullptr);
  sigset_t only;
  sigemptyset(&only);
  sigaddset(&only, signal);
  raise(signal);
  sigprocmask(SIG_UNBLOCK, &only, nullptr);
  return 128 + signal;
}

}  // namespace heapledger::front
