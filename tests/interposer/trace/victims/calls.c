// SPDX-License-Identifier: Apache-2.0
// Makes a known number of calls of each function, and prints them: "name count" per line, then
// "live bytes" and "live blocks".
#define _GNU_SOURCE
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { kRounds = 200 };

static void* volatile keep[kRounds];

__attribute__((noinline)) static void* deep(int depth, size_t size) {
  void* volatile block = depth == 0 ? malloc(size) : deep(depth - 1, size);
  return block;
}

int main(void) {
  size_t live = 0;
  for (int i = 0; i < kRounds; ++i) keep[i] = deep(i % 7, 100000 + (size_t)i);
  for (int i = 0; i < kRounds; ++i) {
    keep[i] = realloc(keep[i], 300001);
    if (!keep[i]) return 1;
  }
  for (int i = 0; i < kRounds; ++i) free(keep[i]);
  for (int i = 0; i < kRounds; ++i) {
    keep[i] = calloc(3, 777);
    live += 3 * 777;
  }
  for (int i = 0; i < kRounds; ++i) {
    void* block = NULL;
    if (posix_memalign(&block, 256, 555) != 0) return 1;
    free(block);
    free(aligned_alloc(64, 640));
    free(memalign(4096, 99));
  }
  void* mapped = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  mprotect(mapped, 4096, PROT_READ);
  madvise(mapped, 65536, MADV_DONTNEED);
  mapped = mremap(mapped, 65536, 131072, MREMAP_MAYMOVE);
  munmap(mapped, 131072);
  volatile void* before = sbrk(0);
  if (sbrk(4096) == (void*)-1) return 1;
  if (before == (void*)-1) return 1;
  volatile size_t too_much = (size_t)PTRDIFF_MAX + 1;
  if (malloc(too_much) != NULL) return 1;  // A failed call.
  free(NULL);                              // Not recorded.
  char line[200];                          // No stdio: it would allocate.
  const int n = snprintf(line, sizeof(line), "%zu %d\n", live, kRounds);
  return write(1, line, (size_t)n) == n ? 7 : 1;
}
