// SPDX-License-Identifier: Apache-2.0
//
// The numbers that steer the allocator: glibc's malloc parameters under glibc's defaults, and where
// they come from.
//
// In rising precedence: glibc's defaults; the MALLOC_* variables; GLIBC_TUNABLES; heapledger's own
// HEAPLEDGER_* variables (set by the options of `heapledger record`). The first two follow
// the parsing of the glibc version to the letter. A plain struct: copy it freely.
#pragma once

#include <cstddef>
#include <cstdint>

#include "interposer/heap/glibc_version.h"

namespace heapledger::heap {

inline constexpr size_t kDefaultThreshold = 128 * 1024;  // mmap, trim and top_pad alike.
inline constexpr size_t kDynamicThresholdMax =
    32 * 1024 * 1024;                             // A larger freed mapping raises nothing.
inline constexpr size_t kCacheRequestMax = 1032;  // The largest request a thread cache holds.
inline constexpr size_t kLargeCacheRequestMax =
    4 * 1024 * 1024 - 24;  // The same, where the version has large cache bins: nb below 4 MiB.

struct Settings {
  uint16_t glibc_version = kGlibcDefault;  // Whose decisions are taken; see glibc_version.h.
  size_t mmap_threshold =
      kDefaultThreshold;  // From this nb on a request may get a mapping of its own.
  size_t trim_threshold =
      kDefaultThreshold;               // From this size on the top is trimmed; SIZE_MAX: never.
  size_t top_pad = kDefaultThreshold;  // Added to each growth, left by each trim.
  int mmap_max = 65536;                // Mapped blocks at one time; <= 0: none.
  bool threshold_is_dynamic = true;    // Until one of the four above is set by anybody.
  size_t arena_max = 0;                // 0: by the number of CPUs.
  size_t arena_test = 8;               // Arenas made before the CPUs are counted.
  size_t cache_count = 7;              // Blocks per size in a thread's cache; 0: none.
  size_t cache_request_max = kCacheRequestMax;  // tcache_max: the largest request that is cached.
  size_t cache_unsorted_limit = 0;  // Unsorted chunks looked at while the cache fills; 0: all.
  size_t fast_chunk_max = 128;      // The largest nb that goes to a fastbin; 0: none (M_MXFAST).
  int perturb = 0;     // Non-zero, not only in its low byte: fill new memory with that byte's
                       // complement, freed memory with it.
  size_t hugetlb = 0;  // Huge pages: 0 none, 1 transparent, 2 the default size, else a size.
  bool threshold_is_tunable = false;  // mmap_threshold was set before the first call.

  bool operator==(const Settings&) const = default;
};

// All zero: what a constant-initialised allocator holds before its first call, so that it needs no
// space in the file.
inline constexpr Settings kNoSettings{.glibc_version = 0,
                                      .mmap_threshold = 0,
                                      .trim_threshold = 0,
                                      .top_pad = 0,
                                      .mmap_max = 0,
                                      .threshold_is_dynamic = false,
                                      .arena_max = 0,
                                      .arena_test = 0,
                                      .cache_count = 0,
                                      .cache_request_max = 0,
                                      .cache_unsorted_limit = 0,
                                      .fast_chunk_max = 0,
                                      .perturb = 0,
                                      .hugetlb = 0,
                                      .threshold_is_tunable = false};

// What a program of that glibc gets without any setting.
constexpr Settings default_settings(uint16_t glibc_version) {
  const GlibcRules rules = glibc_rules(glibc_version);
  Settings settings;
  settings.glibc_version = glibc_version;
  settings.cache_count = rules.cache_count;
  if (!rules.has_fastbins) settings.fast_chunk_max = 0;
  return settings;
}

// A size as heapledger's options take it: digits with an optional K, M or G. Returns false, and
// leaves *bytes alone, for anything else.
bool parse_setting(const char* text, uint64_t* bytes);

// Applies one GLIBC_TUNABLES entry by its tunable name, e.g. "mmap_threshold" = "65536"; a colon
// ends the value. Values outside the tunable's range and unknown names change nothing. Returns
// whether it took effect.
bool apply_tunable(Settings* settings, const char* name, size_t name_length, const char* value);

// Applies a whole GLIBC_TUNABLES string (colon-separated name=value; entries outside glibc.malloc
// are skipped), by the rules of settings->glibc_version.
void apply_glibc_tunables(Settings* settings, const char* text);

// Applies an environment in full: `entries` are NAME=value, ending with nullptr. A bad HEAPLEDGER_*
// value is ignored with one line on stderr (outcome "bad configuration").
void apply_environment(Settings* settings, const char* const* entries);

// Defaults of the glibc that this process runs on plus its initial environment; defaults alone
// where it runs with more rights than its caller. No allocation, no locks, errno kept: usable at
// the first malloc call.
Settings settings_from_environment();

}  // namespace heapledger::heap
