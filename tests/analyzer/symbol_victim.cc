// SPDX-License-Identifier: Apache-2.0
#include "tests/analyzer/symbol_victim.h"

namespace heapledger::victim {

namespace {

[[gnu::noinline]] const void* caller() { return __builtin_return_address(0); }

// The asm keeps caller() from being a tail call, so that its return address is here.
[[gnu::always_inline]] inline VictimPlace inner() {
  const int line = __LINE__ + 1;
  const void* here = caller();
  asm volatile("" : : : "memory");
  return {here, line, 0};
}

}  // namespace

VictimPlace outer() {
  const int line = __LINE__ + 1;
  VictimPlace place = inner();
  place.outer_line = line;
  return place;
}

}  // namespace heapledger::victim
