// SPDX-License-Identifier: Apache-2.0
// `heapledger doctor`: tries what a recording needs on this machine, says of each how far it goes,
// and gives the one command that would allow more. Exit status 0 where recording works.
#pragma once

#include <string>
#include <vector>

namespace heapledger::front {

int run_doctor(const std::vector<std::string>& arguments);

}  // namespace heapledger::front
