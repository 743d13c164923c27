// SPDX-License-Identifier: Apache-2.0
#include "analyzer/whatif/recorder_share.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "analyzer/replay/page_set.h"

namespace heapledger::analyzer {

namespace {

constexpr const char* kShim = "libheapledger.so";
constexpr const char* kUnwinder = "libunwind";
constexpr uint64_t kRecorderMost = uint64_t{32} << 20;
// Modules that are noted at one look follow each other closely; what dlopen loads takes longer.
constexpr int64_t kOneLookNs = 100'000;
// A fault on a file maps what lies around it, too, in windows of so many bytes (the kernel's
// fault_around_bytes, 64 KiB unless somebody changed it).
constexpr uint64_t kFaultAroundBytes = uint64_t{64} << 10;

std::string file_name(std::string_view path) {
  return std::string(path.substr(path.rfind('/') + 1));
}

// The pages of [start, end), a mapping of a file, that faults on `touched` made resident.
PageSet brought_in(const PageSet& touched, uint64_t start, uint64_t end) {
  PageSet pages;
  touched.for_each(start, end, [&](uint64_t at) {
    const uint64_t window = at & ~(kFaultAroundBytes - 1);
    pages.add_range(std::max(start, window), std::min(end, window + kFaultAroundBytes));
  });
  return pages;
}

}  // namespace

RecorderShare RecorderShare::of(schema::Database& db, int64_t process) {
  RecorderShare share;
  schema::Statement modules = db.prepare(
      "SELECT path, start_address, end_address, start_ns FROM module WHERE process = ? ORDER BY"
      " id");
  modules.bind_all(process);
  // The first look found what the program needs by itself.
  bool is_first_look = true;
  bool is_unwinders = false;
  int64_t before_ns = 0;
  for (bool is_first = true; modules.step(); is_first = false) {
    const std::string name = file_name(modules.column_text(0));
    // None: it was there before the recording.
    const int64_t start_ns = modules.column_optional_int(3).value_or(before_ns);
    if (!is_first && start_ns - before_ns > kOneLookNs) is_first_look = is_unwinders = false;
    before_ns = start_ns;
    is_unwinders = is_unwinders || (!is_first_look && name.starts_with(kUnwinder));
    if (name == kShim || is_unwinders) {
      share.modules_.emplace_back(modules.column_uint(1), modules.column_uint(2));
    }
  }
  return share;
}

bool RecorderShare::has(uint64_t address) const {
  return std::any_of(modules_.begin(), modules_.end(), [address](const auto& range) {
    return range.first <= address && address < range.second;
  });
}

uint64_t other_rss_bytes(schema::Database& db, int64_t process, const RecorderShare& recorder,
                         const PageSet& touched, const PageSet& touched_by_recorder) {
  schema::Statement select = db.prepare(
      "SELECT start, end, kind IN ('anonymous', 'bss') AND huge_bytes = 0, kind IN ('file',"
      " 'text'), rss_bytes FROM region WHERE snapshot = (SELECT id FROM snapshot WHERE process = ?"
      " AND rss_bytes NOTNULL ORDER BY rss_bytes DESC LIMIT 1) AND kind NOT IN ('heap', 'block',"
      " 'recorder')");
  select.bind_all(process);
  uint64_t bytes = 0;
  while (select.step()) {
    const uint64_t start = select.column_uint(0);
    const uint64_t end = select.column_uint(1);
    const uint64_t rss = select.column_uint(4);
    if (recorder.has(start)) continue;
    uint64_t ours = 0;
    if (select.column_int(2) != 0) {
      const uint64_t seen = touched.count(start, end) * kPageBytes;
      // What nobody was seen to touch is the recorder's, unless there is more of it than it ever
      // has: a mapping that was populated or locked.
      if (seen < rss && rss - seen <= kRecorderMost) ours = rss - seen;
    } else if (select.column_int(3) != 0) {
      PageSet pages = brought_in(touched_by_recorder, start, end);
      pages.remove_common(brought_in(touched, start, end), start, end);
      ours = std::min(rss, pages.count(start, end) * kPageBytes);
    }
    bytes += rss - ours;
  }
  return bytes;
}

}  // namespace heapledger::analyzer
