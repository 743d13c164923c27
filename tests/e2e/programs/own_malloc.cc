// SPDX-License-Identifier: Apache-2.0
// A program with a malloc of its own, which maps memory under its lock, as linked-in allocators do.
// Its threads allocate first thing. Prints "done BLOCKS".
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

namespace {

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
char* next = nullptr;
size_t left = 0;
int blocks = 0;

void* take(size_t size) {
  size = (size + 31) & ~size_t{15};
  pthread_mutex_lock(&lock);
  if (left < size) {
    left = size > (1 << 20) ? size : 1 << 20;
    next = static_cast<char*>(
        mmap(nullptr, left, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  }
  char* block = next;
  next += size;
  left -= size;
  ++blocks;
  pthread_mutex_unlock(&lock);
  memcpy(block, &size, sizeof(size));
  return block + 16;
}

void* worker(void*) {
  for (int i = 0; i < 2000; ++i) take(5000);
  return nullptr;
}

}  // namespace

extern "C" void* malloc(size_t size) { return take(size); }
extern "C" void free(void*) {}
extern "C" void* calloc(size_t count, size_t size) { return take(count * size); }  // Fresh: zero.
extern "C" void* realloc(void* old, size_t size) {
  void* block = take(size);
  if (old != nullptr) {
    size_t old_size = 0;
    memcpy(&old_size, static_cast<char*>(old) - 16, sizeof(old_size));
    memcpy(block, old, old_size - 16 < size ? old_size - 16 : size);
  }
  return block;
}

int main() {
  pthread_t threads[4];
  for (pthread_t& thread : threads) pthread_create(&thread, nullptr, worker, nullptr);
  for (pthread_t& thread : threads) pthread_join(thread, nullptr);
  printf("done %d\n", blocks >= 8000);
  return 0;
}
