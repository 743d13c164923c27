// SPDX-License-Identifier: Apache-2.0
//
// What the tester and glibc_driver share: one mapping of a memfd that holds the calls to make and
// receives what they returned. C and C++: the driver must link nothing but libc.
//
// The tester fills `ops` and starts the driver; `current` is the call under way, so that a tracer
// which finds the driver stopped in a system call knows whose it is. Blocks live in numbered slots:
// a call names slots, never addresses, hence the same sequence runs on two allocators. A call on an
// empty slot is what the program's would be on a null pointer.
#pragma once

#include <stddef.h>
#include <stdint.h>

enum {
  kSharedFd = 100,    // Where the driver finds the memfd.
  kOpsMax = 1 << 23,  // Recorded programs are long; untouched parts cost nothing.
  kSlots = 1 << 20,
  kThreadsMax = 32,  // Thread 0 is the one that runs main().
  kThreadStackBytes = 65536,
  kInfoWords = 10,      // Fields of struct mallinfo2, in its order.
  kInfosMax = 1024,     // Snapshots per sequence.
  kErrnoBefore = 1234,  // errno at the start of each call: no call of the family sets it to this.
};

enum OpKind {
  kOpMalloc = 1,      // slot = malloc(a)
  kOpCalloc,          // slot = calloc(a, b)
  kOpRealloc,         // slot = realloc(slot, a)
  kOpMemalign,        // slot = memalign(b, a)
  kOpPosixMemalign,   // posix_memalign(&slot, b, a)
  kOpAlignedAlloc,    // slot = aligned_alloc(b, a)
  kOpValloc,          // slot = valloc(a)
  kOpFree,            // free(slot)
  kOpTrim,            // malloc_trim(a)
  kOpMallopt,         // mallopt(a, b)
  kOpInfo,            // mallinfo2() into infos[a]
  kOpSbrk,            // sbrk(a): somebody else's memory on top of the heap
  kOpWall,            // A mapping a bytes above the break: it cannot grow past it.
  kOpUnwall,          // The wall is taken away.
  kOpLimit,           // RLIMIT_AS: only a bytes more than now.
  kOpUnlimit,         // No limit again.
  kOpForeignMapping,  // Somebody else's mapping of a bytes, which shifts all later ones.
  kOpThreadStart,     // Thread a begins, made by thread 0.
  kOpThreadEnd,       // Thread a ends; thread 0 waits for it.
  kOpFork,            // Thread 0 forks; the child goes on, alone.
  kOpKindEnd
};

struct Op {
  uint16_t kind;
  uint16_t thread;  // Who makes the call; thread 0 in the place of one that is not there.
  uint32_t slot;
  uint64_t a;
  uint64_t b;
};

struct OpResult {
  uint64_t value;   // The block, or what the call returned.
  uint64_t usable;  // malloc_usable_size of the block.
  int32_t error;    // errno afterwards; posix_memalign: its result.
  int32_t unused;
};

struct Shared {
  volatile int64_t current;  // Index of the call under way; -1 before the first.
  uint64_t op_count;
  struct Op ops[kOpsMax];
  struct OpResult results[kOpsMax];
  uint64_t infos[kInfosMax][kInfoWords];
  void* slots[kSlots];
};
