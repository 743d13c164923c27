// SPDX-License-Identifier: Apache-2.0
// Which pages of a range are resident, as runs.
//
// Asked with the ioctl PAGEMAP_SCAN where the kernel has it (6.7): it walks page tables and returns
// runs, so a sparse range costs little, and it tells the shared zero page (PAGE_IS_PFNZERO), which
// is present but takes no memory: it counts as not resident. Otherwise the 64-bit entries of
// /proc/PID/pagemap are read; there a page of zeros cannot be told from any other without
// privilege, and counts as resident. Swapped pages are not resident.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "interposer/collector/unique_fd.h"

namespace heapledger::collector {

// The pages of one range, as table `residency` has them.
struct Residency {
  uint64_t start = 0;
  uint64_t pages = 0;
  uint64_t resident = 0;
  std::vector<uint64_t> runs;  // In pages, alternately absent and resident, absent first.
};

class PageScanner {
 public:
  explicit PageScanner(pid_t pid);

  bool is_open() const { return static_cast<bool>(pagemap_); }
  // False: the kernel refused, or the process is gone.
  bool scan(uint64_t start, uint64_t end, Residency& residency);
  // The same by reading pagemap entries: for older kernels, and for tests to compare.
  bool scan_by_entries(uint64_t start, uint64_t end, Residency& residency);

 private:
  UniqueFd pagemap_;
  bool has_ioctl_ = true;
};

}  // namespace heapledger::collector
