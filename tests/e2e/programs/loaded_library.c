// SPDX-License-Identifier: Apache-2.0
// What loading.cc loads: a library that allocates.
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default"), noinline))

EXPORT void* library_make(int round) {
  char* volatile block = malloc(4321);
  memset(block, round, 4321);
  return block;
}

EXPORT void* library_grow(void* block, int round) {
  char* grown = realloc(block, 20000);
  memset(grown + 10000, round, 10000);
  return grown;
}

EXPORT void library_drop(void* block) { free(block); }
