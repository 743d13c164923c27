// SPDX-License-Identifier: Apache-2.0
// `heapledger record`: a thin parent of the program. It starts the collector, starts the program
// under the shim, waits, and ends as the program ended. What it does to the program is what a shell
// does: fork, exec, wait.
#pragma once

#include <string>
#include <vector>

#include "tools/heapledger/record_options.h"

namespace heapledger::front {

// Returns the status to exit with, or does not return: where the program was killed by a signal, so
// are we. Throws CommandError before the program has run, never after.
int record(const OptionValues& options, const std::vector<std::string>& command);

}  // namespace heapledger::front
