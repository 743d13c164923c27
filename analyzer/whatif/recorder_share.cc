// SPDX-License-Identifier: Apache-2.0
#include "analyzer/whatif/recorder_share.h"

#include <algorithm>
#include <limits>
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
// Smaller steps of what is not heap are taken together: each costs a sweep a look per setting.
constexpr uint64_t kStepLeast = uint64_t{16} << 10;
constexpr uint64_t kStepsMost = 512;

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

// A mapping at the moment that is counted, with what of it is resident for the program's sake.
struct CountedRegion {
  uint64_t start, end;
  bool is_file;
  uint64_t pages;
  uint64_t brought_in = 0;  // Of `pages`: by touches that were recorded.
};

std::vector<CountedRegion> counted_regions(schema::Database& db, int64_t snapshot,
                                           const RecorderShare& recorder, const PageSet& touched,
                                           const PageSet& touched_by_recorder) {
  schema::Statement select = db.prepare(
      "SELECT start, end, kind IN ('anonymous', 'bss', 'thread stack') AND huge_bytes = 0,"
      " kind IN ('file', 'text'), rss_bytes FROM region WHERE snapshot = ? AND kind NOT IN ('heap',"
      " 'block', 'recorder') ORDER BY start");
  select.bind_all(snapshot);
  std::vector<CountedRegion> regions;
  while (select.step()) {
    CountedRegion region{select.column_uint(0), select.column_uint(1), select.column_int(3) != 0,
                         select.column_uint(4) / kPageBytes};
    if (recorder.has(region.start)) continue;
    uint64_t ours = 0;
    if (select.column_int(2) != 0) {
      const uint64_t seen = touched.count(region.start, region.end);
      // What nobody was seen to touch is the recorder's (its stacks with their guards look like a
      // thread's), unless there is more of it than it ever has: a mapping that was populated or
      // locked.
      if (seen < region.pages && region.pages - seen <= kRecorderMost / kPageBytes) {
        ours = region.pages - seen;
      }
    } else if (region.is_file) {
      PageSet pages = brought_in(touched_by_recorder, region.start, region.end);
      pages.remove_common(brought_in(touched, region.start, region.end), region.start, region.end);
      ours = std::min(region.pages, pages.count(region.start, region.end));
    }
    region.pages -= ours;
    regions.push_back(region);
  }
  return regions;
}

// How many pages of its region a touch brings in that none before it has.
uint64_t fresh_pages(const CountedRegion& region, uint64_t address, PageSet& seen) {
  uint64_t start = address & ~(kPageBytes - 1);
  uint64_t end = start + kPageBytes;
  if (region.is_file) {
    start = std::max(region.start, address & ~(kFaultAroundBytes - 1));
    end = std::min(region.end, (address & ~(kFaultAroundBytes - 1)) + kFaultAroundBytes);
  }
  const uint64_t fresh = (end - start) / kPageBytes - seen.count(start, end);
  seen.add_range(start, end);
  return fresh;
}

// The mapping that `address` lies in; null: none that was counted.
CountedRegion* region_of(std::vector<CountedRegion>& regions, uint64_t address) {
  const auto region =
      std::upper_bound(regions.begin(), regions.end(), address,
                       [](uint64_t at, const CountedRegion& other) { return at < other.end; });
  return region == regions.end() || address < region->start ? nullptr : &*region;
}

// The largest look at RSS, and how much more there was at most afterwards, by the kernel.
struct Counted {
  int64_t time_ns = 0;
  uint64_t grown_bytes_max = 0;
};

std::vector<OtherRss::Step> steps_of(std::vector<CountedRegion>& regions,
                                     const std::vector<OtherTouch>& touches,
                                     const Counted& counted) {
  std::vector<OtherRss::Step> gains;
  PageSet seen;
  uint64_t gained = 0, late_bytes = 0, grown = 0;
  for (const OtherTouch& touch : touches) {
    CountedRegion* region = region_of(regions, touch.address);
    if (region == nullptr) {
      // Mapped later, or gone by then. No look says how long that stays, so the kernel's peak is
      // the limit.
      const uint64_t page = touch.address & ~(kPageBytes - 1);
      if (touch.time_ns <= counted.time_ns || grown + kPageBytes > counted.grown_bytes_max ||
          seen.contains(page)) {
        continue;
      }
      seen.add(page);
      grown += kPageBytes;
      gained += kPageBytes;
      gains.push_back({touch.time_ns, kPageBytes});
      continue;
    }
    uint64_t pages = fresh_pages(*region, touch.address, seen);
    if (touch.by_start_up || touch.time_ns <= counted.time_ns) {
      pages = std::min(pages, region->pages - region->brought_in);
      region->brought_in += pages;
    }
    if (pages == 0) continue;
    if (touch.by_start_up) {
      late_bytes += pages * kPageBytes;
      continue;
    }
    gained += pages * kPageBytes;
    gains.push_back({touch.time_ns, pages * kPageBytes});
  }
  uint64_t bytes = 0;
  for (const CountedRegion& region : regions)
    bytes += (region.pages - region.brought_in) * kPageBytes;
  std::vector<OtherRss::Step> steps = {{std::numeric_limits<int64_t>::min(), bytes}};
  const uint64_t step_least = std::max(kStepLeast, gained / kStepsMost);
  for (size_t i = 0; i < gains.size(); ++i) {
    bytes += gains[i].bytes;
    if (bytes - steps.back().bytes >= step_least || i + 1 == gains.size()) {
      steps.push_back({gains[i].time_ns, bytes});
    }
  }
  if (late_bytes != 0) {
    steps.push_back({std::numeric_limits<int64_t>::max(), bytes + late_bytes});
  }
  return steps;
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

OtherRss other_rss(schema::Database& db, int64_t process, const RecorderShare& recorder,
                   const std::vector<OtherTouch>& touches, const PageSet& touched_by_recorder) {
  schema::Statement snapshot = db.prepare(
      "SELECT id, time_ns, rss_bytes, max(coalesce(rss_peak_bytes, 0), (SELECT"
      " coalesce(max(rss_peak_bytes), 0) FROM snapshot WHERE process = ?1)) FROM snapshot WHERE"
      " process = ?1 AND rss_bytes NOTNULL ORDER BY rss_bytes DESC LIMIT 1");
  snapshot.bind_all(process);
  OtherRss result;
  std::vector<CountedRegion> regions;
  Counted counted;
  if (snapshot.step()) {
    const uint64_t rss_bytes = snapshot.column_uint(2);
    counted = {snapshot.column_int(1), std::max(snapshot.column_uint(3), rss_bytes) - rss_bytes};
    PageSet touched;
    for (const OtherTouch& touch : touches) touched.add(touch.address);
    regions = counted_regions(db, snapshot.column_int(0), recorder, touched, touched_by_recorder);
  }
  for (const CountedRegion& region : regions) result.bytes += region.pages * kPageBytes;
  result.steps = steps_of(regions, touches, counted);
  return result;
}

}  // namespace heapledger::analyzer
