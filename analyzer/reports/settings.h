// SPDX-License-Identifier: Apache-2.0
// The allocator's settings of a process, as reports show them.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "analyzer/reports/table.h"
#include "analyzer/trace_info.h"

namespace heapledger::analyzer {

// By name; nothing where it is not known.
using Settings = std::map<std::string, std::optional<int64_t>>;

Settings settings_of(const ProcessInfo& process);
// "mmap_threshold=128.0 KiB"; the extremes by their names, "mmap_threshold=brk-only".
std::string setting_text(const std::string& name, std::optional<int64_t> value);
// With mmap_threshold_dynamic as a truth value.
nlohmann::ordered_json settings_json(const Settings& settings);

}  // namespace heapledger::analyzer
