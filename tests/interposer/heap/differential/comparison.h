// SPDX-License-Identifier: Apache-2.0
//
// Runs the Glibc-layout model over a recorded sequence, call by call, and says where it and glibc
// first differ: a system call, a block's address or usable size, errno of a failed call, a number
// of mallinfo2, or the model's end by a fatal error or signal.
//
// Along the way the contents are tested as well: what calloc returns is zero, what realloc keeps is
// kept, nobody writes into a live block.
#pragma once

#include <optional>
#include <string>

#include "tests/interposer/heap/differential/sequence.h"
#include "tests/interposer/heap/differential/tracer.h"

namespace heapledger::heap::differential {

struct Divergence {
  size_t op = 0;  // Index in the sequence.
  std::string what;
};

// Nothing: they agree to the end.
std::optional<Divergence> compare(const Sequence& sequence, const Recording& recording);

}  // namespace heapledger::heap::differential
