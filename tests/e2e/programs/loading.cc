// SPDX-License-Identifier: Apache-2.0
// loading deepbind|namespace LIBRARY: opens the library (loaded_library.c) with RTLD_DEEPBIND, or
// into a namespace of its own with dlmopen, and lets it and the program allocate, resize and free;
// with RTLD_DEEPBIND also each other's blocks. Prints what it saw; the same in every run.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace {

constexpr int kRounds = 300;
constexpr size_t kOwnSize = 1234;  // The library's blocks have 4321 bytes.

using Make = void* (*)(int);
using Grow = void* (*)(void*, int);
using Drop = void (*)(void*);

template <class Function>
Function function_of(void* library, const char* name) {
  return reinterpret_cast<Function>(dlsym(library, name));
}

int play(void* library, bool share) {
  const auto make = function_of<Make>(library, "library_make");
  const auto grow = function_of<Grow>(library, "library_grow");
  const auto drop = function_of<Drop>(library, "library_drop");
  if (make == nullptr || grow == nullptr || drop == nullptr) return 3;
  long sum = 0;
  for (int round = 0; round < kRounds; ++round) {
    auto* theirs = static_cast<char*>(make(round));
    auto* volatile ours = static_cast<char*>(malloc(kOwnSize));
    memset(ours, round, kOwnSize);
    sum += theirs[4320] + ours[kOwnSize - 1];
    if (share) {
      // Each frees what the other has allocated; the library resizes what it did not.
      ours = static_cast<char*>(grow(ours, round));
      sum += ours[0] + ours[kOwnSize - 1];
      free(theirs);
      drop(ours);
    } else {
      theirs = static_cast<char*>(grow(theirs, round));
      sum += theirs[4320];
      drop(theirs);
      free(ours);
    }
  }
  printf("sum %ld\n", sum);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const bool deep = strcmp(argv[1], "deepbind") == 0;
  void* library = deep ? dlopen(argv[2], RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND)
                       : dlmopen(LM_ID_NEWLM, argv[2], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    printf("%s\n", dlerror());
    return 4;
  }
  const int status = play(library, deep);
  printf("closed %d\n", dlclose(library));
  return status;
}
