// SPDX-License-Identifier: Apache-2.0
#include "analyzer/whatif/recorder_share.h"

#include <algorithm>
#include <string>

#include "analyzer/replay/page_set.h"

namespace heapledger::analyzer {

namespace {

bool is_ours(const std::string& path) {
  const std::string name = path.substr(path.rfind('/') + 1);
  return name == "libheapledger.so" || name.starts_with("libunwind");
}

bool meets(const std::vector<std::pair<uint64_t, uint64_t>>& ranges, uint64_t start, uint64_t end) {
  return std::any_of(ranges.begin(), ranges.end(),
                     [&](const auto& range) { return range.first < end && start < range.second; });
}

}  // namespace

RecorderShare RecorderShare::of(schema::Database& db, int64_t process) {
  RecorderShare share;
  schema::Statement modules =
      db.prepare("SELECT path, start_address, end_address FROM module WHERE process = ?");
  modules.bind_all(process);
  while (modules.step()) {
    if (is_ours(std::string(modules.column_text(0)))) {
      share.code_.emplace_back(modules.column_uint(1), modules.column_uint(2));
    }
  }
  schema::Statement calls = db.prepare(
      "SELECT result, arg1 FROM syscall WHERE process = ? AND origin = 'recorder'"
      " AND name = 'mmap' AND result > 0");
  calls.bind_all(process);
  while (calls.step()) {
    share.memory_.emplace_back(calls.column_uint(0), calls.column_uint(0) + calls.column_uint(1));
  }
  return share;
}

bool RecorderShare::is_code(uint64_t address) const { return meets(code_, address, address + 1); }

bool RecorderShare::meets_memory(uint64_t start, uint64_t end) const {
  return meets(memory_, start, end);
}

uint64_t other_rss_bytes(schema::Database& db, int64_t process, const RecorderShare& recorder,
                         const PageSet& touched) {
  schema::Statement select = db.prepare(
      "SELECT start, end, kind, name, rss_bytes FROM region WHERE snapshot = (SELECT id FROM"
      " snapshot WHERE process = ? AND rss_bytes NOTNULL ORDER BY rss_bytes DESC LIMIT 1)"
      " AND kind NOT IN ('heap', 'block', 'recorder')");
  select.bind_all(process);
  uint64_t bytes = 0;
  while (select.step()) {
    const uint64_t start = select.column_uint(0);
    const uint64_t end = select.column_uint(1);
    const uint64_t rss = select.column_uint(4);
    if (is_ours(std::string(select.column_text(3)))) continue;
    const bool mixed = select.column_text(2) == "anonymous" && recorder.meets_memory(start, end);
    bytes += mixed ? std::min(rss, touched.count(start, end) * kPageBytes) : rss;
  }
  return bytes;
}

}  // namespace heapledger::analyzer
