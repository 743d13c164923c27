// SPDX-License-Identifier: Apache-2.0
// What a run of a user's program finds: its input, where its output goes, and the signals of the
// terminal. For all that start one (child.h, counted_run.h).
#pragma once

#include <signal.h>

#include <string>
#include <vector>

namespace heapledger::front {

struct ChildOutput {
  bool show_stdout = false;
  bool show_stderr = false;
  std::string* text = nullptr;  // Takes what goes to stdout. For run_plain() only.
};

// As exec takes them; of these words, which must stay.
std::vector<char*> pointers(const std::vector<std::string>& words);

// Ours ignores what the terminal sends meanwhile; the child has it as it was.
class TerminalSignals {
 public:
  TerminalSignals();
  ~TerminalSignals() { give_back(); }
  TerminalSignals(const TerminalSignals&) = delete;
  TerminalSignals& operator=(const TerminalSignals&) = delete;

  void give_back() const;
  // Those that a child must have at their defaults.
  sigset_t defaults() const;

 private:
  struct sigaction interrupt_ {
  }, quit_{};
};

bool input_is_file();

// In a child, before exec.
void set_streams(ChildOutput output);

}  // namespace heapledger::front
