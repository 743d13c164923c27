// SPDX-License-Identifier: Apache-2.0
// A program as rustc makes it with jemallocator: an allocator under names of its own stands beside
// malloc, and both are used. 500 blocks of 2,000 bytes from it, on its own mappings; 100 of 7,777
// bytes from malloc. It frees what it cannot tell apart through the names that they came by.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

extern "C" {

// Bump allocation from mappings of 1 MiB; nothing is given back.
__attribute__((noinline)) void* _rjem_malloc(size_t size) {
  constexpr size_t kChunk = 1 << 20;
  static char* at = nullptr;
  static size_t left = 0;
  size = (size + 15) & ~size_t{15};
  if (size > left) {
    void* fresh = mmap(nullptr, kChunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fresh == MAP_FAILED || size > kChunk) return nullptr;
    at = static_cast<char*>(fresh);
    left = kChunk;
  }
  void* block = at;
  at += size;
  left -= size;
  return block;
}

__attribute__((noinline)) void _rjem_free(void* block) { *static_cast<volatile char*>(block) = 0; }
}

int main() {
  unsigned long sum = 0;
  for (int i = 0; i < 500; ++i) {
    auto* block = static_cast<char*>(_rjem_malloc(2000));
    if (block == nullptr) return 1;
    memset(block, i, 2000);
    sum += static_cast<unsigned char>(block[i]);
    _rjem_free(block);
  }
  for (int i = 0; i < 100; ++i) {
    auto* block = static_cast<char*>(malloc(7777));
    if (block == nullptr) return 1;
    block[0] = 1;
    sum += static_cast<unsigned char>(block[0]);
    free(block);
  }
  printf("%lu\n", sum);
  return 0;
}
