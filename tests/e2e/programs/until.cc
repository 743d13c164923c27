// SPDX-License-Identifier: Apache-2.0
// until FILE [alone | slow]: allocates and frees until FILE exists, then 100,000 times more, runs a
// child (unless alone or slow), and ends with status 7. Slow: 200 calls a second at first. What it
// prints is the same in every run.
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

namespace {

constexpr int kPairs = 2000;
constexpr int kLastRounds = 50;

unsigned long make_pairs(int count) {
  unsigned long sum = 0;
  for (int i = 0; i < count; ++i) {
    const auto size = static_cast<size_t>(16 + i % 700);
    void* volatile block = malloc(size);
    sum += block != nullptr ? size : 0;
    free(block);
  }
  return sum;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  printf("begin\n");
  fflush(stdout);
  const bool slow = argc > 2 && argv[2][0] == 's';
  while (access(argv[1], F_OK) != 0) {
    make_pairs(slow ? 1 : kPairs);
    usleep(slow ? 10'000 : 2000);
  }
  unsigned long sum = 0;
  for (int i = 0; i < kLastRounds; ++i) sum += make_pairs(kPairs);
  if (argc == 2 && system("echo child; echo its stderr >&2") != 0) return 3;
  printf("end %lu\n", sum);
  return 7;
}
