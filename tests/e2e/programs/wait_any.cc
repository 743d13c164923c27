// SPDX-License-Identifier: Apache-2.0
// wait_any: makes two children, then waits for any child until there is none. Prints what it saw;
// exit 0 if just its own two.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

int main() {
  pid_t children[2];
  for (int i = 0; i < 2; ++i) {
    children[i] = fork();
    if (children[i] == 0) {
      free(malloc(100));
      _exit(i + 1);
    }
  }
  int seen = 0;
  for (;;) {
    int status = 0;
    const pid_t pid = waitpid(-1, &status, __WALL);
    if (pid < 0) {
      if (errno == ECHILD) break;
      return 3;
    }
    if (pid != children[0] && pid != children[1]) {
      fprintf(stderr, "a child that is not ours: %d\n", pid);
      return 1;
    }
    ++seen;
  }
  printf("%d children\n", seen);
  return seen == 2 ? 0 : 1;
}
