// SPDX-License-Identifier: Apache-2.0
#include "tools/heapledger/child_setup.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace heapledger::front {

std::vector<char*> pointers(const std::vector<std::string>& words) {
  std::vector<char*> result;
  for (const std::string& word : words) result.push_back(const_cast<char*>(word.c_str()));
  result.push_back(nullptr);
  return result;
}

TerminalSignals::TerminalSignals() {
  struct sigaction ignore {};
  ignore.sa_handler = SIG_IGN;
  sigaction(SIGINT, &ignore, &interrupt_);
  sigaction(SIGQUIT, &ignore, &quit_);
}

void TerminalSignals::give_back() const {
  sigaction(SIGINT, &interrupt_, nullptr);
  sigaction(SIGQUIT, &quit_, nullptr);
}

sigset_t TerminalSignals::defaults() const {
  sigset_t set;
  sigemptyset(&set);
  if (interrupt_.sa_handler == SIG_DFL) sigaddset(&set, SIGINT);
  if (quit_.sa_handler == SIG_DFL) sigaddset(&set, SIGQUIT);
  return set;
}

bool input_is_file() {
  struct stat input {};
  return fstat(STDIN_FILENO, &input) == 0 && S_ISREG(input.st_mode);
}

void set_streams(ChildOutput output) {
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (input_is_file()) {
    lseek(STDIN_FILENO, 0, SEEK_SET);
  } else {
    dup2(null, STDIN_FILENO);
  }
  if (!output.show_stdout) dup2(null, STDOUT_FILENO);
  if (!output.show_stderr) dup2(null, STDERR_FILENO);
}

}  // namespace heapledger::front
