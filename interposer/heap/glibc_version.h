// SPDX-License-Identifier: Apache-2.0
//
// What differs between glibc's malloc from 2.33 to 2.43, as data: one GlibcRules per version,
// written as the list of changes in the order in which they came. The allocator knows rules, never
// versions.
//
// A version means the head of its release branch, which is what distributions ship. That makes some
// differences of the first tarballs vanish: arenas are counted by online CPUs in every branch,
// 2.37's realloc keeps blocks by 2.38's rule, 2.38's memalign does not search bins.
//
// Facts: glibc's sources and NEWS; 2.36, 2.41 and 2.43 were also compared call by call with
// Debian's libraries (tests/interposer/heap).
#pragma once

#include <cstddef>
#include <cstdint>

namespace heapledger::heap {

// 236 is 2.36. Older and newer ones than these follow the nearest.
inline constexpr uint16_t kGlibcOldest = 233;
inline constexpr uint16_t kGlibcDefault = 236;  // Where nobody says which.
inline constexpr uint16_t kGlibcNewest = 243;

// When realloc hands back the same block without looking at the arena.
enum class ReallocKeeps : uint8_t {
  kNothing,              // The arena decides.
  kPaddingOrMappedPage,  // Fewer than 16 bytes too many; in a mapping, at most a page.
  kPadding,              // Fewer than 16 bytes too many.
};

// How much is mapped where the break cannot move.
enum class FallbackSize : uint8_t {
  kSwapped,        // glibc swapped two arguments: the first in units of 1 MiB, later ones tight.
  kLeast1MiB,      // At least 1 MiB, in pages.
  kWithoutOldTop,  // The same, not counting what the old top held.
};

// When a thread's cache is made.
enum class CacheBirth : uint8_t {
  kAnyCall,           // By the thread's first call, be it a free.
  kCacheableRequest,  // By its first malloc, calloc or memalign of a size that is cached.
  kFirstUse,  // By its first free of such a size, or when a bin has chunks of the requested size.
};

struct GlibcRules {
  ReallocKeeps realloc_keeps = ReallocKeeps::kNothing;
  FallbackSize fallback_size = FallbackSize::kSwapped;
  CacheBirth cache_birth = CacheBirth::kAnyCall;
  bool threshold_is_bounded = false;  // An mmap threshold above 32 MiB is refused.
  bool heaps_are_noreserve = false;   // Heaps are reserved with MAP_NORESERVE.
  bool arena_refuses_size = false;    // malloc sees that a size is too large with an arena at hand.
  bool aligned_uses_cache = false;    // memalign takes a cached block that happens to be aligned.
  bool aligned_checks_size = false;   // memalign sees that a size is too large before it looks for
                                      // an arena; only then, that its sum with the alignment is.
  bool aligned_needs_power_of_two = false;  // aligned_alloc: EINVAL for anything else.
  bool aligned_rest_merges = false;  // What memalign cuts off passes the cache and the fastbins by,
                                     // and a tail of 16 bytes is given to a free neighbour.
  bool aligned_short_tail_stays = false;   // The latter no more.
  bool aligned_mapping_is_tight = false;   // In a mapping, the bytes in front may be fewer than 32.
  bool small_frees_are_filed = false;      // Freed small chunks skip the unsorted list.
  bool zeroed_uses_cache = false;          // calloc takes from the cache, too.
  bool internal_frees_are_cached = false;  // What the allocator itself frees may go to the cache.
  bool has_large_cache = false;  // Twelve more bins, by powers of two, if tcache_max is raised.
  bool large_cache_is_exact = false;  // Only a cached block of exactly the size serves a request.
  bool mapped_blocks_are_cached = false;  // Mapped blocks go to those bins as well.
  bool has_fastbins = false;
  uint16_t heap_header_bytes = 0;  // Of glibc's heap_info and malloc_state: where the chunks of a
  uint16_t arena_bytes = 0;        // heap begin.
  bool mapped_has_tail = false;  // A mapped chunk ends 16 bytes before its mapping, like any other
                                 // chunk before its successor's header.
  uint16_t cache_count = 0;      // Blocks per size by default (tcache_count).
  uint16_t cache_bytes = 0;      // What a thread's cache asks its arena for.
  // Tunables.
  bool tunables_are_strict = false;  // A value with junk behind the digits is not taken; of equal
                                     // names only the last counts; a string that ends in a bare
                                     // name, or has a second = in a value, says nothing at all.
                                     // 32-bit parameters take the low half of a longer number.
  bool last_alias_wins = false;      // Of equal MALLOC_* variables; before: the first valid one.
  bool has_enable_secure = false;    // glibc.rtld.enable_secure=1 voids all tunables.
  // glibc.malloc.hugetlb.
  bool has_hugetlb = false;
  bool hugetlb_sets_threshold = false;  // Huge pages: the mmap threshold becomes one page of them.
  bool hugetlb_keeps_heaps = false;     // Heaps stay 64 MiB; else they are four pages of the pool.
  bool thp_serves_always = false;  // Kernel mode "always" counts: the break moves in huge pages,
                                   // without madvise. In both modes heaps grow by them, too.
};

constexpr GlibcRules glibc_rules(unsigned version) {
  GlibcRules rules;  // 2.33 and 2.34.
  rules.threshold_is_bounded = true;
  rules.heaps_are_noreserve = true;
  rules.internal_frees_are_cached = true;
  rules.has_fastbins = true;
  rules.heap_header_bytes = 32;
  rules.arena_bytes = 2200;
  rules.cache_count = 7;
  rules.cache_bytes = 640;
  if (version >= 235) {
    rules.threshold_is_bounded = false;
    rules.has_hugetlb = true;
    rules.heap_header_bytes = 48;
  }
  if (version >= 237) {
    rules.realloc_keeps = ReallocKeeps::kPaddingOrMappedPage;
    rules.heaps_are_noreserve = false;
  }
  if (version >= 238) {
    rules.fallback_size = FallbackSize::kLeast1MiB;
    rules.aligned_uses_cache = true;
    rules.aligned_checks_size = true;
    rules.aligned_needs_power_of_two = true;
    rules.aligned_rest_merges = true;
  }
  if (version >= 239) {
    rules.tunables_are_strict = true;
    rules.hugetlb_sets_threshold = true;
  }
  if (version >= 240) {
    rules.last_alias_wins = true;
    rules.has_enable_secure = true;
  }
  if (version >= 241) {
    rules.small_frees_are_filed = true;
    rules.zeroed_uses_cache = true;
  }
  if (version >= 242) {
    rules.cache_birth = CacheBirth::kCacheableRequest;
    rules.internal_frees_are_cached = false;
    rules.has_large_cache = true;
    rules.cache_bytes = 760;
    rules.hugetlb_keeps_heaps = true;
  }
  if (version >= 243) {
    rules.realloc_keeps = ReallocKeeps::kPadding;
    rules.fallback_size = FallbackSize::kWithoutOldTop;
    rules.cache_birth = CacheBirth::kFirstUse;
    rules.arena_refuses_size = true;
    rules.aligned_checks_size = false;
    rules.aligned_short_tail_stays = true;
    rules.aligned_mapping_is_tight = true;
    rules.large_cache_is_exact = true;
    rules.mapped_blocks_are_cached = true;
    rules.has_fastbins = false;
    rules.arena_bytes = 2112;
    rules.mapped_has_tail = true;
    rules.cache_count = 16;
    rules.thp_serves_always = true;
  }
  return rules;
}

// The number of "2.36" or "2.36.9000" (a development version is the one before its release);
// kGlibcDefault for anything else.
constexpr uint16_t parse_glibc_version(const char* text) {
  if (text == nullptr || text[0] != '2' || text[1] != '.') return kGlibcDefault;
  unsigned minor = 0;
  const char* digit = text + 2;
  for (; *digit >= '0' && *digit <= '9' && minor < 1000; ++digit) {
    minor = minor * 10 + static_cast<unsigned>(*digit - '0');
  }
  if (digit == text + 2 || (*digit != '\0' && *digit != '.')) return kGlibcDefault;
  return static_cast<uint16_t>(200 + minor);
}

// The glibc that this process runs on. Any time, also before constructors; no allocation.
uint16_t running_glibc_version();

}  // namespace heapledger::heap
