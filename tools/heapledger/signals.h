// SPDX-License-Identifier: Apache-2.0
// The signals of `record`. The program stays in our process group and on our terminal, so what the
// terminal sends (Ctrl-C, Ctrl-Z, hang-up) reaches it from the kernel, as it would without us. We
// must survive those, pass on what was sent to us alone, stop when the program stops, and end as it
// ended.
//
// From arm() on every signal is blocked here and read from a descriptor; no disposition changes but
// SIGCHLD's, so that restore_in_child() gives the program exactly what we were started with.
#pragma once

#include <signal.h>
#include <sys/signalfd.h>
#include <sys/types.h>

#include <optional>

#include "tools/heapledger/descriptor.h"

namespace heapledger::front {

class Signals {
 public:
  Signals();  // Blocks and opens the descriptor.

  // In a forked child, before exec: mask and dispositions as we inherited them.
  void restore_in_child() const;

  // Readable when a signal is pending.
  int descriptor() const { return descriptor_.number(); }
  std::optional<signalfd_siginfo> next();

 private:
  sigset_t inherited_mask_{};
  struct sigaction inherited_child_action_ {};
  Descriptor descriptor_;
};

// Sends on to the program what was sent to us but not to it: not what the terminal sent (the kernel
// sent it to both), nor what comes from the program's own tree (kill(0, ...) by one of its children
// reached it already). SIGCHLD and SIGCONT are the caller's.
void forward_signal(const signalfd_siginfo& signal, pid_t program);

// The program was stopped by this signal: so are we, until somebody continues us.
void stop_like_program(int signal);

// Ends this process by the program's signal, without a core file of our own; returns the status
// 128 + N where the signal does not kill.
int die_like_program(int signal);

}  // namespace heapledger::front
