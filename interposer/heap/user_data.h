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

// Clears at least 16 bytes. Most of what calloc clears is a few words, less than a call of memset
// costs: sizes up to 128 are covered by stores from both ends that may overlap.
template <class Os>
inline void clear_data(Os& os, void* at, size_t bytes) {
  if (WithoutData<Os> || bytes > 128) return fill_data(os, at, 0, bytes);
  char* const begin = static_cast<char*>(at);
  char* const end = begin + bytes;
  std::memset(begin, 0, 16);
  std::memset(end - 16, 0, 16);
  if (bytes <= 32) return;
  std::memset(begin + 16, 0, 16);
  std::memset(end - 32, 0, 16);
  if (bytes <= 64) return;
  std::memset(begin + 32, 0, 32);
  std::memset(end - 64, 0, 32);
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
