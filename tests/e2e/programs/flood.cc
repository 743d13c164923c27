// SPDX-License-Identifier: Apache-2.0
// flood PAIRS: allocates and frees as fast as it can, PAIRS times.
#include <cstdio>
#include <cstdlib>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const unsigned long pairs = std::strtoul(argv[1], nullptr, 10);
  unsigned long sum = 0;
  for (unsigned long i = 0; i < pairs; ++i) {
    void* volatile block = std::malloc(16 + i % 64);
    sum += block != nullptr ? 1 : 0;
    std::free(block);
  }
  std::printf("%lu\n", sum);
  return 0;
}
