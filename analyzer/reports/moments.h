// SPDX-License-Identifier: Apache-2.0
// --at: which moments of a process a report shows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace heapledger::analyzer {

struct Moment {
  std::string name;     // peak | exit | fragmented | time
  int64_t time_ns = 0;  // Only where name is "time".
};

// The moments of `at`: both where it is empty. Throws Error for anything but those,
// fragmented (most held and not live) and a number of seconds.
std::vector<Moment> parse_moments(const std::string& at);

}  // namespace heapledger::analyzer
