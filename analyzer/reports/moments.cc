// SPDX-License-Identifier: Apache-2.0
#include "analyzer/reports/moments.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdlib>

#include "schema/error.h"

namespace heapledger::analyzer {

std::vector<Moment> parse_moments(const std::string& at) {
  if (at.empty()) return {{"peak", 0}, {"exit", 0}};
  if (at == "peak" || at == "exit" || at == "fragmented") return {{at, 0}};
  constexpr double kSecondsMax = 1e9;
  char* end = nullptr;
  const double seconds = std::strtod(at.c_str(), &end);
  if (end == at.c_str() || *end != '\0' || !(seconds >= 0) || seconds > kSecondsMax) {
    throw schema::Error(fmt::format("cannot show the moment '{}'", at),
                        "--at takes peak, exit, fragmented, or seconds since the recording began");
  }
  return {{"time", static_cast<int64_t>(std::llround(seconds * 1e9))}};
}

}  // namespace heapledger::analyzer
