// SPDX-License-Identifier: Apache-2.0
// refill ROUNDS: one stack allocates blocks of about 200 KiB, fills and frees them, four alive at a
// time, beside small ones that live on. Prints a sum that the blocks' contents decide.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>

namespace {

constexpr size_t kAlive = 4;

char* refill(size_t bytes, char with) {
  char* buffer = static_cast<char*>(malloc(bytes));
  if (buffer == nullptr) abort();
  memset(buffer, with, bytes);
  return buffer;
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? atoi(argv[1]) : 1000;
  char* alive[kAlive] = {};
  unsigned long sum = 0;
  char* chain = nullptr;
  for (int i = 0; i < rounds; ++i) {
    const size_t slot = static_cast<size_t>(i) % kAlive;
    if (alive[slot] != nullptr) sum += static_cast<unsigned char>(alive[slot][1000]);
    free(alive[slot]);
    alive[slot] = refill((190 + static_cast<size_t>(i * 7 % 20)) << 10, static_cast<char>(i));
    if (i % 10 == 0) {
      char* node = static_cast<char*>(malloc(48));
      memcpy(node, &chain, sizeof chain);
      chain = node;
    }
  }
  while (chain != nullptr) {
    char* node = chain;
    memcpy(&chain, node, sizeof chain);
    free(node);
    ++sum;
  }
  for (char* block : alive) free(block);
  printf("%lu\n", sum);
  return 0;
}
