/* SPDX-License-Identifier: Apache-2.0 */
/* Allocates a little and ends with the status in its argument. Linked statically in one test. */
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char** argv) {
  char* block = malloc(1000);
  if (block == NULL) return 1;
  snprintf(block, 1000, "answer %s", argc > 1 ? argv[1] : "0");
  puts(block);
  free(block);
  return argc > 1 ? atoi(argv[1]) : 0;
}
