// SPDX-License-Identifier: Apache-2.0
// Linked statically: cannot be recorded.
#include <stdio.h>
#include <stdlib.h>
int main(void) {
  void* volatile p = malloc(10);
  free(p);
  puts("static");
  return 7;
}
