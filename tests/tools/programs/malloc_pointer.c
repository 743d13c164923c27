/* SPDX-License-Identifier: Apache-2.0 */
/* Calls malloc by its address, as an executable that is not position-independent. */
#include <stdlib.h>

int main(void) {
  void* (*volatile take)(size_t) = malloc;
  void (*volatile give)(void*) = free;
  for (int i = 0; i < 1000; ++i) {
    void* block = take(100);
    if (block == NULL) return 1;
    give(block);
  }
  return 0;
}
