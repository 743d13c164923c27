// SPDX-License-Identifier: Apache-2.0
//
// Settings that a recording tells by policy events (PolicyKind::kSettingAtStart) and only where
// they are not the default: few programs have them, and a model of the process needs them all.
#pragma once

#include <cstdint>

#include "interposer/heap/settings.h"

namespace heapledger::heap {

struct StartSetting {
  uint8_t number;  // Written to traces: never reused.
  uint64_t (*get)(const Settings& settings);
  void (*set)(Settings& settings, uint64_t value);
};

inline constexpr StartSetting kStartSettings[] = {
    {1, [](const Settings& s) -> uint64_t { return s.fast_chunk_max; },
     [](Settings& s, uint64_t value) { s.fast_chunk_max = value; }},
    {2, [](const Settings& s) -> uint64_t { return s.cache_request_max; },
     [](Settings& s, uint64_t value) { s.cache_request_max = value; }},
    {3, [](const Settings& s) -> uint64_t { return s.cache_unsorted_limit; },
     [](Settings& s, uint64_t value) { s.cache_unsorted_limit = value; }},
    {4, [](const Settings& s) -> uint64_t { return static_cast<uint32_t>(s.perturb); },
     [](Settings& s, uint64_t value) { s.perturb = static_cast<int>(value); }},
    {5, [](const Settings& s) -> uint64_t { return s.arena_test; },
     [](Settings& s, uint64_t value) { s.arena_test = value; }},
    {6, [](const Settings& s) -> uint64_t { return s.glibc_version; },
     [](Settings& s, uint64_t value) { s.glibc_version = static_cast<uint16_t>(value); }},
    {7, [](const Settings& s) -> uint64_t { return s.hugetlb; },
     [](Settings& s, uint64_t value) { s.hugetlb = value; }},
    {8, [](const Settings& s) -> uint64_t { return s.threshold_is_tunable ? 1 : 0; },
     [](Settings& s, uint64_t value) { s.threshold_is_tunable = value != 0; }},
};

}  // namespace heapledger::heap
