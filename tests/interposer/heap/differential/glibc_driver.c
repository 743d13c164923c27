// SPDX-License-Identifier: Apache-2.0
//
// The program whose malloc is glibc's: makes the calls that it finds in shared memory (protocol.h)
// and writes down what they return. It makes no call of the malloc family on its own, so its heap
// is as the sequence makes it; it is started afresh for each sequence, under a tracer, and asks the
// kernel itself (seccomp) to stop it at memory calls only.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/interposer/heap/differential/protocol.h"

#define PAGE 4096UL

static void* wall;

// Exactly one thread runs at a time: the one whose number is here. Thread 0 hands over and waits.
static _Atomic uint32_t turn;
static struct {
  pthread_t id;
  int alive;
  const struct Op* op;  // What to do next; NULL: end.
  uint64_t index;
} threads[kThreadsMax];
// Stacks of our own, so that pthread_create maps nothing.
static char stacks[kThreadsMax][kThreadStackBytes] __attribute__((aligned(64)));
static struct Shared* shared;

// Exit statuses tell the tester where it ended; there is no stdio to say it with.
enum { kNoSharedMemory = 90, kNoSeccomp = 91, kUnknownOp = 92, kNoThread = 93, kNoFork = 94 };

static void trace_memory_calls(void) {
  const struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_brk, 6, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 5, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_munmap, 4, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mremap, 3, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_madvise, 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mprotect, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE),
  };
  const struct sock_fprog program = {sizeof code / sizeof code[0], (struct sock_filter*)code};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) _exit(kNoSeccomp);
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) _exit(kNoSeccomp);
}

// Under a limit on the address space the stack cannot grow: it is made large enough before.
static void grow_stack(void) {
  volatile char pages[64 * PAGE];
  for (size_t i = 0; i < sizeof pages; i += PAGE) pages[i] = 1;
}

static void limit_address_space(uint64_t more) {
  char text[64];
  const int fd = open("/proc/self/statm", O_RDONLY);
  const ssize_t length = read(fd, text, sizeof text - 1);
  close(fd);
  uint64_t pages = 0;
  for (ssize_t i = 0; i < length && text[i] >= '0' && text[i] <= '9'; ++i) {
    pages = 10 * pages + (uint64_t)(text[i] - '0');
  }
  struct rlimit limit = {pages * PAGE + more, RLIM_INFINITY};
  setrlimit(RLIMIT_AS, &limit);
}

static void remove_wall(void) {
  if (wall != NULL) munmap(wall, PAGE);
  wall = NULL;
}

