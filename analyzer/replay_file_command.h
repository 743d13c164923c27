// SPDX-License-Identifier: Apache-2.0
// `heapledger-analyzer replay-file`, for `heapledger replay`: a process's calls as a file, and in
// JSON what the recorded run took.
#pragma once

#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>

namespace heapledger::analyzer {

// `pid`: unset: the process that held most. Throws Error.
void run_replay_file(const std::string& trace, const std::string& output,
                     std::optional<int64_t> pid, FILE* out);

}  // namespace heapledger::analyzer
