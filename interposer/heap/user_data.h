// SPDX-License-Identifier: Apache-2.0
//
// What the allocator does to the program's data: calloc's clearing, realloc's copying, M_PERTURB.
//
// An Os whose memory holds no program data says `static constexpr bool kHoldsData = false` and has
// `void on_write(const void* at, size_t bytes)`: it is told which bytes would have been written
// (they make pages resident), and nothing is written.
#pragma once

#include <cstddef>
#include <cstring>

namespace heapledger::heap {

template <class Os>
concept WithoutData = requires {
  requires !Os::kHoldsData;
};

template <class Os>
inline void fill_data(Os& os, void* at, int byte, size_t bytes) {
  if constexpr (WithoutData<Os>) {
    os.on_write(at, bytes);
  } else {
    std::memset(at, byte, bytes);
  }
}

template <class Os>
inline void copy_data(Os& os, void* to, const void* from, size_t bytes) {
  if constexpr (WithoutData<Os>) {
    os.on_write(to, bytes);
  } else {
    std::memcpy(to, from, bytes);
  }
}

}  // namespace heapledger::heap
