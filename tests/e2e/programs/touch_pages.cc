// SPDX-License-Identifier: Apache-2.0
// touch_pages PAGES: writes exactly PAGES fresh pages four ways, each in a function of its own,
// with huge pages off, and prints for each "name pages minor" where minor is its own getrusage
// difference. Then the pages of the whole run: "total 0 minor".
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>

namespace {

constexpr size_t kPage = 4096;

long minor_faults() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt;
}

// Touches the pages that lie wholly inside the block.
size_t touch(char* block, size_t bytes) {
  char* first =
      reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(block) + kPage - 1) & ~(kPage - 1));
  size_t pages = 0;
  for (char* p = first; p + kPage <= block + bytes; p += kPage, ++pages)
    *static_cast<volatile char*>(p) = 1;
  return pages;
}

// Below the threshold: from the brk heap, in blocks of 16 pages that hold 15 whole ones or more.
[[gnu::noinline]] char* allocate_brk(size_t bytes) { return static_cast<char*>(malloc(bytes)); }
[[gnu::noinline]] char* allocate_mapped(size_t bytes) { return static_cast<char*>(malloc(bytes)); }
[[gnu::noinline]] char* allocate_calloc(size_t bytes) {
  return static_cast<char*>(calloc(1, bytes));
}
[[gnu::noinline]] char* grow_by_realloc(char* p, size_t bytes) {
  return static_cast<char*>(realloc(p, bytes));
}

void report(const char* name, size_t pages, long before) {
  printf("%s %zu %ld\n", name, pages, minor_faults() - before);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
  const size_t pages = strtoul(argv[1], nullptr, 10);
  static char output[4096];
  setvbuf(stdout, output, _IOFBF, sizeof output);
  printf("start 0 %ld\n", minor_faults());

  // brk: many blocks, so that all stay below the threshold; only whole pages inside are touched.
  long before = minor_faults();
  size_t touched = 0;
  while (touched < pages) touched += touch(allocate_brk(16 * kPage), 16 * kPage);
  report("brk", touched, before);

  before = minor_faults();
  char* mapped = allocate_mapped((pages + 1) * kPage);
  touched = touch(mapped, (pages + 1) * kPage);
  report("mapped", touched, before);

  // calloc below the threshold, from recycled memory: clearing touches it all. The memory was
  // trimmed away before.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  before = minor_faults();
  char* cleared = allocate_calloc(pages * kPage);
  touched = touch(cleared, pages * kPage);
  report("calloc", touched, before);

  // A realloc that must move, because a block stands behind it: the copy touches the new pages.
  char* old = allocate_brk(pages * kPage);
  touch(old, pages * kPage);
  void* wall = malloc(64);
  before = minor_faults();
  char* moved = grow_by_realloc(old, 2 * pages * kPage);
  report("realloc", moved == nullptr ? 0 : pages, before);

  free(wall);
  printf("total 0 %ld\n", minor_faults());
  return 0;
}
