// SPDX-License-Identifier: Apache-2.0
// What the demos share. Each plants one fault in an otherwise plain program; its one argument
// scales the work (default 1). Functions are not inlined, so that call stacks read like the story
// told.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>

#define DEMO_FUNCTION [[gnu::noinline]]

namespace demo {

inline constexpr size_t kPageBytes = 4096;

// `count` times the first argument; at least 1. Ends the program where it is no positive number.
inline size_t scaled(size_t count, int argc, char** argv) {
  if (argc < 2) return count;
  char* end = nullptr;
  const double factor = std::strtod(argv[1], &end);
  if (end == argv[1] || *end != 0 || !(factor > 0)) {
    std::fprintf(stderr, "usage: %s [SIZE FACTOR]\n", argv[0]);
    std::exit(2);
  }
  const auto result = static_cast<size_t>(static_cast<double>(count) * factor);
  return result > 0 ? result : 1;
}

// Writes one byte to every page: a page is real memory only from its first touch on.
inline void touch_pages(char* block, size_t size) {
  for (size_t offset = 0; offset < size; offset += kPageBytes) {
    static_cast<volatile char*>(block)[offset] = 1;
  }
}

// xorshift64: the same work in every run.
class Random {
 public:
  size_t below(size_t limit) {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<size_t>(state_ % limit);
  }

 private:
  unsigned long long state_ = 88172645463325252ULL;
};

}  // namespace demo
