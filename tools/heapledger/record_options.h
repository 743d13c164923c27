// SPDX-License-Identifier: Apache-2.0
// The options of a recording. One table row is one option: its flag, the environment variable that
// means the same under a bare LD_PRELOAD (HEAPLEDGER_ + the flag in upper case), what its value may
// be, who reads it, and the help. `record`, `compare` and the man page's check go by this table.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace CLI {
class App;
}

namespace heapledger::front {

enum class OptionValue {
  kNone,  // A switch.
  kFile,
  kSize,          // Bytes; K, M, G.
  kThreshold,     // A size, or brk-only, or mmap-only.
  kCount,         // A whole number.
  kFaultSource,   // perf | getrusage
  kSyscallSource  // wrappers | kernel
};

enum class OptionReader {
  kProgram,  // The allocator in the program (and so in the program's environment too).
  kCollector,
  kRecord  // The record command itself.
};

struct RecordOption {
  const char* flags;  // As CLI11 takes them: "-o,--output".
  const char* variable;
  OptionValue value;
  OptionReader reader;
  const char* help;
  uint64_t max = UINT64_MAX;  // Of a number; what its reader takes.
};

extern const std::vector<RecordOption> kRecordOptions;

// Bytes of "65536", "64K", "1M", "2G" (powers of 1024, upper or lower case); nothing where it is no
// such text or does not fit.
std::optional<uint64_t> parse_size(std::string_view text);

// Checks a value and returns it as the variable carries it (sizes in bytes). Throws CommandError
// (usage) that names the flag.
std::string checked_value(const RecordOption& option, const std::string& text);

// Values given on the command line, by variable; switches are "1".
using OptionValues = std::map<std::string, std::string>;

// Adds the options to a command's parser; the texts go to `given`, unchecked.
void add_record_options(CLI::App& app, OptionValues& given);

// Checks every value in `given`, in place.
void check_values(OptionValues& given);

// Is a switch on, by the command line or by the environment?
bool is_on(const OptionValues& given, const char* variable);

}  // namespace heapledger::front
