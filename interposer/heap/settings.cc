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
  s->threshold_is_tunable = true;
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
void set_perturb(Settings* s, uint64_t v) { s->perturb = static_cast<int>(v); }
void set_hugetlb(Settings* s, uint64_t v) { s->hugetlb = v; }
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
  bool is_narrow;  // An int32_t in glibc.
};
constexpr uint64_t kAny = UINT64_MAX;
constexpr Tunable kTunables[] = {
    {"mmap_threshold", "MALLOC_MMAP_THRESHOLD_", 0, kAny, set_threshold, false},
    {"trim_threshold", "MALLOC_TRIM_THRESHOLD_", 0, kAny, set_trim, false},
    {"top_pad", "MALLOC_TOP_PAD_", 0, kAny, set_top_pad, false},
    {"mmap_max", "MALLOC_MMAP_MAX_", 0, INT_MAX, set_mmap_max, true},
    {"arena_max", "MALLOC_ARENA_MAX", 1, kAny, set_arena_max, false},
    {"arena_test", "MALLOC_ARENA_TEST", 1, kAny, set_arena_test, false},
    {"perturb", "MALLOC_PERTURB_", 0, 255, set_perturb, true},
    {"tcache_count", nullptr, 0, 65535, set_cache_count, false},
    {"tcache_max", nullptr, 0, kCacheRequestMax, set_cache_max, false},
    {"tcache_unsorted_limit", nullptr, 0, kAny, set_unsorted_limit, false},
    {"mxfast", nullptr, 0, 160, set_fast_max, false},
    {"hugetlb", nullptr, 0, kAny, set_hugetlb, false},
};

bool is_known(const Tunable& tunable, const GlibcRules& rules) {
  return (tunable.apply != set_fast_max || rules.has_fastbins) &&
         (tunable.apply != set_hugetlb || rules.has_hugetlb);
}
// The largest value that this version takes.
uint64_t largest(const Tunable& tunable, const GlibcRules& rules) {
  if (tunable.apply == set_threshold && rules.threshold_is_bounded) return kDynamicThresholdMax;
  if (tunable.apply == set_cache_max && rules.has_large_cache) return kLargeCacheRequestMax;
  return tunable.max;
}

