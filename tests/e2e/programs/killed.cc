// SPDX-License-Identifier: Apache-2.0
// killed SIGNAL CALLS: makes CALLS allocations, frees every second one, then dies by the signal
// (11: by a wild write). Prints the calls made, first, and flushes: "CALLS FREES".
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const int signal_number = atoi(argv[1]);
  const int calls = atoi(argv[2]);
  static char output[256];
  setvbuf(stdout, output, _IOLBF, sizeof output);
  for (int i = 0; i < calls; ++i) {
    void* volatile p = malloc(static_cast<size_t>(1000000 + i % 7));
    void* volatile q = malloc(33);
    free(p);
    if (q == nullptr) return 1;
  }
  printf("%d %d\n", calls * 2, calls);
  fflush(stdout);
  if (signal_number == SIGSEGV) {
    volatile int* wild = reinterpret_cast<int*>(8);
    *wild = 1;
  }
  raise(signal_number);
  return 0;
}
