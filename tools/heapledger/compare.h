// SPDX-License-Identifier: Apache-2.0
// `heapledger compare`, in both its forms: given traces go to the analyzer; a program is first
// recorded under every combination of the listed settings, in turn.
#pragma once

#include <string>
#include <vector>

namespace heapledger::front {

int run_compare(const std::vector<std::string>& arguments);

}  // namespace heapledger::front
