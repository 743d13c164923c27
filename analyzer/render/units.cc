// SPDX-License-Identifier: Apache-2.0
#include "analyzer/render/units.h"

#include <fmt/format.h>

#include <array>
#include <cmath>

namespace heapledger::analyzer {

namespace {

// Three significant digits or so: 1.25, 12.5, 125.
std::string short_number(double value) {
  return std::abs(value) < 10 ? fmt::format("{:.2f}", value) : fmt::format("{:.1f}", value);
}

}  // namespace

std::string human_bytes(int64_t bytes) {
  constexpr std::array kUnits = {"KiB", "MiB", "GiB", "TiB"};
  if (bytes > -1024 && bytes < 1024) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  // 1023.96 KiB would print as 1024.0 KiB.
  while (std::abs(value) >= 1023.95 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  return short_number(value) + " " + kUnits[unit];
}

std::string human_ns(int64_t ns) {
  const double value = static_cast<double>(ns);
  if (ns > -1000 && ns < 1000) return fmt::format("{} ns", ns);
  if (std::abs(value) < 999'950) return short_number(value / 1e3) + " us";
  if (std::abs(value) < 999.95e6) return short_number(value / 1e6) + " ms";
  return short_number(value / 1e9) + " s";
}

std::string human_count(int64_t count) {
  const std::string digits = std::to_string(count);
  const size_t sign = count < 0 ? 1 : 0;
  std::string out;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > sign && (digits.size() - i) % 3 == 0) out.push_back(',');
    out.push_back(digits[i]);
  }
  return out;
}

std::string human_time(int64_t ns) {
  return fmt::format("{:.6f} s", static_cast<double>(ns) / 1e9);
}

std::string human_ratio(double ratio) { return fmt::format("{:.1f} %", ratio * 100); }

std::string human_factor(double factor) {
  return factor < 9.95 ? fmt::format("{:.2f}x", factor)
                       : fmt::format("{}x", human_count(std::llround(factor)));
}

std::string counted(int64_t count, const std::string& noun) {
  return human_count(count) + " " + noun + (count == 1 ? "" : "s");
}

}  // namespace heapledger::analyzer
