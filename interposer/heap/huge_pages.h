// SPDX-License-Identifier: Apache-2.0
//
// What the machine offers of huge pages, as glibc.malloc.hugetlb wants to know it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace heapledger::heap {

// The kernel's setting for transparent huge pages: who gets them.
enum class ThpMode : uint8_t {
  kUnknown,
  kAlways,   // Everybody.
  kMadvise,  // Who asks, by madvise.
  kNever,
};

struct HugePages {
  ThpMode thp_mode = ThpMode::kUnknown;
  size_t thp_bytes = 0;  // Size of a transparent huge page; 0: not known.
  size_t bytes = 0;      // Of a page from the pool: the size that was asked for; 0: there is none.
};

// Reads them from /sys and /proc. `requested`: the size of the pool's pages, 0 for the default one.
// Runs inside malloc: no allocation, no locks, errno kept.
HugePages read_huge_pages(size_t requested);

}  // namespace heapledger::heap
