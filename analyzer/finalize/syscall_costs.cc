// SPDX-License-Identifier: Apache-2.0
#include "analyzer/finalize/syscall_costs.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <optional>
#include <tuple>
#include <utility>

namespace heapledger::analyzer {

namespace {

// The smallest value that at least `percent` of the values do not exceed.
int64_t percentile(const std::vector<int64_t>& sorted, size_t percent) {
  return sorted[(sorted.size() * percent + 99) / 100 - 1];
}

}  // namespace

CallCost cost_of(std::vector<int64_t>& durations) {
  std::sort(durations.begin(), durations.end());
  return {static_cast<int64_t>(durations.size()),
          std::accumulate(durations.begin(), durations.end(), int64_t{0}),
          percentile(durations, 50), percentile(durations, 99), durations.back()};
}

void write_syscall_costs(schema::Database& db, int64_t process) {
  using Call = std::tuple<std::string, std::string, std::string>;  // Name, origin, cause.
  std::map<Call, std::vector<int64_t>> by_call;
  std::map<std::pair<int64_t, Call>, std::vector<int64_t>> by_stack;
  schema::Statement select = db.prepare(
      "SELECT name, origin, coalesce(cause, ''), stack, duration_ns FROM syscall"
      " WHERE process = ? AND origin != 'recorder'");
  select.bind(1, process);
  while (select.step()) {
    Call call{select.column_text(0), select.column_text(1), select.column_text(2)};
    by_call[call].push_back(select.column_int(4));
    by_stack[{select.column_int(3), std::move(call)}].push_back(select.column_int(4));
  }
  schema::Statement insert =
      db.prepare("INSERT INTO syscall_cost VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
  const auto write = [&](std::optional<int64_t> stack, const Call& call,
                         std::vector<int64_t>& durations) {
    const CallCost cost = cost_of(durations);
    insert.run_with(process, stack, std::get<0>(call), std::get<1>(call), std::get<2>(call),
                    cost.count, cost.ns, cost.p50_ns, cost.p99_ns, cost.max_ns);
  };
  for (auto& [call, durations] : by_call) write(std::nullopt, call, durations);
  for (auto& [key, durations] : by_stack) write(key.first, key.second, durations);
}

}  // namespace heapledger::analyzer
