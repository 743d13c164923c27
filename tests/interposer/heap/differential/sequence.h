// SPDX-License-Identifier: Apache-2.0
//
// A random sequence of calls and the environment it starts in, made from a number alone: the same
// seed is the same sequence on every machine.
//
// Each seed draws a character first (which sizes, how many blocks live, in which order they die,
// which settings, whether the system refuses), so that a short sequence is dense in one kind of
// behaviour instead of thin in all.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "interposer/heap/glibc_version.h"
#include "tests/interposer/heap/differential/protocol.h"

namespace heapledger::heap::differential {

struct Sequence {
  uint64_t seed = 0;
  std::vector<std::string> environment;  // NAME=value; the driver gets nothing else.
  std::vector<Op> ops;
  uint32_t slot_count = 0;                 // Slots of the calls are below this.
  uint16_t glibc_version = kGlibcDefault;  // Of the driver, hence of the model.
};

// With threads: several take turns, each call is made by one of them while the others wait.
Sequence make_sequence(uint64_t seed, size_t op_count, bool with_threads);

// "realloc(slot 12, 3000)" and the like, for people.
std::string to_text(const Op& op);

}  // namespace heapledger::heap::differential
