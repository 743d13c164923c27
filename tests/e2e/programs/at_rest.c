// SPDX-License-Identifier: Apache-2.0
// at_rest: changes its memory in one known way after the other, and rests after each: a mark, which
// waits for its snapshot. Prints for each step "NAME KEY=VALUE ...": what it knows it did. Bytes of
// its live blocks on pages that the kernel has present are counted by /proc/self/pagemap.
#define _GNU_SOURCE
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "interposer/heapledger.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

enum { kPage = 4096, kMany = 200, kManyBytes = 5000, kThreads = 3, kPerThread = 100 };

static struct {
  char* at;
  size_t bytes;
} live[1024];
static size_t live_count;
static int pagemap = -1;
static char output[16384];
static size_t output_bytes;

static void say(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  output_bytes +=
      (size_t)vsnprintf(output + output_bytes, sizeof output - output_bytes, format, arguments);
  va_end(arguments);
}

static int is_present(uintptr_t page) {
  uint64_t entry = 0;
  if (pread(pagemap, &entry, sizeof entry, (off_t)(page / kPage * sizeof entry)) != sizeof entry) {
    abort();
  }
  return (int)(entry >> 63);
}

static size_t present_bytes(const char* at, size_t bytes) {
  size_t present = 0;
  const uintptr_t end = (uintptr_t)at + bytes;
  for (uintptr_t start = (uintptr_t)at; start < end;) {
    uintptr_t stop = (start / kPage + 1) * kPage;
    if (stop > end) stop = end;
    if (is_present(start)) present += stop - start;
    start = stop;
  }
  return present;
}

static size_t present_in_blocks(void) {
  size_t present = 0;
  for (size_t i = 0; i < live_count; ++i) present += present_bytes(live[i].at, live[i].bytes);
  return present;
}

static char* take(size_t bytes) {
  char* at = malloc(bytes);
  if (at == NULL) abort();
  live[live_count].at = at;
  live[live_count++].bytes = bytes;
  return at;
}

static char* take_written(size_t bytes) { return memset(take(bytes), 1, bytes); }

static void give(char* at) {
  for (size_t i = 0; i < live_count; ++i) {
    if (live[i].at != at) continue;
    live[i] = live[--live_count];
    free(at);
    return;
  }
  abort();
}

static void rest(const char* step) {
  say("%s present=%zu\n", step, present_in_blocks());
  HEAPLEDGER_MARK(step);
}

static char* many[kMany];

static void use_the_heap(void) {
  take_written(3000);
  rest("start");
  for (int i = 0; i < kMany; ++i) many[i] = take_written(kManyBytes);
  rest("touched");
  char* untouched[10];
  for (int i = 0; i < 10; ++i) untouched[i] = take(100000);
  take_written(64);  // Above them: nothing is at the top but what comes.
  rest("untouched");
  for (int i = 0; i < kMany; i += 2) give(many[i]);
  rest("freed");
  char* cached[7];
  for (int i = 0; i < 7; ++i) cached[i] = take_written(100);
  rest("small");
  for (int i = 0; i < 7; ++i) give(cached[i]);
  rest("cached");
  char* top = take_written(60000);
  rest("below top");
  give(top);
  rest("top");
  for (int i = 0; i < 10; ++i) give(untouched[i]);
  malloc_trim(0);
  rest("trimmed");
}

static void use_mappings(void) {
  char* block = take(1 << 20);
  memset(block, 1, 100 * kPage);
  rest("mapped");
  madvise((char*)(((uintptr_t)block + kPage) / kPage * kPage), 50 * kPage, MADV_DONTNEED);
  rest("dropped");
  give(block);
  rest("unmapped");
  // A read of fresh memory gives the shared zero page; a write afterwards, memory.
  volatile char* zeros = malloc(1 << 20);
  int sum = 0;
  for (int i = 1; i <= 50; ++i) sum += zeros[i * kPage];
  if (sum != 0) abort();
  rest("zeros read");
  for (int i = 1; i <= 20; ++i) zeros[i * kPage] = 1;
  rest("zeros written");
  free((void*)zeros);
  rest("zeros gone");
}

static void use_mappings_without_faults(void) {
  // Larger than any free chunk: they get mappings.
  const size_t bytes = 2 << 20;
  char* locked = malloc(bytes);
  const int is_locked = mlock(locked, bytes) == 0;
  say("locked=%d ", is_locked);
  rest("locked");
  munlock(locked, bytes);
  free(locked);
  char* populated = malloc(bytes);
  char* first = (char*)(((uintptr_t)populated + kPage - 1) / kPage * kPage);
  say("done=%d ", madvise(first, 100 * kPage, MADV_POPULATE_WRITE) == 0);
  rest("populated");
  free(populated);
  rest("nothing left");
  void* own = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  rest("own mapping");
  munmap(own, 1 << 20);
  rest("own unmapped");
}

static void use_huge_pages(void) {
  prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
  const size_t huge = 2 << 20;
  char* block = NULL;
  if (posix_memalign((void**)&block, huge, 2 * huge) != 0) abort();
  const int advised = madvise(block, huge, MADV_HUGEPAGE) == 0;
  block[0] = 1;
  say("huge=%d ", advised && is_present((uintptr_t)block + huge - kPage));
  rest("huge");
  free(block);
  rest("huge gone");
  // Small pages that are made a huge one later.
  if (posix_memalign((void**)&block, huge, 2 * huge) != 0) abort();
  for (int i = 0; i < 100; ++i) block[i * kPage] = 1;
  say("collapsed=%d ", madvise(block, huge, MADV_COLLAPSE) == 0);
  rest("collapsed");
  free(block);
  prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
  rest("collapsed gone");
}

static void use_a_child(void) {
  char* shared = take_written(100 * kPage);
  rest("before fork");
  const pid_t child = fork();
  if (child == 0) {
    // It has a tenth of the pages to itself.
    memset(shared + kPage, 2, 10 * kPage);
    HEAPLEDGER_MARK("child");
    _exit(0);
  }
  waitpid(child, NULL, 0);
  rest("after fork");
}

static pthread_barrier_t allocated, measured;

static void* allocate_in_thread(void* unused) {
  (void)unused;
  char* blocks[kPerThread];
  for (int i = 0; i < kPerThread; ++i) blocks[i] = memset(malloc(2000), 1, 2000);
  pthread_barrier_wait(&allocated);
  pthread_barrier_wait(&measured);
  for (int i = 0; i < kPerThread; ++i) free(blocks[i]);
  return NULL;
}

static void use_threads(void) {
  pthread_t threads[kThreads];
  pthread_barrier_init(&allocated, NULL, kThreads + 1);
  pthread_barrier_init(&measured, NULL, kThreads + 1);
  for (int i = 0; i < kThreads; ++i) pthread_create(&threads[i], NULL, allocate_in_thread, NULL);
  pthread_barrier_wait(&allocated);
  rest("threads");
  pthread_barrier_wait(&measured);
  for (int i = 0; i < kThreads; ++i) pthread_join(threads[i], NULL);
  rest("threads gone");
}

int main(void) {
  prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
  pagemap = open("/proc/self/pagemap", O_RDONLY);
  if (pagemap < 0) return 2;
  mallopt(M_MMAP_THRESHOLD, 128 * 1024);  // It stays there.
  use_the_heap();
  use_mappings();
  use_mappings_without_faults();
  use_huge_pages();
  use_threads();
  use_a_child();
  return write(STDOUT_FILENO, output, output_bytes) == (ssize_t)output_bytes ? 0 : 3;
}
