// SPDX-License-Identifier: Apache-2.0
// Memory system calls on every path there is: the allocator, libc's functions, syscall(), an
// instruction of our own, the dynamic linker, thread stacks; in threads and in children.
//
// Lengths tell who made a call: kRawPages and kOwnPages by none of libc's functions, kLibPages by
// them.
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kRawBytes = 3 * kPage;
constexpr size_t kOwnBytes = 5 * kPage;
constexpr size_t kLibBytes = 2 * kPage;
constexpr int kProtection = PROT_READ | PROT_WRITE;
constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS;

void by_syscall(int times) {
  for (int i = 0; i < times; ++i) {
    const long address = syscall(SYS_mmap, 0, kRawBytes, kProtection, kFlags, -1, 0);
    syscall(SYS_mprotect, address, kRawBytes, PROT_READ);
    syscall(SYS_munmap, address, kRawBytes);
  }
}

long own_instruction(long number, long a, long b, long c, long d, long e, long f) {
  register long r10 asm("r10") = d;
  register long r8 asm("r8") = e;
  register long r9 asm("r9") = f;
  long result = 0;
  asm volatile("syscall"
               : "=a"(result)
               : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return result;
}

void by_instruction(int times) {
  for (int i = 0; i < times; ++i) {
    const long address =
        own_instruction(SYS_mmap, 0, kOwnBytes, PROT_READ | PROT_WRITE, kFlags, -1, 0);
    own_instruction(SYS_munmap, address, kOwnBytes, 0, 0, 0, 0);
  }
}

void by_libc(int times) {
  for (int i = 0; i < times; ++i) {
    char* p = static_cast<char*>(mmap(nullptr, kLibBytes, kProtection, kFlags, -1, 0));
    p[0] = 1;
    madvise(p, kLibBytes, MADV_DONTNEED);
    p = static_cast<char*>(mremap(p, kLibBytes, 2 * kLibBytes, MREMAP_MAYMOVE));
    munmap(p, 2 * kLibBytes);
  }
}

void by_allocator() {
  for (size_t bytes = 50'000; bytes < 3'000'000; bytes *= 2) {
    void* volatile p = malloc(bytes);
    memset(p, 1, 64);
    free(p);
  }
}

void* all_ways(void*) {
  by_syscall(20);
  by_libc(20);
  by_instruction(20);
  by_allocator();
  by_syscall(5);
  return nullptr;
}

void wait_for(pid_t child) {
  int status = 0;
  if (waitpid(child, &status, 0) != child || status != 0) abort();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && strcmp(argv[1], "child") == 0) {
    all_ways(nullptr);
    return 0;
  }
  all_ways(nullptr);
  for (int i = 0; i < 3; ++i) {  // One after another: the arenas are then the same each time.
    pthread_t thread;
    if (pthread_create(&thread, nullptr, &all_ways, nullptr) != 0) return 1;
    pthread_join(thread, nullptr);
  }
  void* library = dlopen("libresolv.so.2", RTLD_NOW);
  if (library == nullptr) return 1;
  by_syscall(3);
  dlclose(library);
  pid_t child = fork();
  if (child == 0) {
    all_ways(nullptr);
    _exit(0);
  }
  wait_for(child);
  child = fork();
  if (child == 0) {
    by_syscall(1);
    execl(argv[0], argv[0], "child", nullptr);
    _exit(1);
  }
  wait_for(child);
  child = vfork();
  if (child == 0) {
    by_libc(2);
    _exit(0);
  }
  wait_for(child);
  by_libc(1);
  puts("done");
  return 0;
}
