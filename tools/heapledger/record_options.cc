// SPDX-License-Identifier: Apache-2.0
#include "tools/heapledger/record_options.h"

#include <CLI/CLI.hpp>
#include <cctype>
#include <charconv>
#include <climits>
#include <cstdlib>
#include <limits>

#include "tools/heapledger/command_error.h"

namespace heapledger::front {

using enum OptionValue;
using enum OptionReader;

constexpr uint64_t kStackDepthMax = 65000;
constexpr uint64_t kIntervalMsMax = uint64_t{1} << 30;

const std::vector<RecordOption> kRecordOptions = {
    {"-o,--output", "HEAPLEDGER_OUTPUT", kFile, kCollector,
     "the trace file (default: heapledger.PROGRAM.PID.db)"},
    {"--mmap-threshold", "HEAPLEDGER_MMAP_THRESHOLD", kThreshold, kProgram,
     "requests from this size on get a mapping of their own; brk-only, mmap-only"},
    {"--trim-threshold", "HEAPLEDGER_TRIM_THRESHOLD", kSize, kProgram,
     "free memory at the top of the heap above this goes back to the system"},
    {"--top-pad", "HEAPLEDGER_TOP_PAD", kSize, kProgram,
     "so much more is taken from the system whenever the heap grows"},
    {"--mmap-max", "HEAPLEDGER_MMAP_MAX", kCount, kProgram,
     "at most so many blocks have mappings of their own", INT_MAX},
    {"--arena-max", "HEAPLEDGER_ARENA_MAX", kCount, kProgram, "at most so many arenas"},
    {"--tcache-count", "HEAPLEDGER_TCACHE_COUNT", kCount, kProgram,
     "a thread's cache keeps so many free blocks of a size", UINT16_MAX},
    {"--stack-depth", "HEAPLEDGER_STACK_DEPTH", kCount, kCollector,
     "keep so many frames of a stack, the innermost (default: 128)", kStackDepthMax},
    {"--free-stacks", "HEAPLEDGER_FREE_STACKS", kNone, kCollector,
     "record the stacks of frees too"},
    {"--no-stacks", "HEAPLEDGER_NO_STACKS", kNone, kCollector, "record no stacks"},
    {"--verify-stacks", "HEAPLEDGER_VERIFY_STACKS", kNone, kCollector,
     "walk each stack by libunwind too, and count differences (slow)"},
    {"--no-faults", "HEAPLEDGER_NO_FAULTS", kNone, kCollector, "record no page faults"},
    {"--fault-source", "HEAPLEDGER_FAULT_SOURCE", kFaultSource, kCollector,
     "perf | getrusage (default: perf where the machine allows it)"},
    {"--syscalls", "HEAPLEDGER_SYSCALLS", kSyscallSource, kCollector,
     "wrappers | kernel: every memory system call, where the machine allows it (default: "
     "wrappers)"},
    {"--no-follow", "HEAPLEDGER_NO_FOLLOW", kNone, kCollector, "leave child processes unrecorded"},
    {"--snapshot-interval", "HEAPLEDGER_SNAPSHOT_INTERVAL", kCount, kCollector,
     "milliseconds between looks at the resident pages", kIntervalMsMax},
    {"--max-size", "HEAPLEDGER_MAX_SIZE", kSize, kCollector,
     "recording ends when the trace file comes to this size; the program runs on"},
    {"--spool-limit", "HEAPLEDGER_SPOOL_LIMIT", kSize, kCollector,
     "what is not packed yet may take so much disk; then the program waits (default: half of what "
     "is free)"},
    {"--wait", "HEAPLEDGER_WAIT", kNone, kRecord,
     "return when every recorded process has ended, not only PROGRAM"},
    {"--force", "HEAPLEDGER_FORCE", kNone, kCollector, "overwrite the trace file"},
    {"--quiet", "HEAPLEDGER_QUIET", kNone, kRecord, "nothing on stderr but errors"},
};

std::optional<uint64_t> parse_size(std::string_view text) {
  uint64_t number = 0;
  const char* end = text.data() + text.size();
  const auto [after, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || end - after > 1) return std::nullopt;
  if (after == end) return number;
  unsigned shift = 0;
  switch (*after) {
    case 'k':
    case 'K':
      shift = 10;
      break;
    case 'm':
    case 'M':
      shift = 20;
      break;
    case 'g':
    case 'G':
      shift = 30;
      break;
    default:
      return std::nullopt;
  }
  if (number > (std::numeric_limits<uint64_t>::max() >> shift)) return std::nullopt;
  return number << shift;
}

// "-o,--output" is spoken of as "--output".
static std::string long_flag(const RecordOption& option) {
  const std::string flags = option.flags;
  return flags.substr(flags.find("--"));
}

std::string checked_value(const RecordOption& option, const std::string& text) {
  const auto refuse = [&](const std::string& why) {
    return CommandError(long_flag(option) + " " + text, why, kUsage);
  };
  switch (option.value) {
    case kNone:
      return text;
    case kFile:
      if (text.empty()) throw refuse("needs a file name");
      return text;
    case kFaultSource:
      if (text != "perf" && text != "getrusage") throw refuse("is neither perf nor getrusage");
      return text;
    case kSyscallSource:
      if (text != "wrappers" && text != "kernel") throw refuse("is neither wrappers nor kernel");
      return text;
    case kThreshold:
      if (text == "brk-only" || text == "mmap-only") return text;
      [[fallthrough]];
    case kSize:
      if (const auto bytes = parse_size(text)) return std::to_string(*bytes);
      throw refuse("is no size (a number with K, M or G)");
    case kCount: {
      const auto number = parse_size(text);
      if (!number || std::isdigit(static_cast<unsigned char>(text.back())) == 0) {
        throw refuse("is no whole number");
      }
      if (*number > option.max) throw refuse("is more than " + std::to_string(option.max));
      return text;
    }
  }
  return text;
}

void add_record_options(CLI::App& app, OptionValues& given) {
  for (const RecordOption& option : kRecordOptions) {
    const std::string variable = option.variable;
    if (option.value == kNone) {
      app.add_flag_callback(
          option.flags, [&given, variable] { given[variable] = "1"; }, option.help);
    } else {
      const char* type = option.value == kFile                                            ? "FILE"
                         : option.value == kCount                                         ? "N"
                         : option.value == kFaultSource || option.value == kSyscallSource ? "SOURCE"
                                                                                          : "SIZE";
      app.add_option_function<std::string>(
             option.flags, [&given, variable](const std::string& text) { given[variable] = text; },
             option.help)
          ->type_name(type);
    }
  }
}

void check_values(OptionValues& given) {
  for (const RecordOption& option : kRecordOptions) {
    const auto found = given.find(option.variable);
    if (found != given.end()) found->second = checked_value(option, found->second);
  }
}

bool is_on(const OptionValues& given, const char* variable) {
  if (given.contains(variable)) return true;
  const char* value = std::getenv(variable);
  return value != nullptr && *value != 0 && std::string_view(value) != "0";
}

}  // namespace heapledger::front
