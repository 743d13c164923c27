// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay/kernel_view.h"

#include <algorithm>
#include <iterator>
#include <span>
#include <string_view>
#include <tuple>

namespace heapledger::analyzer {

namespace {

using Range = std::pair<uint64_t, uint64_t>;

constexpr std::string_view kRegions[] = {"program", "files", "stacks", "kernel", "heapledger"};

// First range that ends after `address`.
AddressRanges::const_iterator first_after(const AddressRanges& ranges, uint64_t address) {
  return std::partition_point(ranges.begin(), ranges.end(),
                              [&](const Range& range) { return range.second <= address; });
}

template <typename Visit>
void each_overlap(const AddressRanges& ranges, uint64_t start, uint64_t end, Visit visit) {
  for (auto it = first_after(ranges, start); it != ranges.end() && it->first < end; ++it) {
    visit(std::max(start, it->first), std::min(end, it->second));
  }
}

uint64_t overlap(const AddressRanges& ranges, uint64_t start, uint64_t end) {
  uint64_t bytes = 0;
  each_overlap(ranges, start, end, [&](uint64_t from, uint64_t to) { bytes += to - from; });
  return bytes;
}

// Little-endian groups of seven bits, alternately absent and resident pages.
void add_resident(std::span<const uint8_t> runs, uint64_t start, uint64_t end,
                  AddressRanges& resident) {
  uint64_t at = start;
  for (bool present = false; !runs.empty(); present = !present) {
    uint64_t pages = 0;
    for (int shift = 0; shift < 64 && !runs.empty(); shift += 7) {
      const uint8_t byte = runs.front();
      runs = runs.subspan(1);
      pages |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if ((byte & 0x80) == 0) break;
    }
    if (pages > (end - at) / kPageBytes) return;  // Damaged.
    if (present && pages != 0) resident.emplace_back(at, at + pages * kPageBytes);
    at += pages * kPageBytes;
  }
}

struct Mapping {
  uint64_t start = 0, end = 0, rss = 0, huge = 0, swap = 0, shared = 0;
  std::string kind, name, permissions;
};

struct LineName {
  const char* region;
  const char* name;
};

LineName line_of(const Mapping& mapping, const Mapping& before) {
  constexpr std::pair<const char*, LineName> kNames[] = {
      {"text", {"files", "code"}},
      {"data", {"files", "data"}},
      {"bss", {"files", "bss"}},
      {"file", {"files", "read-only data"}},
      {"shared", {"files", "shared mappings"}},
      {"stack", {"stacks", "main thread"}},
      {"thread stack", {"stacks", "other threads"}},
      {"recorder", {"heapledger", "rings"}},
      {"vdso", {"kernel", "vdso"}},
      {"heap", {"program", "break moved by the program"}},
  };
  const auto is_library = [](const Mapping& it) {
    return it.name.find("/libheapledger.so") != std::string::npos;
  };
  if (is_library(mapping) || (mapping.kind == "bss" && is_library(before))) {
    return {"heapledger", "library"};
  }
  for (const auto& [kind, line] : kNames) {
    if (mapping.kind == kind) return line;
  }
  return {"program", "anonymous mappings"};
}

void add_line(LineName line, uint64_t bytes, std::vector<RssLine>& lines) {
  if (bytes == 0) return;
  for (RssLine& known : lines) {
    if (known.region == line.region && known.name == line.name) {
      known.bytes += bytes;
      return;
    }
  }
  lines.push_back({line.region, line.name, bytes});
}

void load_resident(schema::Database& db, int64_t snapshot, KernelView& view) {
  schema::Statement select =
      db.prepare("SELECT start, pages, runs FROM residency WHERE snapshot = ? ORDER BY start");
  select.bind(1, snapshot);
  while (select.step()) {
    view.has_pages = true;
    const uint64_t start = select.column_uint(0);
    add_resident(select.column_blob(2), start, start + select.column_uint(1) * kPageBytes,
                 view.resident);
  }
}

}  // namespace

uint64_t KernelView::other_bytes() const {
  uint64_t bytes = 0;
  for (const RssLine& line : other) bytes += line.bytes;
  return bytes;
}

KernelView kernel_view(schema::Database& db, int64_t snapshot, const AddressRanges& held,
                       const AddressRanges& own, const PageSet& resident) {
  KernelView view;
  load_resident(db, snapshot, view);
  schema::Statement select = db.prepare(
      "SELECT start, end, rss_bytes, huge_bytes, swap_bytes, shared_bytes, kind,"
      " coalesce(name, ''), permissions FROM region WHERE snapshot = ? ORDER BY start");
  select.bind(1, snapshot);
  Mapping before;
  while (select.step()) {
    Mapping mapping{select.column_uint(0), select.column_uint(1), select.column_uint(2),
                    select.column_uint(3), select.column_uint(4), select.column_uint(5),
                    select.column_text(6), select.column_text(7), select.column_text(8)};
    const auto pages_in = [&](const AddressRanges& ranges) {
      uint64_t bytes = 0;
      each_overlap(ranges, mapping.start, mapping.end, [&](uint64_t from, uint64_t to) {
        bytes += view.has_pages ? overlap(view.resident, from, to)
                                : resident.count(from, to) * kPageBytes;
      });
      return bytes;
    };
    const uint64_t held_bytes = overlap(held, mapping.start, mapping.end);
    const bool all_held = held_bytes == mapping.end - mapping.start;
    const uint64_t heap = std::min(mapping.rss, all_held          ? mapping.rss
                                                : held_bytes != 0 ? pages_in(held)
                                                                  : 0);
    const bool anonymous = mapping.kind == "anonymous" || mapping.kind == "block" ||
                           mapping.kind == "thread stack" || mapping.kind == "bss";
    const uint64_t ours = anonymous && !all_held ? std::min(mapping.rss - heap, pages_in(own)) : 0;
    view.rss_bytes += mapping.rss;
    view.heap_bytes += heap;
    add_line({"heapledger", "tables"}, ours, view.other);
    add_line(line_of(mapping, before), mapping.rss - heap - ours, view.other);
    view.swap_bytes += mapping.swap;
    view.huge_bytes += mapping.huge;
    view.shared_bytes += mapping.shared;
    if (held_bytes != 0) {
      view.heap_swap_bytes += mapping.swap;
      view.heap_huge_bytes += mapping.huge;
      view.heap_shared_bytes += mapping.shared;
    }
    before = std::move(mapping);
  }
  std::sort(view.other.begin(), view.other.end(), [](const RssLine& a, const RssLine& b) {
    const auto place = [](const RssLine& line) {
      return std::find(std::begin(kRegions), std::end(kRegions), line.region) - kRegions;
    };
    return std::tuple(place(a), b.bytes, a.name) < std::tuple(place(b), a.bytes, b.name);
  });
  return view;
}

}  // namespace heapledger::analyzer
