// SPDX-License-Identifier: Apache-2.0
#include "analyzer/reports/check.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <string_view>

#include "analyzer/render/units.h"
#include "schema/error.h"

namespace heapledger::analyzer {

namespace {

using Json = nlohmann::ordered_json;
using schema::Error;

// A list's element by its number, or null.
const Json* element_of(const Json& list, const std::string& member) {
  size_t index = 0;
  const char* end = member.data() + member.size();
  const auto [at, error] = std::from_chars(member.data(), end, index);
  return error == std::errc() && at == end && index < list.size() ? &list.at(index) : nullptr;
}

// A name's number: members by dots, elements of a list by their numbers from 0, of a list itself
// its length. NULL, which is "not known", is an error.
double number_of(const Json& summary, const std::string& name) {
  const Json* at = &summary;
  for (size_t start = 0; start <= name.size();) {
    const size_t dot = std::min(name.find('.', start), name.size());
    const std::string member = name.substr(start, dot - start);
    const Json* next = at->is_array()                            ? element_of(*at, member)
                       : at->is_object() && at->contains(member) ? &at->at(member)
                                                                 : nullptr;
    if (next == nullptr) {
      throw Error(fmt::format("cannot check '{}'", name), "summary --json has no such number");
    }
    at = next;
    start = dot + 1;
  }
  if (at->is_array()) return static_cast<double>(at->size());
  if (at->is_null()) throw Error(fmt::format("cannot check '{}'", name), "it is not known");
  if (!at->is_number()) throw Error(fmt::format("cannot check '{}'", name), "it is no number");
  return at->get<double>();
}

std::string number_text(const std::string& name, double value) {
  const auto whole = static_cast<int64_t>(std::llround(value));
  return name.find("bytes") != std::string::npos ? fmt::format("{} ({})", whole, human_bytes(whole))
                                                 : fmt::format("{}", whole);
}

}  // namespace

CheckLimit parse_limit(const std::string& text) {
  const auto refuse = [&]() -> CheckLimit {
    throw Error(fmt::format("cannot check '{}'", text),
                "a limit is NAME=NUMBER (K, M, G), NAME=+NUMBER or NAME=+NUMBER%");
  };
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == text.size()) return refuse();
  CheckLimit limit;
  limit.name = text.substr(0, equals);
  const std::string value = text.substr(equals + 1);
  limit.is_growth = value[0] == '+';
  char* end = nullptr;
  limit.value = std::strtod(value.c_str(), &end);
  if (end == value.c_str() || !std::isfinite(limit.value) || limit.value < 0) return refuse();
  const std::string_view unit(end);
  if (unit == "K") {
    limit.value *= 1024;
  } else if (unit == "M") {
    limit.value *= 1024 * 1024;
  } else if (unit == "G") {
    limit.value *= 1024 * 1024 * 1024;
  } else if (unit == "%" && limit.is_growth) {
    limit.is_percent = true;
  } else if (!unit.empty()) {
    return refuse();
  }
  return limit;
}

std::vector<std::string> check_limits(const std::vector<CheckLimit>& limits, const Json& summary,
                                      const Json* baseline) {
  std::vector<std::string> passed;
  for (const CheckLimit& limit : limits) {
    const double now = number_of(summary, limit.name);
    double most = limit.value;
    std::string against;
    if (limit.is_growth) {
      if (baseline == nullptr) {
        throw Error(fmt::format("cannot check the growth of '{}'", limit.name),
                    "--baseline TRACE is missing");
      }
      const double before = number_of(*baseline, limit.name);
      most = limit.is_percent ? before * (1 + limit.value / 100) : before + limit.value;
      against = fmt::format("; the baseline's {} and {}{} more", number_text(limit.name, before),
                            limit.value, limit.is_percent ? "%" : "");
    }
    if (now <= most) continue;
    passed.push_back(fmt::format("{}: {} is more than {}{}", limit.name,
                                 number_text(limit.name, now), number_text(limit.name, most),
                                 against));
  }
  return passed;
}

}  // namespace heapledger::analyzer
