// SPDX-License-Identifier: Apache-2.0
// big_blocks [COUNT]: blocks of 64 KiB to 1.1 MiB, 32 alive at a time, each replaced at random,
// each page touched. Under glibc's defaults the top of the heap goes back and forth to the system;
// with settings that keep it, the same program takes a fraction of the time. Prints how many bytes
// it asked for.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

namespace {

constexpr size_t kAlive = 32;
constexpr size_t kPage = 4096;
constexpr size_t kBytesMin = size_t{64} << 10;
constexpr size_t kBytesMax = (size_t{11} << 20) / 10;

uint64_t state = 88172645463325252ULL;

// xorshift64: the same work in every run.
size_t below(size_t limit) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return static_cast<size_t>(state % limit);
}

char* make_block(size_t bytes) {
  char* block = static_cast<char*>(malloc(bytes));
  if (block == nullptr) abort();
  for (size_t at = 0; at < bytes; at += kPage) static_cast<volatile char*>(block)[at] = 1;
  return block;
}

}  // namespace

int main(int argc, char** argv) {
  const int count = argc > 1 ? atoi(argv[1]) : 60000;
  char* alive[kAlive] = {};
  uint64_t total = 0;
  for (int i = 0; i < count; ++i) {
    char*& slot = alive[below(kAlive)];
    free(slot);
    const size_t bytes = kBytesMin + below(kBytesMax - kBytesMin);
    slot = make_block(bytes);
    total += bytes;
  }
  for (char* block : alive) free(block);
  printf("%llu\n", static_cast<unsigned long long>(total));
  return 0;
}
