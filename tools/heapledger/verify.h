// SPDX-License-Identifier: Apache-2.0
// `heapledger verify TRACE -- PROGRAM`: what the advice is worth, by running the program on the
// system's own malloc under the recorded and under the advised settings, by turns, with nothing of
// ours in it. Times come from runs that nobody watches; system calls and peak RSS from runs of
// their own.
#pragma once

#include <string>
#include <vector>

namespace heapledger::front {

int run_verify(const std::vector<std::string>& arguments);

}  // namespace heapledger::front
