// SPDX-License-Identifier: Apache-2.0
// Allocates in a signal handler, again and again, while the program does the same: blocks of 64
// bytes outside, of 48 bytes inside. Prints how many of each. Both sizes come from the thread's
// cache, so no lock of the heap is ever held when the signal comes.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

static volatile sig_atomic_t signals;

static void on_signal(int number) {
  (void)number;
  void* volatile block = malloc(48);
  free(block);
  ++signals;
}

int main(void) {
  void* warm[2] = {malloc(47), malloc(63)};  // Of the same size classes, so that both are cached.
  free(warm[0]);
  free(warm[1]);
  struct sigaction action;
  memset(&action, 0, sizeof(action));
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigaction(SIGALRM, &action, NULL);
  const struct itimerval every = {{0, 100}, {0, 100}};
  setitimer(ITIMER_REAL, &every, NULL);
  int rounds = 0;
  for (; rounds < 10000 || signals < 200; ++rounds) {
    void* volatile block = malloc(64);
    free(block);
  }
  const struct itimerval never = {{0, 0}, {0, 0}};
  setitimer(ITIMER_REAL, &never, NULL);
  char line[64];
  const int n = snprintf(line, sizeof(line), "%d %d\n", rounds, (int)signals);
  return write(1, line, (size_t)n) == n ? 0 : 1;
}
