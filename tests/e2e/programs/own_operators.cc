// SPDX-License-Identifier: Apache-2.0
// A C++ program with a malloc of its own, which knows its blocks and counts its calls. new is
// served by it too, as libstdc++ has it, and may be mixed with free. Prints the counts.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <new>
#include <string>
#include <vector>

namespace {

constexpr char kMine[] = "is mine";
char* next = nullptr;
size_t left = 0;
int taken = 0, given_back = 0;

char* take(size_t size) {
  ++taken;
  size = (size + 31) & ~size_t{15};
  if (left < size) {
    left = size > (1 << 20) ? size : 1 << 20;
    next = static_cast<char*>(
        mmap(nullptr, left, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  }
  char* block = next + 16;
  next += size;
  left -= size;
  memcpy(block - 16, &size, sizeof size);
  memcpy(block - 8, kMine, sizeof kMine);
  return block;
}
void check(const void* block) {
  if (memcmp(static_cast<const char*>(block) - 8, kMine, sizeof kMine) == 0) return;
  fputs("not mine\n", stderr);
  abort();
}

struct alignas(64) Aligned {
  char bytes[64];
};

template <class T>
T* opaque(T* block) {
  T* volatile hidden = block;
  return hidden;
}

}  // namespace

extern "C" void* malloc(size_t size) { return take(size); }
extern "C" void free(void* block) {
  if (block == nullptr) return;
  check(block);
  ++given_back;
}
extern "C" void* calloc(size_t count, size_t size) { return take(count * size); }  // Fresh: zero.
extern "C" void* realloc(void* old, size_t size) {
  char* block = take(size);
  if (old != nullptr) {
    check(old);
    size_t old_size = 0;
    memcpy(&old_size, static_cast<char*>(old) - 16, sizeof old_size);
    memcpy(block, old, old_size - 16 < size ? old_size - 16 : size);
  }
  return block;
}
extern "C" void* aligned_alloc(size_t alignment, size_t size) {
  const auto start = reinterpret_cast<uintptr_t>(take(size + alignment + 16));
  auto* block = reinterpret_cast<char*>((start + 15 + alignment) / alignment * alignment);
  memcpy(block - 8, kMine, sizeof kMine);
  return block;
}

int main() {
  static char output[256];
  setvbuf(stdout, output, _IOFBF, sizeof output);
  const int taken_before = taken;
  const int given_back_before = given_back;
  {
    std::vector<std::string> strings;
    for (int i = 0; i < 100; ++i) strings.emplace_back(100, 'x');
  }
  free(opaque(new int[10]));
  operator delete(opaque(malloc(10)));
  delete opaque(new Aligned);
  delete[] opaque(new Aligned[3]);
  delete[] opaque(new (std::nothrow) Aligned[3]);
  delete[] opaque(new (std::nothrow) int[3]);
  free(opaque(reallocarray(opaque(malloc(10)), 10, 10)));
  free(opaque(strdup("text")));
  printf("%d %d\n", taken - taken_before, given_back - given_back_before);
  return 0;
}
