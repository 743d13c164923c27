// SPDX-License-Identifier: Apache-2.0
//
// The calls of a recorded program as a sequence: what a real program does to its allocator, made
// again by the driver. Only of processes with one thread that began with exec: the calls of others
// have no order that the driver could follow.
#pragma once

#include <cstdint>
#include <string>

#include "tests/interposer/heap/differential/sequence.h"

namespace heapledger::heap::differential {

// `process` is the row in the trace's table. Throws where the trace cannot be read or the process
// is not such a one.
Sequence recorded_sequence(const std::string& trace, int64_t process);

}  // namespace heapledger::heap::differential
