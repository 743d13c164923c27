// SPDX-License-Identifier: Apache-2.0
// flood PAIRS: allocates and frees as fast as it can, PAIRS times. Its sizes follow no rule, so
// that a pair takes at least a byte in any trace, however well that is packed.
#include <cstdio>
#include <cstdlib>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const unsigned long pairs = std::strtoul(argv[1], nullptr, 10);
  unsigned long sum = 0;
  unsigned long random = 1;
  for (unsigned long i = 0; i < pairs; ++i) {
    random = random * 6364136223846793005U + 1442695040888963407U;
    void* volatile block = std::malloc(16 + (random >> 54));
    sum += block != nullptr ? 1 : 0;
    std::free(block);
  }
  std::printf("%lu\n", sum);
  return 0;
}
