// SPDX-License-Identifier: Apache-2.0
#include "analyzer/whatif/setting_grid.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "schema/error.h"

namespace heapledger::analyzer {

namespace {

struct AxisRow {
  const char* option;
  const char* tunable;
  const char* word;   // In labels.
  const char* usual;  // Says "as glibc has it".
  const char* takes;
};
constexpr AxisRow kRows[kAxes] = {
    {"--mmap-threshold", "mmap_threshold", "mmap", "dynamic",
     "sizes, dynamic, brk-only or mmap-only"},
    {"--trim-threshold", "trim_threshold", "trim", "default", "sizes, default or never"},
    {"--top-pad", "top_pad", "pad", "default", "sizes or default"},
    {"--arena-max", "arena_max", "arenas", "auto", "numbers or auto"},
    {"--tcache-count", "tcache_count", "tcache", "default", "numbers or default"},
    {"--glibc", "", "glibc", "default", "versions from 2.33 to 2.43"}};

constexpr const AxisRow& row_of(Axis axis) { return kRows[static_cast<size_t>(axis)]; }

bool is_usual(Axis axis, const std::string& word) {
  return word == "default" || word == row_of(axis).usual;
}

// 236 for "2.36"; 0: not one that is known.
uint16_t version_of(const std::string& word) {
  if (word.size() != 4 || !word.starts_with("2.")) return 0;
  const int minor = std::atoi(word.c_str() + 2);
  const int version = 200 + minor;
  return version >= heap::kGlibcOldest && version <= heap::kGlibcNewest
             ? static_cast<uint16_t>(version)
             : uint16_t{0};
}

// What a word sets; empty where it sets nothing. Throws where it is not understood.
std::vector<std::pair<std::string, std::string>> tunables_of(Axis axis, const std::string& word) {
  const AxisRow& row = row_of(axis);
  if (is_usual(axis, word)) return {};
  if (axis == Axis::kMmapThreshold && word == "brk-only") return {{"mmap_max", "0"}};
  if (axis == Axis::kMmapThreshold && word == "mmap-only") return {{row.tunable, "0"}};
  if (axis == Axis::kTrimThreshold && word == "never") {
    return {{row.tunable, std::to_string(std::numeric_limits<size_t>::max())}};
  }
  if (axis == Axis::kGlibc && version_of(word) != 0) return {};
  uint64_t number = 0;
  if (axis == Axis::kGlibc || !heap::parse_setting(word.c_str(), &number)) {
    throw schema::Error(fmt::format("{} {}", row.option, word),
                        fmt::format("it takes {}", row.takes));
  }
  return {{row.tunable, std::to_string(number)}};
}

std::string size_word(size_t bytes) {
  if (bytes == std::numeric_limits<size_t>::max()) return "never";
  constexpr const char* kUnits[] = {"", "K", "M", "G"};
  size_t unit = 0;
  while (unit + 1 < std::size(kUnits) && bytes != 0 && bytes % 1024 == 0) {
    bytes /= 1024;
    ++unit;
  }
  return std::to_string(bytes) + kUnits[unit];
}

// The word that gives an axis its recorded value.
std::string recorded_word(Axis axis, const heap::Settings& recorded) {
  const heap::Settings usual = heap::default_settings(recorded.glibc_version);
  switch (axis) {
    case Axis::kMmapThreshold:
      if (recorded.mmap_max == 0) return "brk-only";
      return recorded.threshold_is_dynamic ? "dynamic" : size_word(recorded.mmap_threshold);
    case Axis::kTrimThreshold:
      return recorded.trim_threshold == usual.trim_threshold ? "default"
                                                             : size_word(recorded.trim_threshold);
    case Axis::kTopPad:
      return recorded.top_pad == usual.top_pad ? "default" : size_word(recorded.top_pad);
    case Axis::kArenaMax:
      return recorded.arena_max == 0 ? "auto" : std::to_string(recorded.arena_max);
    case Axis::kTcacheCount:
      return recorded.cache_count == usual.cache_count ? "default"
                                                       : std::to_string(recorded.cache_count);
    case Axis::kGlibc:
      break;
  }
  return "default";
}

// All but what axes may set: what glibc has by default for them.
heap::Settings cleared(const heap::Settings& recorded, uint16_t version) {
  const heap::Settings usual = heap::default_settings(version);
  heap::Settings settings = recorded;
  settings.glibc_version = version;
  settings.mmap_threshold = usual.mmap_threshold;
  settings.trim_threshold = usual.trim_threshold;
  settings.top_pad = usual.top_pad;
  settings.mmap_max = usual.mmap_max;
  settings.threshold_is_dynamic = usual.threshold_is_dynamic;
  settings.threshold_is_tunable = usual.threshold_is_tunable;
  settings.arena_max = usual.arena_max;
  settings.cache_count = usual.cache_count;
  if (version != recorded.glibc_version) settings.fast_chunk_max = usual.fast_chunk_max;
  return settings;
}

SettingChoice choice_of(const heap::Settings& recorded, const std::array<std::string, kAxes>& words,
                        const AxisWords& axes) {
  SettingChoice choice;
  choice.words = words;
  const std::string& glibc = words[static_cast<size_t>(Axis::kGlibc)];
  const uint16_t version = version_of(glibc) != 0 ? version_of(glibc) : recorded.glibc_version;
  choice.settings = cleared(recorded, version);
  for (size_t i = 0; i < kAxes; ++i) {
    const auto axis = static_cast<Axis>(i);
    for (auto& tunable : tunables_of(axis, words[i])) {
      heap::apply_tunable(&choice.settings, tunable.first.c_str(), tunable.first.size(),
                          tunable.second.c_str());
      choice.tunables.push_back(std::move(tunable));
    }
    if (!axes[i].empty() && !is_usual(axis, words[i])) {
      choice.label +=
          fmt::format("{}{} {}", choice.label.empty() ? "" : ", ", kRows[i].word, words[i]);
    }
  }
  if (choice.label.empty()) choice.label = "defaults";
  return choice;
}

}  // namespace

const char* axis_option(Axis axis) { return row_of(axis).option; }
const char* axis_words(Axis axis) { return row_of(axis).takes; }

std::vector<std::string> parse_axis(Axis axis, const std::string& list) {
  std::vector<std::string> words;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    words.push_back(list.substr(begin, end - begin));
    tunables_of(axis, words.back());
    begin = end + 1;
  }
  return words;
}

