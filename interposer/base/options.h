// SPDX-License-Identifier: Apache-2.0
//
// Numbers in environment variables: glibc's rules for its own variables, ours for ours. No
// allocation, no locale, errno kept.
#pragma once

#include <cstddef>
#include <cstdint>

namespace heapledger::base {

// A number as glibc 2.36 reads its tunables: leading blanks, a sign, 0x or 0 prefix; what follows
// the digits is ignored ("64K" is 64), no digits at all is 0, "-1" is UINT64_MAX. A value too large
// for 64 bits is UINT64_MAX. *end (if given) is where reading stopped: before the digit that was
// too much.
uint64_t parse_tunable_number(const char* text, const char** end = nullptr) noexcept;

// A size as heapledger's options take it: decimal digits with an optional K, M or G (powers of
// 1024, either case), nothing after. Returns false, and leaves *bytes alone, where the text is
// anything else or does not fit.
bool parse_size(const char* text, uint64_t* bytes) noexcept;

// What --mmap-threshold takes: a size, or the two ends of the scale by name.
enum class ThresholdKind : uint8_t {
  kInvalid,
  kBytes,     // A size: the threshold.
  kBrkOnly,   // "brk-only": no request is ever given a mapping of its own.
  kMmapOnly,  // "mmap-only": every request that the free lists cannot serve is.
};
struct Threshold {
  ThresholdKind kind = ThresholdKind::kInvalid;
  uint64_t bytes = 0;  // kBytes only.
};
Threshold parse_threshold(const char* text) noexcept;

}  // namespace heapledger::base
