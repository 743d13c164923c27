// SPDX-License-Identifier: Apache-2.0
// A library with one inlined call whose place is known; see symbols_test.cc.
#pragma once

namespace heapledger {

struct VictimPlace {
  const void* return_address;  // In outer's machine code, inside what was inlined from inner.
  int inner_line;              // Of the call in inner that this returns to,
  int outer_line;              // and of outer's call of inner.
};

namespace victim {
VictimPlace outer();
}

}  // namespace heapledger
