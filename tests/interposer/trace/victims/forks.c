// SPDX-License-Identifier: Apache-2.0
// Forks while other threads allocate: 20 children, each allocating 10 blocks of 77 bytes, every
// second one forking a grandchild that does the same. Ends with 0 if all of them ended with 0.
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static atomic_int stop;

static void* noise(void* argument) {
  while (!stop) {
    void* volatile block = malloc(5000);
    free(block);
  }
  return argument;
}

static void work(void) {
  for (int i = 0; i < 10; ++i) {
    void* volatile block = malloc(77);
    if (i % 2) free(block);
  }
}

static int wait_for(pid_t child) {
  int status = 1;
  return waitpid(child, &status, 0) == child && status == 0 ? 0 : 1;
}

int main(void) {
  pthread_t threads[2];
  for (int i = 0; i < 2; ++i) pthread_create(&threads[i], NULL, noise, NULL);
  int failures = 0;
  for (int i = 0; i < 20; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      work();
      if (i % 2 == 0) _exit(0);
      const pid_t grandchild = fork();
      if (grandchild == 0) {
        work();
        exit(0);
      }
      _exit(wait_for(grandchild));
    }
    failures += wait_for(child);
  }
  stop = 1;
  for (int i = 0; i < 2; ++i) pthread_join(threads[i], NULL);
  return failures;
}
