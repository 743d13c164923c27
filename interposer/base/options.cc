// SPDX-License-Identifier: Apache-2.0
#include "interposer/base/options.h"

#include <cstring>

namespace heapledger::base {

namespace {

// The digit's value, or 255 for anything that is no digit in any base up to 16.
unsigned digit_value(char c) {
  if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<unsigned>(c - 'a' + 10);
  if (c >= 'A' && c <= 'F') return static_cast<unsigned>(c - 'A' + 10);
  return 255;
}

// Reads digits of `radix` from *text on, moving it past them. A digit that makes the value too
// large stops it: the result is then UINT64_MAX.
uint64_t read_digits(const char** text, unsigned radix) {
  uint64_t value = 0;
  for (; digit_value(**text) < radix; ++*text) {
    if (__builtin_mul_overflow(value, radix, &value) ||
        __builtin_add_overflow(value, digit_value(**text), &value)) {
      return UINT64_MAX;
    }
  }
  return value;
}

}  // namespace

uint64_t parse_tunable_number(const char* text, const char** end) noexcept {
  while (*text == ' ' || *text == '\t') ++text;
  bool negative = false;
  if (*text == '-' || *text == '+') negative = *text++ == '-';
  unsigned radix = 10;
  if (*text == '0') {
    const bool hex = text[1] == 'x' || text[1] == 'X';
    radix = hex ? 16 : 8;
    text += hex ? 2 : 1;
  }
  const uint64_t value = read_digits(&text, radix);
  if (end != nullptr) *end = text;
  if (value == UINT64_MAX) return value;
  return negative ? 0 - value : value;
}

bool parse_size(const char* text, uint64_t* bytes) noexcept {
  if (digit_value(*text) > 9) return false;
  const uint64_t number = read_digits(&text, 10);
  unsigned shift = 0;
  switch (*text) {
    case 'k':
    case 'K':
      shift = 10;
      break;
    case 'm':
    case 'M':
      shift = 20;
      break;
    case 'g':
    case 'G':
      shift = 30;
      break;
    default:
      break;
  }
  if (shift != 0) ++text;
  if (*text != '\0' || number > (UINT64_MAX - 1) >> shift) return false;
  *bytes = number << shift;
  return true;
}

Threshold parse_threshold(const char* text) noexcept {
  Threshold result;
  if (std::strcmp(text, "brk-only") == 0) {
    result.kind = ThresholdKind::kBrkOnly;
  } else if (std::strcmp(text, "mmap-only") == 0) {
    result.kind = ThresholdKind::kMmapOnly;
  } else if (parse_size(text, &result.bytes)) {
    result.kind = ThresholdKind::kBytes;
  }
  return result;
}

}  // namespace heapledger::base
