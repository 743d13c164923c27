// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/smaps.h"

#include <charconv>
#include <iterator>

namespace heapledger::collector {
namespace {

constexpr const char* kKindNames[] = {"text",         "data",     "bss",       "heap",
                                      "block",        "file",     "anonymous", "stack",
                                      "thread stack", "recorder", "vdso",      "shared"};
constexpr uint64_t kGuardBytesMax = 1U << 20;  // Larger inaccessible mappings are reservations.

std::string_view take_word(std::string_view& line) {
  const size_t start = std::min(line.find_first_not_of(' '), line.size());
  line.remove_prefix(start);
  const size_t end = std::min(line.find(' '), line.size());
  const std::string_view word = line.substr(0, end);
  line.remove_prefix(end);
  return word;
}

bool parse_hex(std::string_view text, uint64_t& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  return error == std::errc() && end == text.data() + text.size();
}

// "55d0-55e0 rw-p 00001000 08:01 1234   /path with spaces"
bool parse_header(std::string_view line, MemoryRegion& region) {
  const std::string_view range = take_word(line);
  const size_t dash = range.find('-');
  if (dash == range.npos || !parse_hex(range.substr(0, dash), region.start) ||
      !parse_hex(range.substr(dash + 1), region.end) || region.end <= region.start) {
    return false;
  }
  region.permissions = take_word(line);
  take_word(line);  // Offset.
  take_word(line);  // Device.
  const std::string_view inode = take_word(line);
  std::from_chars(inode.data(), inode.data() + inode.size(), region.inode);
  const size_t name = line.find_first_not_of(' ');
  if (name != line.npos) region.name = line.substr(name);
  return region.permissions.size() == 4;
}

void parse_value(std::string_view line, MemoryRegion& region) {
  const size_t colon = line.find(':');
  if (colon == line.npos) return;
  const std::string_view label = line.substr(0, colon);
  std::string_view rest = line.substr(colon + 1);
  const std::string_view digits = take_word(rest);
  uint64_t kib = 0;
  std::from_chars(digits.data(), digits.data() + digits.size(), kib);
  const uint64_t bytes = kib * 1024;
  if (label == "Rss") region.rss_bytes = bytes;
  if (label == "Shared_Clean" || label == "Shared_Dirty") region.shared_bytes += bytes;
  if (label == "Pss") region.pss_bytes = bytes;
  if (label == "Swap") region.swap_bytes = bytes;
  if (label == "Private_Dirty") region.private_dirty_bytes = bytes;
  if (label == "Anonymous") region.anonymous_bytes = bytes;
  if (label == "AnonHugePages") region.huge_bytes = bytes;
}

RegionKind kind_of(const MemoryRegion& region, const MemoryRegion* before) {
  const std::string& name = region.name;
  if (name.starts_with("/memfd:heapledger")) return RegionKind::kRecorder;
  if (name == "[heap]") return RegionKind::kHeap;
  if (name == "[stack]") return RegionKind::kStack;
  if (name.starts_with("[v"))
    return RegionKind::kVdso;  // [vdso], [vvar], [vvar_vclock], [vsyscall]
  if (region.permissions[3] == 's') return RegionKind::kShared;
  if (name.starts_with("/")) {
    if (region.permissions[2] == 'x') return RegionKind::kText;
    return region.permissions[1] == 'w' ? RegionKind::kData : RegionKind::kFile;
  }
  const bool touches = before != nullptr && before->end == region.start;
  if (touches && region.permissions.starts_with("rw")) {
    if (before->kind == RegionKind::kData) return RegionKind::kBss;
    if (before->name.empty() && before->permissions.starts_with("---") &&
        before->size_bytes() <= kGuardBytesMax) {
      return RegionKind::kThreadStack;
    }
  }
  return RegionKind::kAnonymous;
}

}  // namespace

const char* region_kind_name(RegionKind kind) {
  static_assert(std::size(kKindNames) == static_cast<size_t>(RegionKind::kShared) + 1);
  return kKindNames[static_cast<size_t>(kind)];
}

std::vector<MemoryRegion> parse_smaps(std::string_view text) {
  std::vector<MemoryRegion> regions;
  bool inside = false;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    // A header begins with a hexadecimal address, a value with a capital letter; "A".."F" begin
    // labels only, because the kernel writes addresses in lower case.
    const bool header =
        !line.empty() && ((line[0] >= '0' && line[0] <= '9') || (line[0] >= 'a' && line[0] <= 'f'));
    if (header) {
      MemoryRegion region;
      inside = parse_header(line, region);
      if (!inside) continue;
      region.kind = kind_of(region, regions.empty() ? nullptr : &regions.back());
      regions.push_back(std::move(region));
    } else if (inside) {
      parse_value(line, regions.back());
    }
  }
  return regions;
}

}  // namespace heapledger::collector
