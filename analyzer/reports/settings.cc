// SPDX-License-Identifier: Apache-2.0
#include "analyzer/reports/settings.h"

#include "analyzer/render/units.h"

namespace heapledger::analyzer {

namespace {
// Above this a size means "never": nobody has so much memory. SIZE_MAX is -1 here.
constexpr int64_t kNeverBytes = int64_t{1} << 46;

bool is_never(int64_t value) { return value < 0 || value >= kNeverBytes; }
}  // namespace

Settings settings_of(const ProcessInfo& process) {
  return {{"mmap_threshold", process.mmap_threshold},
          {"mmap_threshold_dynamic", process.mmap_threshold_dynamic},
          {"trim_threshold", process.trim_threshold},
          {"top_pad", process.top_pad},
          {"mmap_max", process.mmap_max},
          {"arena_max", process.arena_max}};
}

std::string setting_text(const std::string& name, std::optional<int64_t> value) {
  std::string text = name + "=";
  if (!value) return text + "?";
  if (name == "mmap_threshold_dynamic") return *value != 0 ? "dynamic" : "fixed";
  if (name == "mmap_threshold" && is_never(*value)) return text + "brk-only";
  if (name == "mmap_threshold" && *value == 0) return text + "mmap-only";
  if (name == "trim_threshold" && is_never(*value)) return text + "never";
  if (name == "arena_max" && *value == 0) return text + "auto";
  if (name == "mmap_max" || name == "arena_max") return text + human_count(*value);
  return text + human_bytes(*value);
}

nlohmann::ordered_json settings_json(const Settings& settings) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (const char* name : {"mmap_threshold", "mmap_threshold_dynamic", "trim_threshold", "top_pad",
                           "mmap_max", "arena_max"}) {
    const std::optional<int64_t> value = settings.at(name);
    if (!value) {
      json[name] = nullptr;
    } else if (std::string(name) == "mmap_threshold_dynamic") {
      json[name] = *value != 0;
    } else {
      json[name] = *value;
    }
  }
  return json;
}

}  // namespace heapledger::analyzer
