// SPDX-License-Identifier: Apache-2.0
// Limits for CI, on any number that `summary --json` has.
//
//     live_bytes_end=0              at most so much; K, M, G are accepted
//     faults.minor=20000            a number inside an object
//     syscalls.brk.allocator.count=50
//     findings=0                    of a list: how many
//     live_bytes_peak=+5%           at most so much more than the baseline; +4M likewise
// Thread safety: pure.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace heapledger::analyzer {

struct CheckLimit {
  std::string name;
  double value = 0;
  bool is_growth = false;   // Against the baseline:
  bool is_percent = false;  // in percent of it, or as an amount.
};

// Throws Error where `text` is none.
CheckLimit parse_limit(const std::string& text);

// One line per limit that is passed. Throws Error where a name is no number of the summary, or a
// growth has no baseline (null).
std::vector<std::string> check_limits(const std::vector<CheckLimit>& limits,
                                      const nlohmann::ordered_json& summary,
                                      const nlohmann::ordered_json* baseline);

}  // namespace heapledger::analyzer
