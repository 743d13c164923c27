// SPDX-License-Identifier: Apache-2.0
#include "analyzer/export/export.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>

#include "schema/error.h"

namespace heapledger::analyzer {

size_t export_value_index(const std::string& name) {
  for (size_t i = 0; i < kExportValues.size(); ++i) {
    if (name == kExportValues[i].name) return i;
  }
  throw schema::Error(fmt::format("cannot export '{}'", name), "there is no such value");
}

std::vector<ExportSample> export_samples(const ReportInput& input) {
  schema::Statement select = input.trace().db.prepare(
      "SELECT stack, sum(calls), sum(bytes), sum(live_blocks_peak), sum(live_bytes_peak),"
      " sum(live_blocks_end - inherited_blocks_end), sum(live_bytes_end - inherited_bytes_end),"
      " sum(faults), sum(syscall_ns) FROM site WHERE " +
      process_condition(input) + " GROUP BY stack ORDER BY stack");
  std::vector<ExportSample> samples;
  while (select.step()) {
    ExportSample sample;
    sample.stack = select.column_int(0);
    bool any = false;
    for (size_t i = 0; i < sample.values.size(); ++i) {
      sample.values[i] = select.column_int(static_cast<int>(i) + 1);
      any |= sample.values[i] != 0;
    }
    if (any) samples.push_back(sample);
  }
  return samples;
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