static void build_wall(uint64_t distance) {
  remove_wall();
  const uintptr_t at = ((uintptr_t)sbrk(0) + distance + PAGE - 1) & ~(PAGE - 1);
  void* memory =
      mmap((void*)at, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (memory != MAP_FAILED) wall = memory;
}

static void give_turn(uint32_t to) {
  atomic_store(&turn, to);
  syscall(SYS_futex, &turn, FUTEX_WAKE, kThreadsMax, NULL, NULL, 0);
}

static void await_turn(uint32_t mine) {
  for (;;) {
    const uint32_t now = atomic_load(&turn);
    if (now == mine) return;
    syscall(SYS_futex, &turn, FUTEX_WAIT, now, NULL, NULL, 0);
  }
}

static void run(const struct Op* op, uint64_t index);

static void* thread_main(void* argument) {
  const uint32_t mine = (uint32_t)(uintptr_t)argument;
  for (;;) {
    await_turn(mine);
    if (threads[mine].op == NULL) return NULL;  // Thread 0 waits for the end, not for its turn.
    run(threads[mine].op, threads[mine].index);
    give_turn(0);
  }
}

static void start_thread(uint64_t number) {
  if (number == 0 || number >= kThreadsMax || threads[number].alive) return;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstack(&attributes, stacks[number], kThreadStackBytes);
  if (pthread_create(&threads[number].id, &attributes, thread_main, (void*)number) != 0) {
    _exit(kNoThread);
  }
  threads[number].alive = 1;
}

static void end_thread(uint64_t number) {
  if (number >= kThreadsMax || !threads[number].alive) return;
  threads[number].op = NULL;
  threads[number].alive = 0;
  give_turn((uint32_t)number);
  pthread_join(threads[number].id, NULL);
  give_turn(0);
}

// The child has the heap and this thread. The parent ends as it does.
static void go_on_in_child(void) {
  const pid_t child = fork();
  if (child < 0) _exit(kNoFork);
  if (child > 0) {
    int status = 0;
    if (waitpid(child, &status, 0) != child) _exit(kNoFork);
    if (WIFSIGNALED(status)) abort();
    _exit(WEXITSTATUS(status));
  }
  for (size_t i = 0; i < kThreadsMax; ++i) threads[i].alive = 0;
}

static void run_in(uint32_t number, const struct Op* op, uint64_t index) {
  if (number >= kThreadsMax || !threads[number].alive) {
    run(op, index);
    return;
  }
  threads[number].op = op;
  threads[number].index = index;
  give_turn(number);
  await_turn(0);
}

static void take_snapshot(uint64_t* words) {
  const struct mallinfo2 info = mallinfo2();
  memcpy(words, &info, kInfoWords * sizeof(uint64_t));
}

// What the program or somebody else in the process does, besides allocating.
static uint64_t run_other(const struct Op* op) {
  switch (op->kind) {
    case kOpTrim:
      return (uint64_t)malloc_trim(op->a);
    case kOpMallopt:
      return (uint64_t)mallopt((int)op->a, (int)op->b);
    case kOpInfo:
      take_snapshot(shared->infos[op->a]);
      return 0;
    case kOpSbrk:
      return (uint64_t)sbrk((intptr_t)op->a);
    case kOpWall:
      build_wall(op->a);
      return 0;
    case kOpUnwall:
      remove_wall();
      return 0;
    case kOpLimit:
      limit_address_space(op->a);
      return 0;
    case kOpUnlimit: {
      const struct rlimit limit = {RLIM_INFINITY, RLIM_INFINITY};
      setrlimit(RLIMIT_AS, &limit);
      return 0;
    }
    case kOpForeignMapping:
      return (uint64_t)mmap(NULL, op->a, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    case kOpThreadStart:
      start_thread(op->a);
      return 0;
    case kOpThreadEnd:
      end_thread(op->a);
      return 0;
    case kOpFork:
      go_on_in_child();
      return 0;
    default:
      _exit(kUnknownOp);
  }
}

static void run(const struct Op* op, uint64_t index) {
  struct OpResult* result = &shared->results[index];
  void** slot = &shared->slots[op->slot];
  int status = -1;
  errno = kErrnoBefore;
  switch (op->kind) {
    case kOpMalloc:
      *slot = malloc(op->a);
      break;
    case kOpCalloc:
      *slot = calloc(op->a, op->b);
      break;
    case kOpRealloc: {
      void* block = realloc(*slot, op->a);
      result->value = (uint64_t)block;
      result->error = errno;
      if (block != NULL || op->a == 0) *slot = block;
      result->usable = block != NULL ? malloc_usable_size(block) : 0;
      return;
    }
    case kOpMemalign:
      *slot = memalign(op->b, op->a);
      break;
    case kOpPosixMemalign:
      *slot = NULL;
      status = posix_memalign(slot, op->b, op->a);
      break;
    case kOpAlignedAlloc:
      *slot = aligned_alloc(op->b, op->a);
      break;
    case kOpValloc:
      *slot = valloc(op->a);
      break;
    case kOpFree:
      free(*slot);
      *slot = NULL;
      break;
    default:
      result->value = run_other(op);
      result->error = 0;
      result->usable = 0;
      return;
  }
  result->error = status >= 0 ? status : errno;
  result->value = (uint64_t)*slot;
  result->usable = *slot != NULL ? malloc_usable_size(*slot) : 0;
}

int main(void) {
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, kSharedFd, 0);
  if (shared == MAP_FAILED) return kNoSharedMemory;
  grow_stack();
  trace_memory_calls();
  for (uint64_t i = 0; i < shared->op_count; ++i) {
    shared->current = (int64_t)i;
    run_in(shared->ops[i].thread, &shared->ops[i], i);
  }
  shared->current = (int64_t)shared->op_count;
  _exit(0);
}
