// SPDX-License-Identifier: Apache-2.0
// secure: prints what a program gets of the allocator's settings in its environment; for runs with
// raised privileges. Built twice: alone, and linked with libheapledger.so, which is how that gets
// into a program whose LD_PRELOAD the loader ignores.
#include <dlfcn.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>

int main() {
  // The top has room for the first. The second is mapped where the threshold is 65536, not where it
  // is the default.
  void* volatile first = malloc(100000);
  void* volatile block = malloc(100000);
  if (first == nullptr || block == nullptr) return 1;
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(&malloc), &info) == 0) return 1;
  const char* slash = strrchr(info.dli_fname, '/');
  printf("secure %lu, malloc of %s, mapped %zu\n", getauxval(AT_SECURE),
         slash == nullptr ? info.dli_fname : slash + 1, mallinfo2().hblks);
  free(block);
  free(first);
  return 0;
}
