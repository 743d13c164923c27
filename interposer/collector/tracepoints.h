// SPDX-License-Identifier: Apache-2.0
// The kernel's tracepoints of the memory system calls: their numbers, and where the arguments and
// the result lie in a record.
//
// Both are read from tracefs. Where it is not mounted, root gets a mount of its own that is
// attached nowhere, so nothing on the machine changes. Debian and Ubuntu mount it for root alone.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "schema/event.h"

namespace heapledger::collector {

inline constexpr size_t kMemoryCalls = std::size(schema::kSyscallNames);
inline constexpr size_t kCallArguments = 6;

struct Tracepoint {
  uint32_t id = 0;    // As perf_event_attr.config and the first word of a record name it.
  size_t fields = 0;  // Arguments; of an exit one, the result.
  uint16_t offset[kCallArguments] = {};  // Of each in a record; all are 8 bytes.
};

struct CallTracepoints {
  Tracepoint enter, exit;
};

// By SyscallName.
using Tracepoints = std::array<CallTracepoints, kMemoryCalls>;

// Nothing: `why` says what stands in the way.
std::optional<Tracepoints> find_tracepoints(std::string& why);

// The numbers in the text of a `format` file; fields 0 where it makes no sense.
Tracepoint parse_format(const std::string& text);

}  // namespace heapledger::collector
