// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/page_scan.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "interposer/collector/proc_files.h"

namespace heapledger::collector {
namespace {

constexpr uint64_t kPage = 4096;

// The kernel's interface (include/uapi/linux/fs.h, Documentation/admin-guide/mm/pagemap.rst), which
// Debian 12's headers do not have yet.
struct PageRegion {
  uint64_t start, end, categories;
};
struct ScanArguments {
  uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted,
      category_mask, category_anyof_mask, return_mask;
};
constexpr uint64_t kIsPresent = 1U << 3;
constexpr uint64_t kIsPfnZero = 1U << 5;
const unsigned long kPagemapScan = _IOWR('f', 16, ScanArguments);

constexpr uint64_t kEntryPresent = uint64_t{1} << 63;

// Appends "`pages` pages, resident or not" to runs that alternate.
void append_run(Residency& residency, uint64_t pages, bool resident) {
  if (pages == 0) return;
  std::vector<uint64_t>& runs = residency.runs;
  const bool last_is_resident = !runs.empty() && runs.size() % 2 == 0;
  if (!runs.empty() && last_is_resident == resident) {
    runs.back() += pages;
  } else {
    if (runs.empty() && resident) runs.push_back(0);
    runs.push_back(pages);
  }
  if (resident) residency.resident += pages;
}

}  // namespace

PageScanner::PageScanner(pid_t pid)
    : pagemap_(open(proc_path(pid, "pagemap").c_str(), O_RDONLY | O_CLOEXEC)) {}

bool PageScanner::scan(uint64_t start, uint64_t end, Residency& residency) {
  if (!has_ioctl_) return scan_by_entries(start, end, residency);
  residency = {start, (end - start) / kPage, 0, {}};
  std::array<PageRegion, 512> found{};
  ScanArguments arguments{};
  arguments.size = sizeof arguments;
  arguments.start = start;
  arguments.end = end;
  arguments.vec = reinterpret_cast<uintptr_t>(found.data());
  arguments.vec_len = found.size();
  // Resident: present, and not (hence inverted) the zero page.
  arguments.category_inverted = kIsPfnZero;
  arguments.category_mask = kIsPresent | kIsPfnZero;
  arguments.return_mask = kIsPresent;
  uint64_t at = start;
  while (arguments.start < end) {
    const int count = ioctl(pagemap_.get(), kPagemapScan, &arguments);
    if (count < 0) {
      has_ioctl_ = false;
      return scan_by_entries(start, end, residency);
    }
    for (int i = 0; i < count; ++i) {
      const PageRegion& run = found[static_cast<size_t>(i)];
      append_run(residency, (run.start - at) / kPage, false);
      append_run(residency, (run.end - run.start) / kPage, true);
      at = run.end;
    }
    if (arguments.walk_end <= arguments.start) break;
    arguments.start = arguments.walk_end;
  }
  append_run(residency, (end - at) / kPage, false);
  return true;
}

bool PageScanner::scan_by_entries(uint64_t start, uint64_t end, Residency& residency) {
  residency = {start, (end - start) / kPage, 0, {}};
  std::array<uint64_t, 4096> entries{};
  for (uint64_t at = start; at < end;) {
    const size_t wanted = std::min<uint64_t>(entries.size(), (end - at) / kPage);
    if (wanted == 0) break;
    const ssize_t got = pread(pagemap_.get(), entries.data(), wanted * sizeof(uint64_t),
                              static_cast<off_t>(at / kPage * sizeof(uint64_t)));
    if (got <= 0) return false;
    const size_t count = static_cast<size_t>(got) / sizeof(uint64_t);
    if (count == 0) return false;
    for (size_t i = 0; i < count; ++i) {
      append_run(residency, 1, (entries[i] & kEntryPresent) != 0);
    }
    at += count * kPage;
  }
  return true;
}

}  // namespace heapledger::collector
