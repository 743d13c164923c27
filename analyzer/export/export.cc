// SPDX-License-Identifier: Apache-2.0
#include "analyzer/export/export.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <utility>

#include "analyzer/reports/fault_counts.h"
#include "schema/error.h"

namespace heapledger::analyzer {

size_t export_value_index(const std::string& name) {
  for (size_t i = 0; i < kExportValues.size(); ++i) {
    if (name == kExportValues[i].name) return i;
  }
  throw schema::Error(fmt::format("cannot export '{}'", name), "there is no such value");
}

namespace {

// By stack, and by what to call stack 0.
using Samples = std::map<std::pair<int64_t, std::string>, ExportSample>;

// Rows are a stack and values, the first of which is number `first`.
void add_rows(const ReportInput& input, const std::string& sql, size_t first, size_t count,
              const char* without_stack, Samples& samples) {
  schema::Statement select = input.trace().db.prepare(sql);
  while (select.step()) {
    const int64_t stack = select.column_int(0);
    ExportSample& sample = samples[{stack, stack == 0 ? without_stack : ""}];
    for (size_t i = 0; i < count; ++i) {
      sample.values[first + i] += select.column_int(static_cast<int>(i) + 1);
    }
  }
}

// Where perf is refused the total is getrusage's, and pages seen in snapshots are fewer.
void add_faults(const ReportInput& input, Samples& samples) {
  const size_t index = export_value_index("faults");
  const std::string of_stack = "SELECT stack, sum(faults) FROM fault_site WHERE " +
                               process_condition(input) + " AND (stack = 0 AND region = 'other') ";
  add_rows(input, of_stack + "= 1 GROUP BY stack", index, 1, "[outside the heap]", samples);
  add_rows(input, of_stack + "= 0 GROUP BY stack", index, 1, "[in no block with a stack]", samples);
  const FaultTotals totals = fault_totals(input);
  int64_t rest = totals.minor + totals.major;
  for (const auto& [key, sample] : samples) rest -= sample.values[index];
  if (rest != 0) samples[{0, "[not attributed]"}].values[index] = rest;
}

}  // namespace

std::vector<ExportSample> export_samples(const ReportInput& input) {
  const std::string where = " WHERE " + process_condition(input);
  Samples samples;
  add_rows(input,
           "SELECT stack, sum(calls), sum(bytes), sum(live_blocks_peak), sum(live_bytes_peak),"
           " sum(live_blocks_end - inherited_blocks_end), sum(live_bytes_end - inherited_bytes_end)"
           " FROM site" +
               where + " GROUP BY stack",
           export_value_index("allocations"), 6, "[no stack]", samples);
  add_rows(
      input,
      "SELECT stack, sum(ns) FROM syscall_cost" + where + " AND stack IS NOT NULL GROUP BY stack",
      export_value_index("syscalls"), 1, "[no stack]", samples);
  add_faults(input, samples);
  std::vector<ExportSample> listed;
  for (auto& [key, sample] : samples) {
    if (std::all_of(sample.values.begin(), sample.values.end(), [](int64_t v) { return v == 0; })) {
      continue;
    }
    const auto& [stack, name] = key;
    sample.stack =
        stack != 0 ? input.trace().stacks->stack(stack) : StackText{FrameText{name, "", 0, "", 0}};
    listed.push_back(std::move(sample));
  }
  return listed;
}

namespace {

// The whole text, or why not.
std::string write_file(const std::string& path, const std::string& text) {
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "wb"),
                                                       &std::fclose);
  if (!file) return std::strerror(errno);
  const bool written = std::fwrite(text.data(), 1, text.size(), file.get()) == text.size() &&
                       std::fflush(file.get()) == 0;
  return written ? "" : std::strerror(errno);
}

}  // namespace

void write_export(const std::string& path, const std::string& text) {
  namespace fs = std::filesystem;
  const auto fail = [&](const std::string& why) {
    throw schema::Error(fmt::format("cannot write '{}'", path), why);
  };
  if (path == "-") {
    if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) fail(std::strerror(errno));
    return;
  }
  std::error_code code;
  // A pipe or a device takes the text itself; a file of that name must not replace it.
  const bool is_there = fs::exists(path, code);
  if (is_there && !fs::is_regular_file(path, code)) {
    if (const std::string why = write_file(path, text); !why.empty()) fail(why);
    return;
  }
  // Half a file is never seen under the name; a link goes on pointing to its file.
  const std::string target = is_there ? fs::canonical(path).string() : path;
  const std::string half = target + ".part";
  std::string why = write_file(half, text);
  if (why.empty()) {
    fs::rename(half, target, code);
    if (!code) return;
    why = code.message();
  }
  fs::remove(half, code);
  fail(why);
}

}  // namespace heapledger::analyzer
