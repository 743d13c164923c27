// SPDX-License-Identifier: Apache-2.0
// manners WHAT: behaves in one way that a tracer may spoil, and ends with 0 if it was not spoilt
// (or with what it found).
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "interposer/heapledger.h"

extern char** environ;

// errno is kept by free and by what succeeds; set where a call fails.
static int check_errno(void) {
  void* volatile block = NULL;
  for (int i = 0; i < 3000; ++i) {
    const size_t size = i % 10 == 0 ? 300000 : 100 + (size_t)i;
    block = malloc(size);
    errno = 4711;
    free(block);
    if (errno != 4711) return 1;
  }
  errno = 0;
  volatile size_t too_much = SIZE_MAX / 2;
  block = malloc(too_much);
  if (block != NULL || errno != ENOMEM) return 2;
  errno = 4711;
  void* result = &errno;
  if (posix_memalign(&result, 3, 8) != EINVAL || errno != 4711 || result != &errno) return 3;
  if (posix_memalign(&result, 64, too_much) != ENOMEM || errno != 4711) return 4;
  if (munmap((void*)1, 1) != -1 || errno != EINVAL) return 5;
  return 0;
}

// How many descriptors are open.
static int check_descriptors(void) {
  DIR* directory = opendir("/proc/self/fd");
  int count = 0;
  while (readdir(directory) != NULL) ++count;
  closedir(directory);
  return count;
}

static int check_wait(void) {
  errno = 0;
  return waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD ? 0 : 1;
}

static int check_mark(void) {
  if (heapledger_mark == NULL) return 1;
  HEAPLEDGER_MARK("half way");
  return 0;
}

static long resident_bytes(void) {
  char text[128] = {0};
  FILE* file = fopen("/proc/self/statm", "r");
  if (fgets(text, sizeof(text), file) == NULL) return -1;
  fclose(file);
  return strtol(strchr(text, ' '), NULL, 10) * 4096;
}

static int check_mlockall(void) {
  if (mlockall(MCL_CURRENT) != 0) return errno == EPERM || errno == ENOMEM ? 0 : 1;
  void* volatile block = malloc(1000);
  free(block);
  return resident_bytes() < 48 << 20 ? 0 : 2;  // The region was not brought in.
}

static void* allocate_once(void* argument) {
  void* volatile block = malloc(1234);
  free(block);
  return argument;
}

static int check_address_space(void) {
  const struct rlimit limit = {96 << 20, 96 << 20};
  if (setrlimit(RLIMIT_AS, &limit) != 0) return 1;
  void* volatile block = malloc(40 << 20);
  if (block == NULL) return 2;
  memset(block, 1, 40 << 20);
  free(block);
  pthread_t thread;
  if (pthread_create(&thread, NULL, allocate_once, NULL) != 0) return 3;
  pthread_join(thread, NULL);
  return malloc(200 << 20) == NULL ? 0 : 4;
}

static int spawn(const char* path) {
  char* const argv[] = {(char*)path, "argument", NULL};
  pid_t child = 0;
  int status = 0;
  if (posix_spawnp(&child, path, NULL, NULL, argv, environ) != 0) return 1;
  if (waitpid(child, &status, 0) != child || status != 0) return 2;
  child = vfork();
  if (child == 0) {
    execlp(path, path, "vforked", NULL);
    _exit(127);
  }
  if (waitpid(child, &status, 0) != child || status != 0) return 3;
  child = fork();
  if (child == 0) {
    execv("/nonexistent/program", argv);
    _exit(errno == ENOENT ? 42 : 1);
  }
  if (waitpid(child, &status, 0) != child || WEXITSTATUS(status) != 42) return 4;
  return 0;
}

static int check_dlopen(void) {
  void* library = dlopen("libplugin.so", RTLD_NOW | RTLD_DEEPBIND);  // By DT_RUNPATH alone.
  if (library == NULL) return 1;
  void* (*make)(size_t) = (void* (*)(size_t))dlsym(library, "plugin_make");
  if (make == NULL) return 2;
  void* block = make(333);
  free(block);
  if (dlclose(library) != 0) return 3;
  return dlopen("no-such-library.so", RTLD_NOW) == NULL && dlerror() != NULL ? 0 : 4;
}

static int check_foreign_break(void) {
  void* blocks[400];
  char* own = NULL;
  for (int i = 0; i < 400; ++i) {
    blocks[i] = malloc(1000);
    if (i == 200) {
      own = sbrk(8192);
      if (own == (void*)-1) return 1;
      memset(own, 7, 8192);
    }
    memset(blocks[i], i, 1000);
  }
  for (int i = 0; i < 400; ++i) free(blocks[i]);
  for (int i = 0; i < 8192; ++i) {
    if (own[i] != 7) return 2;
  }
  return sbrk(0) == (void*)-1 ? 3 : 0;
}

static int check_statistics(void) {
  void* volatile block = malloc(1 << 20);
  const struct mallinfo2 info = mallinfo2();
  free(block);
  char text[20000] = {0};
  FILE* file = fmemopen(text, sizeof(text), "w");
  if (malloc_info(0, file) != 0) return 1;
  fclose(file);
  if (strstr(text, "<malloc version=\"1\">") == NULL || strstr(text, "</malloc>") == NULL) return 2;
  malloc_stats();
  malloc_trim(0);
  return info.hblks == 1 && info.hblkhd >= 1 << 20 && mallopt(M_TOP_PAD, 65536) == 1 ? 0 : 3;
}

static void on_exit_handler(void) {
  void* volatile block = malloc(10);
  free(block);
}

int main(int argc, char** argv) {
  if (argc < 2) return 99;
  const char* what = argv[1];
  if (!strcmp(what, "errno")) return check_errno();
  if (!strcmp(what, "descriptors")) return check_descriptors();
  if (!strcmp(what, "wait")) return check_wait();
  if (!strcmp(what, "mark")) return check_mark();
  if (!strcmp(what, "mlockall")) return check_mlockall();
  if (!strcmp(what, "address_space")) return check_address_space();
  if (!strcmp(what, "spawn")) return spawn("true");
  if (!strcmp(what, "dlopen")) return check_dlopen();
  if (!strcmp(what, "foreign_break")) return check_foreign_break();
  if (!strcmp(what, "statistics")) return check_statistics();
  if (!strcmp(what, "atexit")) return atexit(on_exit_handler);
  if (!strcmp(what, "_exit")) _exit(5);
  if (!strcmp(what, "quick_exit")) quick_exit(6);
  if (!strcmp(what, "abort")) abort();
  if (!strcmp(what, "double_free")) {
    void* volatile block = malloc(40);
    free(block);
    free(block);
  }
  if (!strcmp(what, "flood")) {
    for (long i = 0; i < atol(argv[2]); ++i) {
      void* volatile block = malloc(100);
      free(block);
    }
    return 0;
  }
  return 98;
}
