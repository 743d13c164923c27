// SPDX-License-Identifier: Apache-2.0
// Combinations of allocator settings, each as what a user would deploy: a list of glibc tunables.
//
// An axis is a list of words for one setting ("128K,32M,dynamic"); the grid is every combination.
// A setting without an axis stays as it was recorded. What a combination means is decided by the
// allocator's own reading of GLIBC_TUNABLES, so also that any of the four thresholds turns the
// dynamic one off.
// Thread safety: plain values.
#pragma once

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "interposer/heap/settings.h"

namespace heapledger::analyzer {

enum class Axis : uint8_t {
  kMmapThreshold,  // Sizes, dynamic, brk-only, mmap-only.
  kTrimThreshold,  // Sizes, default, never.
  kTopPad,         // Sizes, default.
  kArenaMax,       // Numbers, auto.
  kTcacheCount,    // Numbers, default.
  kGlibc,          // Versions: 2.36.
};
inline constexpr size_t kAxes = 6;
// Words per axis, as given; an empty list: as recorded.
using AxisWords = std::array<std::vector<std::string>, kAxes>;

const char* axis_option(Axis axis);  // "--mmap-threshold"
const char* axis_words(Axis axis);   // "sizes, dynamic, brk-only or mmap-only"

// "128K,1M" -> words. Throws Error that names the option where one is not understood.
std::vector<std::string> parse_axis(Axis axis, const std::string& list);

struct SettingChoice {
  std::string label;                                          // "mmap 256K, trim never"
  std::vector<std::pair<std::string, std::string>> tunables;  // Name without glibc.malloc.
  std::array<std::string, kAxes> words;                       // One per axis.
  heap::Settings settings;

  // As GLIBC_TUNABLES takes it; empty: nothing to set.
  std::string tunables_text() const;
};

// The recorded settings first, then the combinations that differ from it and from each other.
std::vector<SettingChoice> setting_grid(const heap::Settings& recorded, const AxisWords& axes);

// What is swept where nobody says what: thresholds from 64 KiB to 32 MiB and their extremes, with
// trim thresholds and top pads that go with them.
AxisWords default_axes();

}  // namespace heapledger::analyzer
