// SPDX-License-Identifier: Apache-2.0
// heapledger-replayer FILE [empty]: makes the calls of schema/replay_file.h again, with whatever
// malloc is loaded, and writes a ReplayResult to its standard output. With `empty` it reads the
// file and makes none of them: what it takes by itself.
//
// Its own memory is mapped, and touched before it begins: between begin and end it allocates
// nothing but what it is told to. No C++ library, whose start-up allocates.
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "schema/replay_file.h"

namespace {

using heapledger::schema::ReplayHeader;
using heapledger::schema::ReplayKind;
using heapledger::schema::ReplayOp;
using heapledger::schema::ReplayResult;
using heapledger::schema::ReplayThread;

constexpr size_t kPage = 4096;
constexpr size_t kOpsAtOnce = 2048;
constexpr size_t kStackBytes = size_t{256} << 10;

struct Slot {
  void* block;
  uint32_t turn;  // Operations that have happened to it.
  uint32_t unused;
};

struct Runner {
  pthread_t thread;
  bool is_started;
  ReplayThread part;
  ReplayOp ops[kOpsAtOnce];
};

int file;
Slot* slots;
Runner* runners;
uint32_t thread_count;
uint64_t failed;

[[noreturn]] void die(const char* what) {
  constexpr char kName[] = "heapledger-replayer: ";
  (void)!write(STDERR_FILENO, kName, sizeof kName - 1);
  (void)!write(STDERR_FILENO, what, strlen(what));
  (void)!write(STDERR_FILENO, "\n", 1);
  _exit(1);
}

// Touched at once: faults on it are not the operations'.
void* own_memory(size_t bytes) {
  if (bytes == 0) bytes = 1;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED) die("no memory for its own tables");
  return memory;
}

void read_at(void* to, size_t bytes, uint64_t offset) {
  char* at = static_cast<char*>(to);
  while (bytes > 0) {
    const ssize_t got = pread(file, at, bytes, static_cast<off_t>(offset));
    if (got <= 0) die("the file ends early");
    at += got;
    bytes -= static_cast<size_t>(got);
    offset += static_cast<uint64_t>(got);
  }
}

uint64_t now_ns(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return static_cast<uint64_t>(time.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(time.tv_nsec);
}

uint64_t status_bytes(const char* name) {
  char text[8192];
  const int status = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
  const ssize_t length = status < 0 ? 0 : read(status, text, sizeof text - 1);
  if (status >= 0) close(status);
  if (length <= 0) return 0;
  text[length] = '\0';
  const char* line = strstr(text, name);
  return line == nullptr ? 0 : strtoull(line + strlen(name), nullptr, 10) * 1024;
}

// Waits for what happens to the slot before. With one thread it never has to.
Slot& await(uint32_t number, uint32_t turn) {
  Slot& slot = slots[number];
  while (__atomic_load_n(&slot.turn, __ATOMIC_ACQUIRE) != turn) sched_yield();
  return slot;
}
void pass(Slot& slot, uint32_t turn) { __atomic_store_n(&slot.turn, turn + 1, __ATOMIC_RELEASE); }

// A byte per page; the last byte may lie on a page of its own.
void touch(void* block, size_t begin, size_t bytes) {
  if (block == nullptr || bytes == 0) return;
  volatile char* at = static_cast<char*>(block) + begin;
  for (size_t i = 0; i < bytes; i += kPage) at[i] = 1;
  at[bytes - 1] = 1;
}

void put(const ReplayOp& op, void* block) {
  Slot& slot = await(op.slot, op.turn);
  if (block == nullptr && op.size != 0) __atomic_fetch_add(&failed, 1, __ATOMIC_RELAXED);
  if (op.fills != 0) touch(block, 0, op.size);
  slot.block = block;
  pass(slot, op.turn);
}

void resize(const ReplayOp& op) {
  Slot& old = await(op.old_slot, op.old_turn);
  void* block = realloc(old.block, op.size);
  old.block = nullptr;
  pass(old, op.old_turn);
  put(op, block);
}

void touch(const ReplayOp& op) {
  Slot& slot = await(op.slot, op.turn);
  touch(slot.block, size_t{op.old_slot} * kPage, op.size);
  pass(slot, op.turn);
}

void* run(void* argument);

void start_thread(uint32_t number) {
  Runner& runner = runners[number];
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kStackBytes);
  runner.is_started = pthread_create(&runner.thread, &attributes, &run, &runner) == 0;
  pthread_attr_destroy(&attributes);
  if (!runner.is_started) die("cannot start a thread");
}

