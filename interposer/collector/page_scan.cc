// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/page_scan.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "interposer/base/pagemap_scan.h"
#include "interposer/collector/proc_files.h"

namespace heapledger::collector {
namespace {

constexpr uint64_t kPage = 4096;

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
  // Resident: present, and not (hence inverted) the zero page.
  const base::PageQuestion resident{base::kPagePresent | base::kPageZero, 0, base::kPageZero};
  uint64_t at = start;
  has_ioctl_ = base::scan_pagemap(pagemap_.get(), start, end, resident,
                                  [&](uint64_t run_start, uint64_t run_end) {
                                    append_run(residency, (run_start - at) / kPage, false);
                                    append_run(residency, (run_end - run_start) / kPage, true);
                                    at = run_end;
                                  });
  if (!has_ioctl_) return scan_by_entries(start, end, residency);
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
