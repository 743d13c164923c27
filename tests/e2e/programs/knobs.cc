// SPDX-License-Identifier: Apache-2.0
// knobs observe [PARAMETER VALUE]...: calls mallopt and prints what it returns, then what can be
// seen of malloc's settings from outside: where blocks land, how the heap grows and shrinks, what
// freed blocks wait where. Only numbers that a larger header does not change.
// knobs views WHAT: the statistics functions over a heap in a known state.
// knobs arenas THREADS: how many arenas so many threads make, at a time and one after the other,
// and how many a forked child has before and after it makes threads of its own.
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <initializer_list>
#include <iterator>

namespace {

template <class T>
T opaque(T value) {
  T volatile hidden = value;
  return hidden;
}
char* make(size_t size) {
  auto* block = static_cast<char*>(opaque(malloc(size)));
  if (block == nullptr) abort();
  return block;
}

struct mallinfo2 now() {
  return mallinfo2();
}

// Before anything else: the first growth of the heap.
void first_growth() {
  free(make(1));
  printf("first growth: %zu\n", now().arena);
}

// Blocks of this size that are mapped, of three: the first may find room in the heap.
void landing() {
  for (const size_t size : {100UL, 1000UL, 4000UL, 20000UL, 60000UL, 70000UL, 131040UL, 131049UL,
                            200000UL, 500000UL, 1100000UL, 5000000UL}) {
    const size_t before = now().hblks;
    char* blocks[3];
    for (char*& block : blocks) block = make(size);
    printf("mapped of three, %zu bytes: %zu\n", size, now().hblks - before);
    // In the heap they stay, so that the next size finds a used one.
  }
}

void growth() {
  for (int i = 0; i < 4; ++i) {
    const size_t before = now().arena;
    // Not at all, where all blocks are mapped.
    for (int blocks = 0; now().arena == before && blocks < 1000; ++blocks) make(3000);
    printf("growth: %zu\n", now().arena - before);
  }
}

void caches() {
  constexpr int kBlocks = 40;
  for (const size_t size : {24UL, 56UL, 120UL, 152UL, 500UL, 1000UL, 1032UL}) {
    char* blocks[kBlocks];
    for (char*& block : blocks) {
      block = make(size);
      make(size + 500);  // Keeps freed neighbours apart.
    }
    const struct mallinfo2 before = now();
    for (char* block : blocks) free(block);
    const struct mallinfo2 after = now();
    printf("%zu bytes: %zu fast, %zu in bins\n", size, after.smblks - before.smblks,
           after.ordblks - before.ordblks);
  }
}

void perturbation() {
  auto* block = reinterpret_cast<unsigned char*>(make(5000));
  memset(block, 1, 5000);
  make(16);
  printf("zeroed: %d\n", static_cast<unsigned char*>(opaque(calloc(1, 3000)))[2000]);
  unsigned char* volatile freed = block;
  const size_t mapped = now().hblks;
  free(block);
  printf("freed: %d\n", now().hblks == mapped ? freed[2000] : -1);
  block = reinterpret_cast<unsigned char*>(make(5000));
  printf("fresh: %d\n", block[2000]);
  block = reinterpret_cast<unsigned char*>(make(900000));
  printf("fresh and mapped: %d\n", block[700000]);
}

void trimming() {
  char* blocks[30];
  for (char*& block : blocks) block = make(60000);
  printf("held: %s\n", now().arena >= 30 * 60000 ? "all" : "less");
  size_t last = now().arena;
  int shrinks = 0;
  for (int i = 29; i >= 0; --i) {
    free(blocks[i]);
    shrinks += now().arena < last;
    last = now().arena;
  }
  printf("times shrunk: %d, top at least 128 KiB: %d\n", shrinks, now().keepcost >= 131072);
  printf("malloc_trim: %d\n", malloc_trim(0));
  printf("top below two pages: %d\n", now().keepcost <= 8192);
}

void dynamics() {
  // Large enough to miss what is free by now.
  const size_t before = now().hblks;
  free(make(8000000));
  char* again = make(8000000);
  printf("mapped again: %zu\n", now().hblks - before);
  free(again);
  printf("free top kept: %d\n", now().keepcost >= 8000000);
  free(make(35000000));
  again = make(35000000);
  printf("beyond the ceiling, mapped again: %zu\n", now().hblks - before);
  free(again);
}

void observe() {
  first_growth();
  landing();
  growth();
  caches();
  perturbation();
  trimming();
  dynamics();
}

// ---- Views.

// Some of everything: cached, fast, small, large, unsorted, mapped blocks. Everything is made
// before anything is freed, and nothing is split: so no count depends on a header's size.
void known_state() {
  constexpr size_t kSizes[] = {24, 56, 88, 120, 600, 2000, 2500, 9000, 70000, 11000};
  constexpr int kBlocks = 9;
  char* blocks[std::size(kSizes)][kBlocks];
  for (size_t i = 0; i < std::size(kSizes); ++i) {
    for (char*& block : blocks[i]) {
      block = make(kSizes[i]);
      make(300);
    }
  }
  char* mapped = make(200000);
  for (int i = 0; i < 3; ++i) make(300000);
  free(mapped);
  const auto drop = [&blocks](size_t first, size_t last) {
    for (size_t i = first; i <= last; ++i) {
      for (char* block : blocks[i]) free(block);
    }
  };
  drop(4, 8);
  make(100000);  // Files what was unsorted.
  drop(9, 9);
  drop(0, 3);
}

void* live_with_known_state(void* turn) {
  auto* barrier = static_cast<pthread_barrier_t*>(turn);
  pthread_barrier_wait(barrier);
  known_state();
  pthread_barrier_wait(barrier);
  pause();  // The process ends first.
  return nullptr;
}

// The threads are there before anything else is allocated, and take turns.
void known_states_of_threads() {
  constexpr int kThreads = 2;
  static pthread_barrier_t turns[kThreads];
  for (pthread_barrier_t& turn : turns) {
    pthread_barrier_init(&turn, nullptr, 2);
    pthread_t thread;
    if (pthread_create(&thread, nullptr, live_with_known_state, &turn) != 0) abort();
  }
  for (pthread_barrier_t& turn : turns) {
    pthread_barrier_wait(&turn);
    pthread_barrier_wait(&turn);
  }
}

void view(const char* what) {
  if (strcmp(what, "threads") == 0) {
    known_states_of_threads();
    known_state();
    malloc_stats();
    what = "info";
  } else {
    known_state();
  }
  if (strcmp(what, "info") == 0) {
    printf("result: %d\n", malloc_info(0, stdout));
  } else if (strcmp(what, "options") == 0) {
    errno = 3;
    printf("result: %d\n", malloc_info(1, stdout));
    printf("result: %d\n", malloc_info(-1, stdout));
    printf("errno: %d\n", errno);
  } else if (strcmp(what, "stats") == 0) {
    malloc_stats();
    fputs("behind it\n", stderr);
  } else if (strcmp(what, "closed") == 0) {
    fclose(stderr);
    close(2);
    malloc_stats();
    puts("closed");
  } else if (strcmp(what, "buffered") == 0) {  // glibc waits for itself here.
    static char errors[4096];
    setvbuf(stderr, errors, _IOFBF, sizeof errors);
    malloc_stats();
    fputs("behind it\n", stderr);
    fflush(stderr);
  } else if (strcmp(what, "mallinfo") == 0) {
    const struct mallinfo2 wide = mallinfo2();
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    const struct mallinfo narrow = mallinfo();
#pragma GCC diagnostic pop
    printf("arena %zu, ordblks %zu, smblks %zu, hblks %zu, hblkhd %zu, usmblks %zu\n", wide.arena,
           wide.ordblks, wide.smblks, wide.hblks, wide.hblkhd, wide.usmblks);
    printf("sums: %d\n", wide.uordblks + wide.fordblks == wide.arena);
    printf("fast within free: %d\n", wide.fsmblks <= wide.fordblks && wide.fsmblks != 0);
    printf("top within free: %d\n", wide.keepcost <= wide.fordblks && wide.keepcost != 0);
    printf("narrow: %d\n", static_cast<size_t>(narrow.arena) == wide.arena &&
                               static_cast<size_t>(narrow.fordblks) == wide.fordblks &&
                               static_cast<size_t>(narrow.hblkhd) == wide.hblkhd &&
                               static_cast<size_t>(narrow.keepcost) == wide.keepcost);
    make(3000000000);
    printf("cut to an int: %d\n", mallinfo2().hblkhd > 3000000000);
  }
}

// ---- Arenas.

void print_arenas(const char* when) {
  char* text = nullptr;
  size_t size = 0;
  FILE* file = open_memstream(&text, &size);
  malloc_info(0, file);
  fclose(file);
  int arenas = 0;
  for (const char* at = text; (at = strstr(at, "<heap nr=")) != nullptr; ++at) ++arenas;
  free(text);
  printf("%s: %d\n", when, arenas);
  fflush(stdout);
}

pthread_barrier_t all_here;
void* wait_with_a_block(void*) {
  free(make(2000));
  pthread_barrier_wait(&all_here);  // Counted between these.
  pthread_barrier_wait(&all_here);
  return nullptr;
}
void* use_a_block(void*) {
  free(make(2000));
  return nullptr;
}
pthread_t start_small(void* (*run)(void*)) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 128 << 10);
  pthread_t thread;
  if (pthread_create(&thread, &attributes, run, nullptr) != 0) abort();
  return thread;
}
void many_at_a_time(unsigned threads, const char* when) {
  pthread_barrier_init(&all_here, nullptr, threads + 1);
  for (unsigned i = 0; i < threads; ++i) start_small(wait_with_a_block);
  pthread_barrier_wait(&all_here);
  print_arenas(when);
}
void count_arenas(unsigned threads) {
  for (int i = 0; i < 5; ++i) pthread_join(start_small(use_a_block), nullptr);
  print_arenas("one after the other");
  many_at_a_time(threads, "at a time");
  const pid_t child = fork();
  if (child == 0) {
    print_arenas("in a child");
    for (int i = 0; i < 5; ++i) pthread_join(start_small(use_a_block), nullptr);
    print_arenas("one after the other in it");
    many_at_a_time(threads + 4, "at a time in it");
    _exit(0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  printf("status: %d\n", status);
  fflush(stdout);
  _exit(0);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  static char output[65536];
  setvbuf(stdout, output, _IOFBF, sizeof output);
  if (strcmp(argv[1], "observe") == 0) {
    for (int i = 2; i + 1 < argc; i += 2) {
      errno = 0;
      printf("mallopt(%s, %s): %d", argv[i], argv[i + 1],
             mallopt(atoi(argv[i]), atoi(argv[i + 1])));
      printf(" errno %d\n", errno);
    }
    observe();
  } else if (strcmp(argv[1], "views") == 0 && argc == 3) {
    view(argv[2]);
  } else if (strcmp(argv[1], "arenas") == 0 && argc == 3) {
    count_arenas(static_cast<unsigned>(atoi(argv[2])));
  } else {
    return 2;
  }
  return 0;
}
