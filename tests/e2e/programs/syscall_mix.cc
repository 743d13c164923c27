// SPDX-License-Identifier: Apache-2.0
// Makes the allocator grow, trim, map, remap and unmap, and makes some such calls itself.
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main() {
  void* blocks[64];
  for (void*& block : blocks) block = malloc(100000);
  for (int i = 63; i >= 0; --i) free(blocks[i]);
  void* volatile mapped = malloc(200000);
  mapped = realloc(mapped, 400000);
  mapped = realloc(mapped, 10000000);
  mapped = realloc(mapped, 150000);
  free(mapped);
  for (int i = 0; i < 20; ++i) {
    void* volatile p = malloc(static_cast<size_t>(1) << (10 + i % 14));
    memset(p, 1, 100);
    free(p);
  }
  void* a = aligned_alloc(1 << 16, 1 << 20);
  free(a);
  malloc_trim(0);

  // The program's own.
  char* own = static_cast<char*>(
      mmap(nullptr, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  own[5] = 1;
  mprotect(own, 4096, PROT_READ);
  mprotect(own, 4096, PROT_READ | PROT_WRITE);
  madvise(own + 8192, 8192, MADV_DONTNEED);
  own = static_cast<char*>(mremap(own, 1 << 20, 1 << 21, MREMAP_MAYMOVE));
  munmap(own, 1 << 21);
  if (mmap(nullptr, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED)
    return 1;  // EINVAL is recorded too.
  sbrk(4096);  // Foreign: the allocator's next growth must cope.
  for (void*& block : blocks) block = malloc(100000);
  for (void*& block : blocks) free(block);
  return 0;
}
