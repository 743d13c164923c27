// SPDX-License-Identifier: Apache-2.0
// The environment of a program that is to have these settings of malloc and no others.
#pragma once

#include <string>
#include <vector>

namespace heapledger::front {

// Ours with `tunables` ("glibc.malloc.top_pad=65536:...") and those of glibc's other parts; without
// MALLOC_* and HEAPLEDGER_*.
std::vector<std::string> malloc_environment(const std::string& tunables);

}  // namespace heapledger::front