std::string SettingChoice::tunables_text() const {
  std::string text;
  for (const auto& [name, value] : tunables) {
    text += fmt::format("{}glibc.malloc.{}={}", text.empty() ? "" : ":", name, value);
  }
  return text;
}

std::vector<SettingChoice> setting_grid(const heap::Settings& recorded, const AxisWords& axes) {
  std::array<std::vector<std::string>, kAxes> words = axes;
  std::array<std::string, kAxes> at_recording;
  size_t combinations = 1;
  for (size_t i = 0; i < kAxes; ++i) {
    at_recording[i] = recorded_word(static_cast<Axis>(i), recorded);
    if (words[i].empty()) words[i].push_back(at_recording[i]);
    combinations *= words[i].size();
  }
  std::vector<SettingChoice> grid;
  grid.push_back(choice_of(recorded, at_recording, {}));
  grid.front().settings = recorded;
  grid.front().label = "as recorded";
  for (size_t number = 0; number < combinations; ++number) {
    std::array<std::string, kAxes> chosen;
    size_t rest = number;
    for (size_t i = kAxes; i-- > 0; rest /= words[i].size()) {
      chosen[i] = words[i][rest % words[i].size()];
    }
    SettingChoice choice = choice_of(recorded, chosen, axes);
    const auto same = [&](const SettingChoice& other) { return other.settings == choice.settings; };
    const auto known = std::find_if(grid.begin(), grid.end(), same);
    if (known == grid.end()) {
      grid.push_back(std::move(choice));
    } else if (known == grid.begin()) {
      known->label = choice.label + ", as recorded";
    }
  }
  return grid;
}

AxisWords default_axes() {
  AxisWords axes;
  axes[static_cast<size_t>(Axis::kMmapThreshold)] = {
      "dynamic", "64K", "128K", "256K", "512K", "1M", "2M", "4M", "8M", "16M", "32M", "brk-only"};
  axes[static_cast<size_t>(Axis::kTrimThreshold)] = {"default", "1M", "8M", "64M", "never"};
  axes[static_cast<size_t>(Axis::kTopPad)] = {"default", "1M", "16M"};
  return axes;
}

}  // namespace heapledger::analyzer