void make(const ReplayOp& op) {
  switch (op.kind) {
    case ReplayKind::kAllocate:
      put(op, malloc(op.size));
      break;
    case ReplayKind::kZeroed:
      put(op, calloc(1, op.size));
      break;
    case ReplayKind::kAligned: {
      void* block = nullptr;
      const size_t alignment = size_t{1} << op.shift;
      if (posix_memalign(&block, alignment < sizeof(void*) ? sizeof(void*) : alignment, op.size) !=
          0) {
        block = nullptr;
      }
      put(op, block);
      break;
    }
    case ReplayKind::kRelease: {
      Slot& slot = await(op.slot, op.turn);
      free(slot.block);
      slot.block = nullptr;
      pass(slot, op.turn);
      break;
    }
    case ReplayKind::kResize:
      resize(op);
      break;
    case ReplayKind::kTouch:
      touch(op);
      break;
    case ReplayKind::kBreak:
      (void)sbrk(static_cast<intptr_t>(op.size));
      break;
    case ReplayKind::kSetOption:
      mallopt(static_cast<int>(op.slot), static_cast<int>(op.size));
      break;
    case ReplayKind::kTrim:
      malloc_trim(op.size);
      break;
    case ReplayKind::kStartThread:
      start_thread(op.slot);
      break;
  }
}

void* run(void* argument) {
  Runner& runner = *static_cast<Runner*>(argument);
  uint64_t offset = runner.part.offset;
  for (uint64_t left = runner.part.operations; left > 0;) {
    const size_t count = left < kOpsAtOnce ? left : kOpsAtOnce;
    read_at(runner.ops, count * sizeof(ReplayOp), offset);
    for (size_t i = 0; i < count; ++i) make(runner.ops[i]);
    offset += count * sizeof(ReplayOp);
    left -= count;
  }
  return nullptr;
}

void open_file(const char* path) {
  file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) die("cannot open the file");
  ReplayHeader header;
  read_at(&header, sizeof header, 0);
  if (header.magic != heapledger::schema::kReplayMagic || header.threads == 0) {
    die("this is no file of calls");
  }
  thread_count = header.threads;
  slots = static_cast<Slot*>(own_memory(sizeof(Slot) * header.slots));
  runners = static_cast<Runner*>(own_memory(sizeof(Runner) * thread_count));
  for (uint32_t i = 0; i < thread_count; ++i) {
    read_at(&runners[i].part, sizeof(ReplayThread), sizeof header + i * sizeof(ReplayThread));
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) die("usage: heapledger-replayer FILE [empty]");
  open_file(argv[1]);
  ReplayResult result;
  result.rss_start_bytes = status_bytes("VmRSS:");
  rusage before{};
  getrusage(RUSAGE_SELF, &before);
  const uint64_t cpu_ns = now_ns(CLOCK_PROCESS_CPUTIME_ID);
  const uint64_t wall_ns = now_ns(CLOCK_MONOTONIC);
  if (argc == 2) {
    run(&runners[0]);
    // A thread is started by an operation of one that is joined before or after: in order, each has
    // been by the time that all with smaller numbers have ended.
    for (uint32_t i = 1; i < thread_count; ++i) {
      if (runners[i].is_started) pthread_join(runners[i].thread, nullptr);
    }
  }
  result.wall_ns = now_ns(CLOCK_MONOTONIC) - wall_ns;
  result.cpu_ns = now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu_ns;
  rusage after{};
  getrusage(RUSAGE_SELF, &after);
  result.minor_faults = static_cast<uint64_t>(after.ru_minflt - before.ru_minflt);
  result.failed = failed;
  result.rss_peak_bytes = status_bytes("VmHWM:");
  return write(STDOUT_FILENO, &result, sizeof result) == sizeof result ? 0 : 1;
}
