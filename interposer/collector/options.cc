// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/options.h"

#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string_view>

namespace heapledger::collector {
namespace {

constexpr std::string_view kPrefix = "HEAPLEDGER_";

std::string_view variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string_view() : std::string_view(value);
}

bool is_set(const char* name) {
  const std::string_view value = variable(name);
  return !value.empty() && value != "0";
}

// The number, or `fallback` where the text is none or beyond `max`.
uint64_t number(std::string_view text, uint64_t fallback, uint64_t max) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  return whole && value <= max ? value : fallback;
}

// Bytes, with K, M or G as `record` takes them.
std::optional<uint64_t> size(std::string_view text) {
  constexpr std::string_view kUnits = "KMG";
  if (text.empty()) return std::nullopt;
  const size_t unit = kUnits.find(static_cast<char>(text.back() & ~0x20));
  const size_t shift = unit == kUnits.npos ? 0 : 10 * (unit + 1);
  if (shift != 0) text.remove_suffix(1);
  const uint64_t value = number(text, UINT64_MAX, UINT64_MAX >> shift);
  return value == UINT64_MAX ? std::nullopt : std::optional(value << shift);
}

schema::FaultSource fault_source() {
  if (is_set("HEAPLEDGER_NO_FAULTS")) return schema::FaultSource::kNone;
  const std::string_view source = variable("HEAPLEDGER_FAULT_SOURCE");
  if (source == "perf") return schema::FaultSource::kPerf;
  if (source == "getrusage") return schema::FaultSource::kGetrusage;
  return schema::FaultSource::kAuto;
}

std::string options_as_json() {
  nlohmann::json object = nlohmann::json::object();
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    if (!text.starts_with(kPrefix)) continue;
    const size_t equals = text.find('=');
    const std::string_view name = text.substr(kPrefix.size(), equals - kPrefix.size());
    if (equals == text.npos || name == "SESSION" || name == "COLLECTOR") continue;
    object[std::string(name)] = std::string(text.substr(equals + 1));
  }
  // Bytes that are no UTF-8 become U+FFFD: an environment may hold anything.
  return object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

Options read_options(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--plain") == 0) options.plain = true;
    if (std::strcmp(argv[i], "--probe-syscalls") == 0) options.probe_syscalls = true;
    if (std::strcmp(argv[i], "--control-fd") == 0 && i + 1 < argc) {
      options.control_fd = static_cast<int>(number(argv[++i], 0, 1 << 20));
    }
  }
  options.output = variable("HEAPLEDGER_OUTPUT");
  options.overwrite = is_set("HEAPLEDGER_FORCE");
  options.stack_depth =
      static_cast<uint32_t>(number(variable("HEAPLEDGER_STACK_DEPTH"), options.stack_depth, 65000));
  if (is_set("HEAPLEDGER_NO_STACKS")) options.stack_depth = 0;
  options.free_stacks = is_set("HEAPLEDGER_FREE_STACKS");
  options.verify_stacks = is_set("HEAPLEDGER_VERIFY_STACKS");
  options.fault_source = fault_source();
  options.kernel_syscalls = variable("HEAPLEDGER_SYSCALLS") == "kernel";
  options.follow = !is_set("HEAPLEDGER_NO_FOLLOW");
  options.snapshot_interval =
      std::chrono::milliseconds(number(variable("HEAPLEDGER_SNAPSHOT_INTERVAL"), 0, 1 << 30));
  options.trace_bytes_max = size(variable("HEAPLEDGER_MAX_SIZE")).value_or(0);
  options.spool_limit = size(variable("HEAPLEDGER_SPOOL_LIMIT"));
  options.backlog_bytes = size(variable("HEAPLEDGER_BACKLOG")).value_or(options.backlog_bytes);
  options.dump = variable("HEAPLEDGER_DUMP");
  options.json = options_as_json();
  return options;
}

}  // namespace heapledger::collector
