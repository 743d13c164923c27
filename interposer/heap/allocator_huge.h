// SPDX-License-Identifier: Apache-2.0
//
// glibc.malloc.hugetlb: 1 asks the kernel for transparent huge pages, by madvise on every new piece
// of memory that can hold one, and moves the break in steps of them; 2 or a size takes large
// requests and the tops of arenas from the pool of huge pages, or from ordinary ones where the pool
// is empty. The break never moves then. What each version makes of it is in glibc_version.h.
#pragma once

#include <sys/mman.h>

#include <bit>

#include "interposer/heap/allocator.h"

namespace heapledger::heap {

template <class L, OperatingSystem Os>
void Allocator<L, Os>::configure_huge_pages() {
  const bool wants_pool = settings_.hugetlb >= 2;
  HugePages pages;
  if constexpr (requires(Os os) { os.huge_pages(size_t{}); }) {
    pages = os_.huge_pages(settings_.hugetlb > 2 ? settings_.hugetlb : 0);
  }
  if (!wants_pool) {
    // Versions before 2.38 compare the mode without its terminator, on a stack that has not been
    // used: nearly always they find it (12 of 12 programs on Debian 12).
    thp_advises_ = pages.thp_mode == ThpMode::kMadvise;
    if (thp_advises_ || (rules_.thp_serves_always && pages.thp_mode == ThpMode::kAlways)) {
      thp_bytes_ = pages.thp_bytes;
    }
    return;
  }
  huge_bytes_ = pages.bytes;
  if (huge_bytes_ == 0 || (rules_.hugetlb_keeps_heaps && huge_bytes_ > kHeapBytes)) return;
  break_is_off_ = true;
  if (rules_.hugetlb_sets_threshold && !settings_.threshold_is_tunable) {
    settings_.mmap_threshold = huge_bytes_;
    settings_.threshold_is_dynamic = false;
  }
}

// Tells the kernel that this new memory is worth huge pages.
template <class L, OperatingSystem Os>
void Allocator<L, Os>::advise_huge(uintptr_t begin, size_t bytes) {
  if (!thp_advises_ || thp_bytes_ == 0 || bytes < thp_bytes_) return;
  // Only the program's own break is not at a page.
  const uintptr_t from = rules_.thp_serves_always ? base::align_up(begin, base::kPageBytes)
                                                  : base::align_down(begin, base::kPageBytes);
  os_.madvise(base::pointer_to(from), begin + bytes - from, MADV_HUGEPAGE, Cause::kAdviseHuge);
}

// mmap's flags for pages of the pool.
template <class L, OperatingSystem Os>
int Allocator<L, Os>::huge_flags(size_t page_bytes) {
  constexpr int kSizeShift = 26;  // MAP_HUGE_SHIFT.
  return MAP_HUGETLB | std::countr_zero(page_bytes) << kSizeShift;
}

// New memory in pages of that size; 0: refused.
template <class L, OperatingSystem Os>
uintptr_t Allocator<L, Os>::map_pages(size_t length, size_t page_bytes, Cause cause) {
  int flags = MAP_PRIVATE | MAP_ANONYMOUS;
  const bool is_huge = page_bytes != base::kPageBytes;
  if (is_huge) flags |= huge_flags(page_bytes);
  void* memory = os_.mmap(nullptr, length, PROT_READ | PROT_WRITE, flags, cause);
  if (memory == nullptr) return 0;
  if (!is_huge) advise_huge(base::address_of(memory), length);
  return base::address_of(memory);
}

}  // namespace heapledger::heap
