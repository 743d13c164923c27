// SPDX-License-Identifier: Apache-2.0
// stack_shapes SECTION LOG: allocates under frames of every shape: trees of calls in random order,
// frames that replace each other in place, huge, aligned and growing ones, deep recursion, machine
// code without unwinding information, libraries that come and go at one address. Its own account of
// each stack goes to LOG (shadow.h).
#include <alloca.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include "shadow.h"

namespace {

using victim::allocate;
using victim::Block;
using victim::release;
using victim::Shadow;

uint32_t random_state = 12345;
uint32_t next_random() {
  random_state = random_state * 1664525u + 1013904223u;
  return random_state >> 8;
}

// ---- Trees of calls.

void branch(int levels);

// Frames of many sizes; the call is in the middle, so that what follows it has another state.
#define BRANCH(name, room)                           \
  NOINLINE void name(int levels) {                   \
    HERE;                                            \
    volatile char space[room];                       \
    space[0] = 1;                                    \
    if (next_random() % 3 == 0) release(allocate()); \
    branch(levels - 1);                              \
    if (next_random() % 2 == 0) release(allocate()); \
    space[(room)-1] = space[0];                      \
  }
BRANCH(oak, 8)
BRANCH(elm, 8)
BRANCH(ash, 24)
BRANCH(fir, 56)
BRANCH(yew, 200)
BRANCH(beech, 1000)
BRANCH(maple, 8)
BRANCH(willow, 24)

NOINLINE void branch(int levels) {
  HERE;
  if (levels <= 0) return release(allocate());
  constexpr void (*kKinds[])(int) = {oak, elm, ash, fir, yew, beech, maple, willow};
  const uint32_t calls = 1 + next_random() % 2;
  for (uint32_t i = 0; i < calls; ++i) kKinds[next_random() % 8](levels);
}

void random_trees() {
  HERE;
  for (int round = 0; round < 60; ++round) branch(static_cast<int>(next_random() % 14));
  printf("random: %u\n", next_random() % 1000);
}

// One frame is replaced by another of the same size, over the same innermost function: only the
// return address differs.
NOINLINE Block leaf() {
  HERE;
  return allocate();
}
NOINLINE void first_way() {
  HERE;
  release(leaf());
}
NOINLINE void second_way() {
  HERE;
  release(leaf());
}
NOINLINE void third_way(int levels) {
  HERE;
  if (levels > 0) third_way(levels - 1);
  release(leaf());
}
void frames_that_replace_each_other() {
  HERE;
  for (int round = 0; round < 500; ++round) {
    first_way();
    second_way();
    if (round % 10 == 0) third_way(round % 30);
  }
  printf("rounds: 500\n");
}

// ---- Unusual frames.

NOINLINE void huge_frame(int levels) {
  HERE;
  volatile char room[70000];
  room[0] = 1;
  room[sizeof room - 1] = 1;
  const Block block = allocate();
  if (levels > 0) huge_frame(levels - 1);
  release(block);
  room[1] = room[0];
}
NOINLINE void giant_frame() {
  HERE;
  volatile char room[3 << 20];
  room[0] = 1;
  room[sizeof room - 1] = 1;
  release(allocate());
  huge_frame(3);
  room[1] = room[0];
}
NOINLINE void growing_frame(int levels) {
  HERE;
  auto* room = static_cast<volatile char*>(alloca(16 + next_random() % 5000));
  room[0] = 1;
  const Block block = allocate();
  if (levels > 0) growing_frame(levels - 1);
  auto* more = static_cast<volatile char*>(alloca(16 + next_random() % 300));
  more[0] = room[0];
  release(block);
}
NOINLINE void aligned_frame(int levels) {
  HERE;
  alignas(256) volatile char room[300];
  room[0] = 1;
  const Block block = allocate();
  if (levels % 2 != 0) {
    growing_frame(2);
  } else if (levels > 0) {
    huge_frame(1);
  }
  if (levels > 0) aligned_frame(levels - 1);
  release(block);
  room[1] = room[0];
}
NOINLINE long many_arguments(long a, long b, long c, long d, long e, long f, long g, long h,
                             long i) {
  HERE;
  release(allocate());
  if (a > 0) return many_arguments(a - 1, b, c, d, e, f, g, h, i + 1) + b;
  return c + d + e + f + g + h + i;
}
void unusual_frames() {
  HERE;
  long sum = 0;
  for (int round = 0; round < 10; ++round) {
    huge_frame(round % 4);
    giant_frame();
    growing_frame(round);
    aligned_frame(round);
    sum += many_arguments(round, 1, 2, 3, 4, 5, 6, 7, 8);
  }
  printf("sum: %ld\n", sum);
}

// ---- Beyond the depth that is kept, and back.

NOINLINE void deeper(int levels) {
  HERE;
  if (levels % 37 == 0) release(allocate());
  if (levels > 0) deeper(levels - 1);
  if (levels % 41 == 0) release(allocate());
}
void deep_recursion() {
  HERE;
  for (const int levels : {50, 126, 127, 128, 129, 200, 3, 1000, 100, 5000, 2}) {
    deeper(levels);
    release(allocate());
  }
  printf("depths: 11\n");
}

// ---- Machine code that no unwinding information describes.

using Call = void (*)(void (*)(int), int);

// push rbp; mov rbp, rsp; mov rax, rdi; mov edi, esi; call rax; pop rbp; ret
constexpr unsigned char kWithFramePointer[] = {0x55, 0x48, 0x89, 0xe5, 0x48, 0x89, 0xf8,
                                               0x89, 0xf7, 0xff, 0xd0, 0x5d, 0xc3};
// sub rsp, 24; mov rax, rdi; mov edi, esi; call rax; add rsp, 24; ret
constexpr unsigned char kWithout[] = {0x48, 0x83, 0xec, 0x18, 0x48, 0x89, 0xf8, 0x89,
                                      0xf7, 0xff, 0xd0, 0x48, 0x83, 0xc4, 0x18, 0xc3};
// The same with rbp used for something else.
constexpr unsigned char kMisleading[] = {0x55, 0x48, 0x89, 0xfd, 0x89,
                                         0xf7, 0xff, 0xd5, 0x5d, 0xc3};

Call write_code(void* at, const unsigned char* code, size_t bytes) {
  memcpy(at, code, bytes);
  Call call = nullptr;
  memcpy(&call, &at, sizeof call);
  return call;
}

NOINLINE void from_code(int levels) {
  HERE;
  release(allocate());
  if (levels > 0) from_code(levels - 1);
}
NOINLINE void runs_code(Call code, int levels) {
  HERE;
  release(allocate());
  code(from_code, levels);
  release(allocate());
}

NOINLINE void run_code(const unsigned char* code, size_t bytes) {
  HERE;
  for (int round = 0; round < 20; ++round) {
    void* memory =
        mmap(nullptr, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const Call call = write_code(static_cast<char*>(memory) + round * 16, code, bytes);
    for (int i = 0; i < 5; ++i) runs_code(call, i);
    munmap(memory, 4096);
  }
  printf("rounds: 20\n");
}
void code_with_frame_pointer() {
  HERE;
  run_code(kWithFramePointer, sizeof kWithFramePointer);
}
void code_without_frame_pointer() {
  HERE;
  run_code(kWithout, sizeof kWithout);
  run_code(kMisleading, sizeof kMisleading);
}

// Other code at the same place, without an unmapping in between.
void code_that_changes() {
  HERE;
  void* memory =
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (int round = 0; round < 60; ++round) {
    const bool with = round % 2 == 0;
    const Call call = write_code(memory, with ? kWithFramePointer : kWithout,
                                 with ? sizeof kWithFramePointer : sizeof kWithout);
    runs_code(call, round % 4);
  }
  munmap(memory, 4096);
  printf("rounds: 60\n");
}

// malloc called by such code itself.
void code_that_allocates() {
  HERE;
  // push rbp; mov rbp, rsp; call *rdi with edi = esi; returns the block.
  void* memory =
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memcpy(memory, kWithFramePointer, sizeof kWithFramePointer);
  void* (*call)(void* (*)(size_t), size_t) = nullptr;
  memcpy(&call, &memory, sizeof call);
  for (int round = 0; round < 50; ++round) {
    const size_t size = victim::next_size.fetch_add(1);
    victim::note('m', size);
    void* block = call(malloc, size);
    release({static_cast<char*>(block), size});
  }
  munmap(memory, 4096);
  printf("rounds: 50\n");
}

// ---- Libraries at one address after another.

NOINLINE void from_library(int levels) {
  HERE;
  release(allocate());
  if (levels > 0) from_library(levels - 1);
}
NOINLINE int use_library(const char* path, const char* name, int levels) {
  HERE;
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) abort();
  const auto calls = reinterpret_cast<int (*)(void (*)(int), int)>(dlsym(library, name));
  Shadow& own = victim::shadow();
  own.names[own.depth++] = name;
  const int result = calls(from_library, levels);
  --own.depth;
  release(allocate());
  dlclose(library);
  return result;
}
void libraries_at_one_address() {
  HERE;
  char program[4096];
  const ssize_t length = readlink("/proc/self/exe", program, sizeof program - 64);
  program[length] = 0;
  *strrchr(program, '/') = 0;
  char first[4200], second[4200];
  snprintf(first, sizeof first, "%s/libshape_first.so", program);
  snprintf(second, sizeof second, "%s/libshape_second.so", program);
  int sum = 0;
  for (int round = 0; round < 30; ++round) {
    sum += use_library(first, "first_calls", round % 5);
    sum += use_library(second, "second_calls", round % 3);
  }
  printf("sum: %d\n", sum);
}

constexpr victim::Section kSections[] = {
    SECTION(random_trees),
    SECTION(frames_that_replace_each_other),
    SECTION(unusual_frames),
    SECTION(deep_recursion),
    SECTION(code_with_frame_pointer),
    SECTION(code_without_frame_pointer),
    SECTION(code_that_changes),
    SECTION(code_that_allocates),
    SECTION(libraries_at_one_address),
};

}  // namespace

int main(int argc, char** argv) {
  static Shadow own;
  own.names[own.depth++] = "main";
  return victim::run_section(kSections, argc, argv, &own);
}
