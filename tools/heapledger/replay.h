// SPDX-License-Identifier: Apache-2.0
// `heapledger replay TRACE`: the recorded calls made again, for real, under any allocator and
// settings; what they take is measured.
#pragma once

#include <string>
#include <vector>

namespace heapledger::front {

int run_replay(const std::vector<std::string>& arguments);

}  // namespace heapledger::front
