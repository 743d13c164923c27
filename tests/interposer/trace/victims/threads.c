// SPDX-License-Identifier: Apache-2.0
// threads N: one after the other, N threads that each allocate and release one block of 100 bytes,
// the last 8 at once. threads N tiny: the same on the smallest stacks there are.
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static void* work(void* argument) {
  void* volatile block = malloc(100);
  free(block);
  return argument;
}

int main(int argc, char** argv) {
  const int count = atoi(argv[1]);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  if (argc > 2 && pthread_attr_setstacksize(&attributes, PTHREAD_STACK_MIN) != 0) return 2;
  pthread_t last[8];
  for (int i = 0; i < count; ++i) {
    pthread_t* thread = &last[i % 8];
    if (pthread_create(thread, &attributes, work, NULL) != 0) return 1;
    if (i < count - 8) pthread_join(*thread, NULL);
  }
  for (int i = count < 8 ? 0 : count - 8; i < count; ++i) pthread_join(last[i % 8], NULL);
  return 0;
}
