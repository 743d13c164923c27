// SPDX-License-Identifier: Apache-2.0
// Runs of a user's program whose memory system calls are counted: those of its first process, with
// its loader's and its threads', but without its children's.
//
// Two ways. The kernel's tracepoints count beside the program and disturb nothing; not every user
// may have them. ptrace is anybody's, and sees what the resident memory is before each call that
// may give some back; but it stops whoever calls, so threads meet at other moments than alone:
// python3's, sharing one arena, make a third of their calls under it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace heapledger::front {

struct CountedRun {
  static constexpr std::array<const char*, 6> kNames = {"brk",    "mmap",    "munmap",
                                                        "mremap", "madvise", "mprotect"};
  int status = 0;  // As wait() gives it.
  std::array<uint64_t, kNames.size()> calls{};
  uint64_t minor_faults = 0;    // Since it was executed; 0: not known.
  uint64_t rss_peak_bytes = 0;  // By the page tables; 0: not known.

  uint64_t total() const;
};

// By the tracepoints; does not know the peak of RSS. Nothing: they may not be used, `why` says the
// reason, and the program did not run.
std::optional<CountedRun> run_undisturbed(const std::vector<std::string>& command,
                                          const std::vector<std::string>& environment,
                                          std::string& why);

// Under ptrace: many times slower.
CountedRun run_traced(const std::vector<std::string>& command,
                      const std::vector<std::string>& environment);

}  // namespace heapledger::front
