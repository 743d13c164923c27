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

constexpr uint64_t kRecorderMost = uint64_t{32} << 20;

}  // namespace

RecorderShare RecorderShare::of(schema::Database& db, int64_t process) {
  RecorderShare share;
  schema::Statement modules =
      db.prepare("SELECT path, start_address, end_address FROM module WHERE process = ?");
  modules.bind_all(process);
  while (modules.step()) {
    if (is_ours(std::string(modules.column_text(0)))) {
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

uint64_t other_rss_bytes(schema::Database& db, int64_t process, const PageSet& touched) {
  schema::Statement select = db.prepare(
      "SELECT start, end, kind IN ('anonymous', 'bss') AND huge_bytes = 0, name, rss_bytes FROM"
      " region WHERE snapshot = (SELECT id FROM snapshot WHERE process = ? AND rss_bytes NOTNULL"
      " ORDER BY rss_bytes DESC LIMIT 1) AND kind NOT IN ('heap', 'block', 'recorder')");
  select.bind_all(process);
  uint64_t bytes = 0;
  while (select.step()) {
    const uint64_t rss = select.column_uint(4);
    if (is_ours(std::string(select.column_text(3)))) continue;
    const bool is_anonymous = select.column_int(2) != 0;
    const uint64_t seen = touched.count(select.column_uint(0), select.column_uint(1)) * kPageBytes;
    // What nobody was seen to touch is the recorder's, unless there is more of it than it ever has:
    // a mapping that was populated or locked.
    const bool has_ours = is_anonymous && seen < rss && rss - seen <= kRecorderMost;
    bytes += has_ours ? seen : rss;
  }
  return bytes;
}

}  // namespace heapledger::analyzer
