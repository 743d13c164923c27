// SPDX-License-Identifier: Apache-2.0
// many_threads alive|passing TRUTH COUNT: so many threads at once, or one batch after another. Each
// allocates and counts its calls in TRUTH (process_truth.h), where the program also notes how much
// of the recorder's shared region was resident in it: with all threads alive, at most, and in the
// end.
#include <pthread.h>
#include <stdio.h>

#include "process_truth.h"

namespace {

constexpr uint32_t kSizes = 500;
constexpr int kBatch = 100;
pthread_barrier_t all_are_here;

// KiB of the mapping named after heapledger; 0 where nobody records. Read without stdio, which
// allocates.
uint32_t region_kib() {
  static char text[1 << 16];
  const int fd = open("/proc/self/smaps", O_RDONLY);
  size_t held = 0;
  uint32_t kib = 0;
  bool in_region = false;
  for (;;) {
    const ssize_t got = read(fd, text + held, sizeof text - held);
    if (got <= 0) break;
    held += static_cast<size_t>(got);
    char* line = text;
    while (char* end =
               static_cast<char*>(memchr(line, '\n', held - static_cast<size_t>(line - text)))) {
      *end = 0;
      if (strstr(line, "/memfd:heapledger") != nullptr) in_region = true;
      if (in_region && strncmp(line, "Rss:", 4) == 0) {
        kib += static_cast<uint32_t>(atoi(line + 4));
        in_region = false;
      }
      line = end + 1;
    }
    held -= static_cast<size_t>(line - text);
    memmove(text, line, held);
  }
  close(fd);
  return kib;
}

pthread_t start(void* (*run)(void*), uintptr_t number) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 64 << 10);
  pthread_t thread;
  if (pthread_create(&thread, &attributes, run, reinterpret_cast<void*>(number)) != 0) abort();
  return thread;
}

void* live_with_all(void* number) {
  const auto part = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(number)) % kSizes;
  victim::play_part(part, 2);
  pthread_barrier_wait(&all_are_here);
  pthread_barrier_wait(&all_are_here);
  victim::play_part(part, 1);
  return nullptr;
}
void* pass(void* number) {
  victim::play_part(static_cast<uint32_t>(reinterpret_cast<uintptr_t>(number)) % kSizes, 2);
  return nullptr;
}

// What the recorder gives back it gives back soon, not at once.
uint32_t region_kib_later() {
  uint32_t kib = region_kib();
  for (int i = 0; i < 100 && kib > 4096; ++i) {
    usleep(50'000);
    kib = region_kib();
  }
  return kib;
}

void alive(int count) {
  static pthread_t threads[10000];
  pthread_barrier_init(&all_are_here, nullptr, static_cast<unsigned>(count) + 1);
  for (int i = 0; i < count; ++i) threads[i] = start(live_with_all, static_cast<uintptr_t>(i));
  pthread_barrier_wait(&all_are_here);
  victim::truth->unused[0] = region_kib();
  pthread_barrier_wait(&all_are_here);
  for (int i = 0; i < count; ++i) pthread_join(threads[i], nullptr);
}

void passing(int count) {
  for (int done = 0; done < count; done += kBatch) {
    pthread_t threads[kBatch];
    for (int i = 0; i < kBatch; ++i) threads[i] = start(pass, static_cast<uintptr_t>(done + i));
    for (pthread_t thread : threads) pthread_join(thread, nullptr);
    if (done % 1000 != 0) continue;
    const uint32_t kib = region_kib();
    if (kib > victim::truth->unused[0]) victim::truth->unused[0] = kib;
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  victim::open_truth(argv[2]);
  victim::truth->parts = kSizes;
  const int count = atoi(argv[3]);
  if (strcmp(argv[1], "alive") == 0) {
    if (count > 10000) return 2;
    alive(count);
  } else {
    passing(count);
  }
  victim::truth->unused[1] = region_kib_later();
  printf("threads: %d\n", count);
  return 0;
}
