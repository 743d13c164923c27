// SPDX-License-Identifier: Apache-2.0
// system() and popen(): libc starts their shell itself, past our posix_spawn, with `environ` as it
// is. Where the program has taken the session out of that (clearenv), the shell gets it back as any
// other new program does (child_environment.h); the program's own `environ` stays as it made it.
//
// In all other cases the calls go to libc. system() otherwise does what POSIX says, with one
// difference to libc's: a thread is not cancelled before the shell has ended. popen() must be
// libc's, since pclose() knows only its own: `environ` is another list for as long as it starts the
// shell. Thread safety: as libc's; a setenv in another thread meanwhile is kept.
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "interposer/base/lock.h"
#include "interposer/child_environment.h"
#include "interposer/lifecycle.h"

#define HL_EXPORT extern "C" __attribute__((visibility("default")))

extern "C" char** environ;

namespace {

using heapledger::ChildEnvironment;
using heapledger::real;
namespace base = heapledger::base;

constexpr char kShell[] = "/bin/sh";

constinit base::Lock g_signals_lock;
constinit unsigned g_waiting = 0;  // Calls of system() under way: the first one ignores, the last
constinit struct sigaction g_interrupt = {};  // one gives back.
constinit struct sigaction g_quit = {};

constinit base::Lock g_environ_lock;

// The process ignores SIGINT and SIGQUIT, and this thread is not told of its child's end.
class SignalsHeld {
 public:
  SignalsHeld() {
    struct sigaction ignore = {};
    ignore.sa_handler = SIG_IGN;
    {
      base::LockGuard guard(g_signals_lock);
      if (g_waiting++ == 0) {
        sigaction(SIGINT, &ignore, &g_interrupt);
        sigaction(SIGQUIT, &ignore, &g_quit);
      }
    }
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    pthread_sigmask(SIG_BLOCK, &child, &mask_);
  }
  ~SignalsHeld() {
    {
      base::LockGuard guard(g_signals_lock);
      if (--g_waiting == 0) {
        sigaction(SIGINT, &g_interrupt, nullptr);
        sigaction(SIGQUIT, &g_quit, nullptr);
      }
    }
    pthread_sigmask(SIG_SETMASK, &mask_, nullptr);
  }
  SignalsHeld(const SignalsHeld&) = delete;
  SignalsHeld& operator=(const SignalsHeld&) = delete;

  // The shell starts with the program's own.
  void give_to(posix_spawnattr_t* attributes) const {
    sigset_t defaults;
    sigemptyset(&defaults);
    if (g_interrupt.sa_handler != SIG_IGN) sigaddset(&defaults, SIGINT);
    if (g_quit.sa_handler != SIG_IGN) sigaddset(&defaults, SIGQUIT);
    posix_spawnattr_setsigmask(attributes, &mask_);
    posix_spawnattr_setsigdefault(attributes, &defaults);
    posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
  }

 private:
  sigset_t mask_;
};

// system() for a line and an environment: the shell's wait status, or -1.
int run_shell(const char* line, char* const* envp) {
  constexpr int kNoShell = 127 << 8;
  char name[] = "sh";
  char option[] = "-c";
  char* const argv[] = {name, option, const_cast<char*>(line), nullptr};
  int status = -1;
  const SignalsHeld held;
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  held.give_to(&attributes);
  pid_t child = 0;
  const int failure = posix_spawn(&child, kShell, nullptr, &attributes, argv, envp);
  posix_spawnattr_destroy(&attributes);
  if (failure != 0) {
    errno = failure;
    return failure == ENOMEM || failure == EAGAIN ? -1 : kNoShell;
  }
  while (waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return -1;
  }
  return status;
}

bool is_in(const char* entry, char* const* list) {
  for (; *list != nullptr; ++list) {
    if (*list == entry) return true;
  }
  return false;
}

// While it exists `environ` is another list.
class OtherEnvironment {
 public:
  explicit OtherEnvironment(char* const* list)
      : guard_(g_environ_lock), own_(environ), list_(list) {
    environ = const_cast<char**>(list);
  }
  ~OtherEnvironment() {
    if (environ == list_) {
      environ = own_;
      return;
    }
    // Another thread has made a copy, to add to it: what is not its own leaves it.
    char** to = environ;
    for (char** from = environ; *from != nullptr; ++from) {
      if (!is_in(*from, list_) || (own_ != nullptr && is_in(*from, own_))) *to++ = *from;
    }
    *to = nullptr;
  }
  OtherEnvironment(const OtherEnvironment&) = delete;
  OtherEnvironment& operator=(const OtherEnvironment&) = delete;

 private:
  base::LockGuard guard_;
  char** own_;
  char* const* list_;
};

}  // namespace

HL_EXPORT int system(const char* line) {
  const ChildEnvironment change(environ, kShell);
  if (line == nullptr || change.bytes() == 0) return real().system(line);
  int state = PTHREAD_CANCEL_ENABLE;
  pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
  const int status = run_shell(line, change.build(__builtin_alloca_with_align(change.bytes(), 64)));
  pthread_setcancelstate(state, nullptr);
  return status;
}

HL_EXPORT FILE* popen(const char* line, const char* mode) {
  const ChildEnvironment change(environ, kShell);
  if (change.bytes() == 0) return real().popen(line, mode);
  const OtherEnvironment other(change.build(__builtin_alloca_with_align(change.bytes(), 64)));
  return real().popen(line, mode);
}
