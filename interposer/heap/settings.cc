// SPDX-License-Identifier: Apache-2.0
#include "interposer/heap/settings.h"

#include <climits>
#include <cstring>

#include "interposer/base/bits.h"
#include "interposer/base/env.h"
#include "interposer/base/fatal.h"
#include "interposer/base/options.h"

namespace heapledger::heap {

namespace {

// Any of the four big parameters, whatever its value, ends the dynamic threshold for good.
void set_threshold(Settings* s, uint64_t v) {
  s->mmap_threshold = v;
  s->threshold_is_dynamic = false;
}
void set_trim(Settings* s, uint64_t v) {
  s->trim_threshold = v;
  s->threshold_is_dynamic = false;
}
void set_top_pad(Settings* s, uint64_t v) {
  s->top_pad = v;
  s->threshold_is_dynamic = false;
}
void set_mmap_max(Settings* s, uint64_t v) {
  s->mmap_max = static_cast<int>(static_cast<uint32_t>(v));
  s->threshold_is_dynamic = false;
}
void set_arena_max(Settings* s, uint64_t v) { s->arena_max = v; }
void set_arena_test(Settings* s, uint64_t v) { s->arena_test = v; }
void set_cache_count(Settings* s, uint64_t v) { s->cache_count = v; }
void set_cache_max(Settings* s, uint64_t v) { s->cache_request_max = v; }
void set_unsorted_limit(Settings* s, uint64_t v) { s->cache_unsorted_limit = v; }
void set_perturb(Settings* s, uint64_t v) { s->perturb = static_cast<uint8_t>(v); }
void set_fast_max(Settings* s, uint64_t v) {
  // Below a word's worth fastbins are off; the limit is on chunks, the parameter on requests.
  s->fast_chunk_max = v > 7 ? base::align_down(v + 8, 16) : 0;
}

// One row per tunable: its name below glibc.malloc, the variable that is its alias, its range, its
// effect.
struct Tunable {
  const char* name;
  const char* alias;
  uint64_t min;
  uint64_t max;
  void (*apply)(Settings*, uint64_t);
};
constexpr uint64_t kAny = UINT64_MAX;
constexpr Tunable kTunables[] = {
    {"mmap_threshold", "MALLOC_MMAP_THRESHOLD_", 0, kAny, set_threshold},
    {"trim_threshold", "MALLOC_TRIM_THRESHOLD_", 0, kAny, set_trim},
    {"top_pad", "MALLOC_TOP_PAD_", 0, kAny, set_top_pad},
    {"mmap_max", "MALLOC_MMAP_MAX_", 0, INT_MAX, set_mmap_max},
    {"arena_max", "MALLOC_ARENA_MAX", 1, kAny, set_arena_max},
    {"arena_test", "MALLOC_ARENA_TEST", 1, kAny, set_arena_test},
    {"perturb", "MALLOC_PERTURB_", 0, 255, set_perturb},
    {"tcache_count", nullptr, 0, 65535, set_cache_count},
    {"tcache_max", nullptr, 0, kCacheRequestMax, set_cache_max},
    {"tcache_unsorted_limit", nullptr, 0, kAny, set_unsorted_limit},
    {"mxfast", nullptr, 0, 160, set_fast_max},
};

bool apply(const Tunable& tunable, Settings* settings, const char* value) {
  uint64_t number = base::parse_tunable_number(value);
  // mmap_max is a signed int in glibc: -1 is below its least value there, and past the largest
  // here.
  if (number < tunable.min || number > tunable.max) return false;
  tunable.apply(settings, number);
  return true;
}

// heapledger's own options, one row each, applied in this order.
struct Option {
  const char* name;
  void (*apply)(Settings*, uint64_t);
  uint64_t max;
};
constexpr Option kOptions[] = {
    {"HEAPLEDGER_TRIM_THRESHOLD", set_trim, kAny},
    {"HEAPLEDGER_TOP_PAD", set_top_pad, kAny},
    {"HEAPLEDGER_MMAP_MAX", set_mmap_max, INT_MAX},
    {"HEAPLEDGER_ARENA_MAX", set_arena_max, kAny},
    {"HEAPLEDGER_TCACHE_COUNT", set_cache_count, 65535},
};

// Returns false where the value is not one the option takes.
bool apply_option_threshold(Settings* settings, const char* value) {
  const base::Threshold threshold = base::parse_threshold(value);
  switch (threshold.kind) {
    case base::ThresholdKind::kInvalid:
      return false;
    case base::ThresholdKind::kBytes:
      set_threshold(settings, threshold.bytes);
      return true;
    case base::ThresholdKind::kBrkOnly:
      set_mmap_max(settings, 0);
      return true;
    case base::ThresholdKind::kMmapOnly:
      set_threshold(settings, 0);
      return true;
  }
  return false;
}

// The value of the first entry with this name, or nullptr.
const char* find(const char* const* entries, const char* name) {
  for (; *entries != nullptr; ++entries) {
    const char* value = base::env_value_if_named(*entries, name);
    if (value != nullptr) return value;
  }
  return nullptr;
}

// The same for our own options, where an empty value counts as unset (to glibc it is a zero).
const char* find_option(const char* const* entries, const char* name) {
  const char* value = find(entries, name);
  return value != nullptr && *value != '\0' ? value : nullptr;
}

}  // namespace

bool apply_tunable(Settings* settings, const char* name, size_t name_length, const char* value) {
  for (const Tunable& tunable : kTunables) {
    if (std::strlen(tunable.name) == name_length &&
        std::strncmp(tunable.name, name, name_length) == 0) {
      return apply(tunable, settings, value);
    }
  }
  return false;
}

void apply_glibc_tunables(Settings* settings, const char* text) {
  constexpr char kPrefix[] = "glibc.malloc.";
  constexpr size_t kPrefixLength = sizeof kPrefix - 1;
  // Number parsing stops at the colon by itself, so the entries need not be copied apart.
  while (*text != '\0') {
    const size_t length = std::strcspn(text, ":");
    const size_t name_length = std::strcspn(text, "=:");
    if (name_length < length && name_length > kPrefixLength &&
        std::strncmp(text, kPrefix, kPrefixLength) == 0) {
      apply_tunable(settings, text + kPrefixLength, name_length - kPrefixLength,
                    text + name_length + 1);
    }
    text += length;
    if (*text == ':') ++text;
  }
}

void apply_environment(Settings* settings, const char* const* entries) {
  for (const Tunable& tunable : kTunables) {
    const char* value = tunable.alias != nullptr ? find(entries, tunable.alias) : nullptr;
    if (value != nullptr) apply(tunable, settings, value);
  }
  if (const char* tunables = find(entries, "GLIBC_TUNABLES")) {
    apply_glibc_tunables(settings, tunables);
  }
  if (const char* value = find_option(entries, "HEAPLEDGER_MMAP_THRESHOLD")) {
    if (!apply_option_threshold(settings, value)) {
      base::warn("HEAPLEDGER_MMAP_THRESHOLD: not a size, brk-only or mmap-only: ignored");
    }
  }
  for (const Option& option : kOptions) {
    const char* value = find_option(entries, option.name);
    if (value == nullptr) continue;
    uint64_t number = 0;
    if (base::parse_size(value, &number) && number <= option.max) {
      option.apply(settings, number);
    } else {
      base::warn("a HEAPLEDGER_* allocator setting is not a size in its range: ignored");
    }
  }
}

Settings settings_from_environment() {
  Settings settings;
  if (!base::is_secure()) apply_environment(&settings, base::env_entries());
  return settings;
}

}  // namespace heapledger::heap
