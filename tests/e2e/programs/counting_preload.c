// SPDX-License-Identifier: Apache-2.0
// A preload of somebody else's, which wraps malloc as such libraries do: it counts calls and hands
// them to whoever comes next. With COUNTING_LOG set, writes "COUNT" there at the end.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static atomic_ulong calls;
static void* (*next_malloc)(size_t);
static void (*next_free)(void*);

void* malloc(size_t size) {
  if (next_malloc == NULL) *(void**)&next_malloc = dlsym(RTLD_NEXT, "malloc");
  atomic_fetch_add(&calls, 1);
  return next_malloc(size);
}

void free(void* block) {
  if (next_free == NULL) *(void**)&next_free = dlsym(RTLD_NEXT, "free");
  next_free(block);
}

__attribute__((destructor)) static void at_end(void) {
  const char* path = getenv("COUNTING_LOG");
  if (path == NULL) return;
  char text[32];
  const int bytes = snprintf(text, sizeof text, "%lu\n", atomic_load(&calls));
  const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (write(fd, text, (size_t)bytes) != bytes) abort();
  close(fd);
}