// False: nothing has changed.
bool apply(const Tunable& tunable, Settings* settings, const char* value, size_t length) {
  const GlibcRules rules = glibc_rules(settings->glibc_version);
  const char* end = nullptr;
  uint64_t number = base::parse_tunable_number(value, &end);
  if (rules.tunables_are_strict) {
    if (end != value + length) return false;
    if (tunable.is_narrow) number = static_cast<uint64_t>(static_cast<int32_t>(number));
  }
  // What is signed in glibc and negative is below its least value there, and past the largest here.
  if (!is_known(tunable, rules) || number < tunable.min || number > largest(tunable, rules)) {
    return false;
  }
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

// One piece of a GLIBC_TUNABLES string.
struct Entry {
  const char* name = nullptr;  // Null: behind the last one.
  size_t name_length = 0;
  const char* value = nullptr;  // Null: no "=" in it.
  size_t value_length = 0;
};

Entry first_entry(const char* text) {
  if (*text == '\0') return {};
  Entry entry{text, std::strcspn(text, "=:"), nullptr, 0};
  if (text[entry.name_length] != '=') return entry;
  entry.value = text + entry.name_length + 1;
  entry.value_length = std::strcspn(entry.value, ":");
  return entry;
}
Entry next_entry(const Entry& entry) {
  const char* end =
      entry.value == nullptr ? entry.name + entry.name_length : entry.value + entry.value_length;
  return *end == ':' ? first_entry(end + 1) : Entry{};
}

bool same_name(const Entry& a, const Entry& b) {
  return a.name_length == b.name_length && std::strncmp(a.name, b.name, a.name_length) == 0;
}
bool comes_again(const Entry& entry) {
  for (Entry next = next_entry(entry); next.name != nullptr; next = next_entry(next)) {
    if (next.value != nullptr && same_name(entry, next)) return true;
  }
  return false;
}

// Neither a second "=" in a value nor a bare name at the end; a bare name before a colon is
// skipped.
bool is_well_formed(const char* text) {
  for (Entry entry = first_entry(text); entry.name != nullptr; entry = next_entry(entry)) {
    if (entry.value == nullptr) {
      if (entry.name[entry.name_length] == '\0') return false;
    } else if (std::memchr(entry.value, '=', entry.value_length) != nullptr) {
      return false;
    }
  }
  return true;
}

// glibc.rtld.enable_secure=1: the environment counts for nothing.
bool asks_for_security(const Settings& settings, const char* text) {
  if (text == nullptr || !glibc_rules(settings.glibc_version).has_enable_secure ||
      !is_well_formed(text)) {
    return false;
  }
  constexpr char kName[] = "glibc.rtld.enable_secure";
  for (Entry entry = first_entry(text); entry.name != nullptr; entry = next_entry(entry)) {
    if (entry.value == nullptr || comes_again(entry)) continue;
    if (!same_name(entry, {kName, sizeof kName - 1, nullptr, 0})) continue;
    const char* end = nullptr;
    return base::parse_tunable_number(entry.value, &end) == 1 &&
           end == entry.value + entry.value_length;
  }
  return false;
}

// Applies the variable that is this tunable's alias; of several, the one that counts.
void apply_alias(Settings* settings, const Tunable& tunable, const char* const* entries,
                 bool last_wins) {
  const char* last = nullptr;
  for (; *entries != nullptr; ++entries) {
    const char* value = base::env_value_if_named(*entries, tunable.alias);
    if (value == nullptr) continue;
    last = value;
    if (!last_wins && apply(tunable, settings, value, std::strlen(value))) return;
  }
  if (last_wins && last != nullptr) apply(tunable, settings, last, std::strlen(last));
}

}  // namespace

bool parse_setting(const char* text, uint64_t* bytes) { return base::parse_size(text, bytes); }

bool apply_tunable(Settings* settings, const char* name, size_t name_length, const char* value) {
  for (const Tunable& tunable : kTunables) {
    if (std::strlen(tunable.name) == name_length &&
        std::strncmp(tunable.name, name, name_length) == 0) {
      return apply(tunable, settings, value, std::strcspn(value, ":"));
    }
  }
  return false;
}

void apply_glibc_tunables(Settings* settings, const char* text) {
  constexpr char kPrefix[] = "glibc.malloc.";
  constexpr size_t kPrefixLength = sizeof kPrefix - 1;
  const bool strict = glibc_rules(settings->glibc_version).tunables_are_strict;
  if (strict && !is_well_formed(text)) return;
  for (Entry entry = first_entry(text); entry.name != nullptr; entry = next_entry(entry)) {
    if (entry.value == nullptr || entry.name_length <= kPrefixLength ||
        std::strncmp(entry.name, kPrefix, kPrefixLength) != 0 || (strict && comes_again(entry))) {
      continue;
    }
    apply_tunable(settings, entry.name + kPrefixLength, entry.name_length - kPrefixLength,
                  entry.value);
  }
}

void apply_environment(Settings* settings, const char* const* entries) {
  const char* tunables = find(entries, "GLIBC_TUNABLES");
  if (!asks_for_security(*settings, tunables)) {
    const bool last_wins = glibc_rules(settings->glibc_version).last_alias_wins;
    for (const Tunable& tunable : kTunables) {
      if (tunable.alias != nullptr) apply_alias(settings, tunable, entries, last_wins);
    }
    if (tunables != nullptr) apply_glibc_tunables(settings, tunables);
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
  Settings settings = default_settings(running_glibc_version());
  if (!base::is_secure()) apply_environment(&settings, base::env_entries());
  return settings;
}

}  // namespace heapledger::heap
