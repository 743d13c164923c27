// SPDX-License-Identifier: Apache-2.0
// The ioctl PAGEMAP_SCAN on /proc/PID/pagemap (Linux 6.7 and later): runs of pages that have what
// is asked for. It walks page tables, so a range of terabytes without pages costs next to nothing,
// where reading pagemap's entries costs 8 bytes for each.
//
// The kernel's interface: include/uapi/linux/fs.h, Documentation/admin-guide/mm/pagemap.rst;
// Debian 12's headers do not have it yet.
// Thread safety: pure but for the descriptor. errno is the ioctl's.
#pragma once

#include <sys/ioctl.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace heapledger::base {

inline constexpr uint64_t kPagePresent = 1U << 3;
inline constexpr uint64_t kPageSwapped = 1U << 4;
inline constexpr uint64_t kPageZero = 1U << 5;  // Present, but the kernel's shared page of zeros.

// A page counts if, after the bits of `inverted` are turned, it has all of `all` and, unless that
// is 0, one of `any`.
struct PageQuestion {
  uint64_t all = 0, any = 0, inverted = 0;
};

// Calls visit(begin, end) for each run of such pages in [begin, end), in order. False: the kernel
// does not have it, or refused; some runs may have been visited.
template <class Visit>
bool scan_pagemap(int fd, uint64_t begin, uint64_t end, const PageQuestion& question, Visit visit) {
  struct Region {
    uint64_t start, end, categories;
  };
  struct Arguments {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted,
        category_mask, category_anyof_mask, return_mask;
  };
  const unsigned long request = _IOWR('f', 16, Arguments);
  std::array<Region, 512> found;
  Arguments arguments{};
  arguments.size = sizeof arguments;
  arguments.end = end;
  arguments.vec = reinterpret_cast<uintptr_t>(found.data());
  arguments.vec_len = found.size();
  arguments.category_inverted = question.inverted;
  arguments.category_mask = question.all;
  arguments.category_anyof_mask = question.any;
  arguments.return_mask = question.all | question.any;
  for (uint64_t at = begin; at < end; at = arguments.walk_end) {
    arguments.start = at;
    const int count = ioctl(fd, request, &arguments);
    if (count < 0) return false;
    for (int i = 0; i < count; ++i) {
      const Region& run = found[static_cast<size_t>(i)];
      visit(run.start, run.end);
    }
    if (arguments.walk_end <= at) break;
  }
  return true;
}

}  // namespace heapledger::base
