// SPDX-License-Identifier: Apache-2.0
// environment SECTION: malloc where little works: before constructors and after destructors, on
// tiny stacks, under limits and filters, in signal handlers and coroutines, around fork. Prints
// lines without addresses; "environment list" prints the sections. Blocks are filled and checked,
// so that a damaged heap shows.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <initializer_list>

#include "tests/e2e/programs/sections.h"

namespace {

template <class T>
T opaque(T value) {
  T volatile hidden = value;
  return hidden;
}
void say(const char* name, long value) { printf("%s: %ld\n", name, value); }

// A block that knows what it holds.
struct Filled {
  unsigned char* bytes = nullptr;
  size_t size = 0;

  bool make(size_t wanted, bool zeroed = false) {
    bytes = static_cast<unsigned char*>(zeroed ? calloc(1, wanted) : malloc(wanted));
    size = wanted;
    if (bytes == nullptr) return false;
    if (zeroed && wanted != 0 && (bytes[0] != 0 || bytes[wanted - 1] != 0)) abort();
    fill();
    return true;
  }
  bool resize(size_t wanted) {
    auto* fresh = static_cast<unsigned char*>(realloc(bytes, wanted));
    if (fresh == nullptr) return false;
    bytes = fresh;
    if (!check(wanted < size ? wanted : size)) abort();
    size = wanted;
    fill();
    return true;
  }
  unsigned char mark() const { return static_cast<unsigned char>(size * 31 + 7); }
  void fill() { memset(bytes, mark(), size); }
  // The mark is of the size at the time of filling.
  bool check(size_t count) const {
    for (size_t i = 0; i < count; i += i + 16 < count ? 15 : 1) {
      if (bytes[i] != mark()) return false;
    }
    return true;
  }
  void drop() {
    if (bytes != nullptr && !check(size)) abort();
    free(opaque(bytes));
    bytes = nullptr;
    size = 0;
  }
};

// Some work on the heap with every kind of size. True if all went well; aborts on damage.
class Churn {
 public:
  explicit Churn(unsigned seed) : state_(seed * 2654435761U + 1) {}

  bool run(int rounds) {
    for (int round = 0; round < rounds; ++round) {
      Filled& block = blocks_[next() % kBlocks];
      if (block.bytes == nullptr) {
        if (!block.make(some_size(), next() % 4 == 0)) return false;
      } else if (next() % 4 == 0) {
        if (!block.resize(some_size() + 1)) return false;
      } else {
        block.drop();
      }
    }
    return true;
  }
  void finish() {
    for (Filled& block : blocks_) block.drop();
  }

 private:
  static constexpr unsigned kBlocks = 64;

  unsigned next() {
    state_ = state_ * 1664525U + 1013904223U;
    return state_ >> 8;
  }
  size_t some_size() {
    const unsigned kind = next() % 64;
    if (kind == 0) return 100000 + next() % 300000;
    if (kind < 8) return 1000 + next() % 20000;
    return next() % 1100;
  }

  unsigned state_;
  Filled blocks_[kBlocks];
};

bool work(int rounds, unsigned seed) {
  Churn churn(seed);
  const bool well = churn.run(rounds);
  churn.finish();
  return well;
}

pthread_t start(void* (*run)(void*), void* argument, const pthread_attr_t* attributes = nullptr) {
  pthread_t thread;
  if (pthread_create(&thread, attributes, run, argument) != 0) abort();
  return thread;
}
void* work_in_thread(void* argument) {
  const auto seed = static_cast<unsigned>(reinterpret_cast<uintptr_t>(argument));
  return work(2000, seed) ? argument : nullptr;
}
void* number(uintptr_t value) { return reinterpret_cast<void*>(value); }

// ---- Before constructors, after destructors.

Filled early;
bool at_fork_is_on = false;
int at_fork_calls = 0;
void at_fork() {
  if (!at_fork_is_on) return;
  ++at_fork_calls;
  work(200, 5);
}
void last_exit_handler();
// Runs before the constructors of any library, so the handlers it registers are the outermost.
void before_all(int, char**, char**) {
  early.make(1000);
  early.resize(3000);
  pthread_atfork(at_fork, at_fork, at_fork);
  atexit(last_exit_handler);
}
[[gnu::section(".preinit_array"), gnu::used]] void (*const g_before_all)(int, char**,
                                                                         char**) = before_all;

bool exits_are_tested = false;
void say_unbuffered(const char* text) {
  if (write(1, text, strlen(text)) < 0) abort();
}
void last_exit_handler() {
  if (!exits_are_tested) return;
  say_unbuffered(work(300, 9) ? "last exit handler works\n" : "last exit handler fails\n");
}
[[gnu::destructor(101)]] void last_destructor() {
  if (!exits_are_tested) return;
  say_unbuffered(work(300, 10) ? "last destructor works\n" : "last destructor fails\n");
}

void before_and_after() {
  say("early block", early.check(early.size));
  early.drop();
  exits_are_tested = true;
  atexit([] { say_unbuffered(work(300, 8) ? "exit handler works\n" : "exit handler fails\n"); });
  say("main", work(3000, 1));
  fflush(stdout);
}

// ---- Ends of threads.

std::atomic<int> ended_objects{0};
struct ThreadObject {
  Filled block;
  ThreadObject() { block.make(500); }
  ~ThreadObject() {
    block.drop();
    if (work(100, 2)) ++ended_objects;
  }
};
thread_local ThreadObject thread_object;

pthread_key_t keys[3];
std::atomic<int> key_rounds{0};
// Keeps itself alive through every round there is.
void on_key_end(void* value) {
  auto* block = static_cast<Filled*>(value);
  block->drop();
  ++key_rounds;
  if (!work(50, 3) || !block->make(700)) abort();
  pthread_setspecific(keys[0], block);
}
void on_other_key_end(void* value) {
  free(value);
  ++key_rounds;
  work(20, 4);
}

void* thread_with_ends(void* argument) {
  thread_object.block.resize(600);
  auto* block = static_cast<Filled*>(calloc(1, sizeof(Filled)));
  block->make(300);
  pthread_setspecific(keys[0], block);
  pthread_setspecific(keys[1], malloc(10));
  pthread_setspecific(keys[2], strdup("text"));
  work(500, 6);
  return argument;
}

void thread_ends() {
  pthread_key_create(&keys[0], on_key_end);
  pthread_key_create(&keys[1], on_other_key_end);
  pthread_key_create(&keys[2], on_other_key_end);
  for (int i = 0; i < 20; ++i) pthread_join(start(thread_with_ends, nullptr), nullptr);
  say("objects", ended_objects);
  say("key destructors", key_rounds);
  pthread_t threads[6];
  for (pthread_t& thread : threads) thread = start(thread_with_ends, nullptr);
  for (pthread_t thread : threads) pthread_join(thread, nullptr);
  say("objects", ended_objects);
  say("key destructors", key_rounds);
  // A thread that leaves by pthread_exit, and one that is cancelled.
  pthread_join(start(
                   [](void*) -> void* {
                     thread_object.block.resize(50);
                     pthread_exit(nullptr);
                   },
                   nullptr),
               nullptr);
  pthread_t sleeper = start(
      [](void*) -> void* {
        thread_object.block.resize(50);
        for (;;) pause();
      },
      nullptr);
  pthread_cancel(sleeper);
  void* result = nullptr;
  pthread_join(sleeper, &result);
  say("cancelled", result == PTHREAD_CANCELED);
  say("work", work(3000, 7));
}

void tiny_stacks() {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  const long least = sysconf(_SC_THREAD_STACK_MIN);
  say("set", pthread_attr_setstacksize(&attributes, static_cast<size_t>(least)));
  int well = 0;
  for (uintptr_t i = 1; i <= 30; ++i) {
    void* result = nullptr;
    pthread_join(start(
                     [](void* argument) -> void* {
                       char* block = static_cast<char*>(opaque(malloc(100)));
                       block = static_cast<char*>(opaque(realloc(block, 5000)));
                       char* zeroed = static_cast<char*>(opaque(calloc(10, 30)));
                       char* object = static_cast<char*>(opaque(operator new(64)));
                       char* mapped = static_cast<char*>(opaque(malloc(400000)));
                       const bool good = zeroed[7] == 0 && mapped != nullptr && block != nullptr;
                       free(block);
                       free(zeroed);
                       operator delete(object);
                       free(mapped);
                       return good ? argument : nullptr;
                     },
                     number(i), &attributes),
                 &result);
    well += result == number(i);
  }
  say("threads", well);
}

// ---- Limits.

long counted_blocks(size_t size, long most) {
  struct Node {
    Node* next;
  };
  Node* list = nullptr;
  long count = 0;
  errno = 0;
  for (; count < most; ++count) {
    auto* node = static_cast<Node*>(malloc(size));
    if (node == nullptr) break;
    node->next = list;
    list = node;
  }
  say("errno", count < most ? errno : 0);
  while (list != nullptr) {
    Node* next = list->next;
    free(list);
    list = next;
  }
  return count;
}

void limit(__rlimit_resource resource, rlim_t bytes) {
  const rlimit value = {bytes, bytes};
  if (setrlimit(resource, &value) != 0) abort();
}
void limits_of_address_space() {
  limit(RLIMIT_AS, 220UL << 20);
  for (const size_t size : {1000UL, 100000UL, 1UL << 20, 300UL << 20}) {
    const long count = counted_blocks(size, 1000000);
    say("got blocks", count > 0);
    say("about as many as fit", count * static_cast<long>(size) > (120L << 20));
  }
  say("work", work(5000, 1));
  void* block = opaque(malloc(1000));
  memset(block, 5, 1000);
  errno = 0;
  say("realloc too large", opaque(realloc(opaque(block), 1UL << 30)) == nullptr);
  say("errno", errno);
  say("intact", static_cast<char*>(block)[999]);
  free(block);
  say("work", work(5000, 2));
}

// Limits the break and private mappings alike.
void limits_of_data() {
  Filled before;
  before.make(100);
  limit(RLIMIT_DATA, 48UL << 20);
  for (const size_t size : {1000UL, 50000UL, 1UL << 20}) {
    const long count = counted_blocks(size, 1000000);
    say("got blocks", count > 0);
    say("about as many as fit", count * static_cast<long>(size) > (40L << 20));
  }
  say("work", work(5000, 1));
  before.drop();
}

void wall_above_the_break() {
  Filled before[50];
  for (Filled& block : before) block.make(5000);
  char* wall = static_cast<char*>(sbrk(0)) + (256 << 10);
  wall = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(wall) & ~uintptr_t{4095});
  say("wall", mmap(wall, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
                   0) == wall);
  Filled behind[400];
  for (size_t i = 0; i < 400; ++i) behind[i].make(i % 2 == 0 ? 9000 : 60000);
  say("work", work(5000, 1));
  for (Filled& block : before) block.drop();
  for (Filled& block : behind) block.drop();
  say("trim", malloc_trim(0) >= 0);
  say("work", work(5000, 2));
}

// ---- Who may call the kernel.

constexpr int kAllowed[] = {SYS_brk,   SYS_mmap, SYS_munmap,     SYS_mremap,        SYS_madvise,
                            SYS_write, SYS_exit, SYS_exit_group, SYS_rt_sigprocmask};

// Every other call kills the process.
void filter_calls(bool by_prctl) {
  constexpr size_t kCalls = sizeof kAllowed / sizeof kAllowed[0];
  sock_filter program[kCalls + 3];
  size_t used = 0;
  program[used++] = BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr));
  for (size_t i = 0; i < kCalls; ++i) {
    const auto to_the_end = static_cast<unsigned char>(kCalls - i);
    program[used++] =
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(kAllowed[i]), to_the_end, 0);
  }
  program[used++] = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
  program[used++] = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  const sock_fprog filter = {static_cast<unsigned short>(used), program};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) abort();
  const long result = by_prctl ? prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter)
                               : syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter);
  if (result != 0) abort();
}

void work_in_sandbox(bool by_prctl) {
  static char output[4096];
  setvbuf(stdout, output, _IOFBF, sizeof output);
  say("before", work(1000, 1));
  filter_calls(by_prctl);
  say("after", work(20000, 2));
  say("trim", malloc_trim(0) >= 0);
  fflush(stdout);
}
void sandbox_by_prctl() { work_in_sandbox(true); }
void sandbox_by_syscall() { work_in_sandbox(false); }

// syscall() itself: six arguments, results, errno.
void raw_calls() {
  errno = 0;
  say("closed", syscall(SYS_close, -1));
  say("errno", errno);
  const int memory = static_cast<int>(syscall(SYS_memfd_create, "raw", 0));
  say("written", pwrite(memory, "seventh", 7, 8192));
  char* page = reinterpret_cast<char*>(
      syscall(SYS_mmap, nullptr, 4096, PROT_READ, MAP_SHARED, memory, 8192));
  say("mapped", page[6]);
  errno = 5;
  say("mine", syscall(SYS_getpid) == getpid());
  say("errno", errno);
  say("refused", syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, nullptr));
  say("errno", errno);
}

void closed_descriptors() {
  say("before", work(1000, 1));
  fflush(stdout);
  const int kept = fcntl(1, F_DUPFD, 200);
  say("closed", static_cast<long>(syscall(SYS_close_range, 3U, 199U, 0U)));
  syscall(SYS_close_range, 0U, 0U, 0U);
  syscall(SYS_close_range, 2U, 2U, 0U);
  syscall(SYS_close_range, 201U, ~0U, 0U);
  const int first = open("/dev/null", O_RDONLY);
  const int third = open("/dev/null", O_RDONLY);
  const int next = open("/dev/null", O_RDONLY);
  say("reused", first == 0 && third == 2 && next == 3);
  say("after", work(20000, 2));
  pthread_join(start(work_in_thread, number(1)), nullptr);
  say("still the program's", fcntl(next, F_GETFD) == 0 && fcntl(kept, F_GETFD) == 0);
}

// ---- Signal handlers.

volatile sig_atomic_t handled = 0;
volatile sig_atomic_t handler_failed = 0;
Churn* handler_churn = nullptr;
void allocate_in_handler(int) {
  const int saved_errno = errno;
  if (!handler_churn->run(4)) handler_failed = 1;
  handled = handled + 1;
  errno = saved_errno;
}
void every_100_us(void (*handler)(int), int flags) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  sigaction(SIGALRM, &action, nullptr);
  const itimerval timer = {{0, 100}, {0, 100}};
  setitimer(ITIMER_REAL, &timer, nullptr);
}
void no_timer() {
  const itimerval timer = {};
  setitimer(ITIMER_REAL, &timer, nullptr);
}

void handlers_that_allocate() {
  static Churn churn(77);
  handler_churn = &churn;
  every_100_us(allocate_in_handler, SA_RESTART);
  bool well = true;
  Churn own(1);
  while (handled < 1500) well = own.run(100) && well;
  no_timer();
  own.finish();
  churn.finish();
  say("main", well);
  say("handler", handler_failed == 0);
  say("work", work(5000, 2));
}

void handlers_on_another_stack() {
  static char memory[65536];
  const stack_t stack = {memory, 0, sizeof memory};
  sigaltstack(&stack, nullptr);
  static Churn churn(78);
  handler_churn = &churn;
  every_100_us(allocate_in_handler, SA_RESTART | SA_ONSTACK);
  bool well = true;
  Churn own(1);
  while (handled < 500) well = own.run(100) && well;
  no_timer();
  own.finish();
  churn.finish();
  say("main", well);
  say("handler", handler_failed == 0);
}

// The same in threads, each of which is interrupted in its own arena, or on its way to another's.
constexpr int kInterrupted = 4;
thread_local Churn* thread_churn = nullptr;
std::atomic<int> thread_handled[kInterrupted];
thread_local std::atomic<int>* my_handled = nullptr;
void allocate_in_thread_handler(int) {
  const int saved_errno = errno;
  if (!thread_churn->run(4)) handler_failed = 1;
  my_handled->fetch_add(1);
  errno = saved_errno;
}
std::atomic<bool> enough{false};
void* churn_with_handlers(void* argument) {
  const auto index = reinterpret_cast<uintptr_t>(argument);
  Churn in_handler(static_cast<unsigned>(index) + 50);
  Churn own(static_cast<unsigned>(index));
  thread_churn = &in_handler;
  my_handled = &thread_handled[index];
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGUSR1);
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  bool well = true;
  while (!enough) well = own.run(100) && well;
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  own.finish();
  in_handler.finish();
  return well ? number(index + 1) : nullptr;
}
void handlers_in_threads() {
  struct sigaction action = {};
  action.sa_handler = allocate_in_thread_handler;
  action.sa_flags = SA_RESTART;
  sigaction(SIGUSR1, &action, nullptr);
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // Inherited, until a thread is ready.
  pthread_t threads[kInterrupted];
  for (uintptr_t i = 0; i < kInterrupted; ++i) {
    threads[i] = start(churn_with_handlers, number(i));
  }
  for (int least = 0; least < 300; usleep(50)) {
    least = 1 << 30;
    for (int i = 0; i < kInterrupted; ++i) {
      pthread_kill(threads[i], SIGUSR1);
      const int handled_here = thread_handled[i];
      if (handled_here < least) least = handled_here;
    }
  }
  enough = true;
  int well = 0;
  for (uintptr_t i = 0; i < kInterrupted; ++i) {
    void* result = nullptr;
    pthread_join(threads[i], &result);
    well += result == number(i + 1);
  }
  say("threads", well);
  say("handlers", handler_failed == 0);
  say("work", work(5000, 2));
}

sigjmp_buf way_out;
volatile sig_atomic_t may_jump = 0;
void jump_out(int) {
  if (may_jump == 0) return;
  may_jump = 0;
  siglongjmp(way_out, 1);
}

// A block that is being made or freed when the handler jumps is lost; every other one is whole.
void jumps_out_of_handlers() {
  constexpr int kKept = 200;
  static Filled kept[kKept];
  for (int i = 0; i < kKept; ++i) kept[i].make(static_cast<size_t>(i) * 37);
  static volatile int jumps;
  jumps = 0;
  every_100_us(jump_out, 0);
  for (;;) {
    if (sigsetjmp(way_out, 1) != 0) jumps = jumps + 1;
    if (jumps >= 300) break;
    may_jump = 1;
    for (;;) {
      void* block = opaque(malloc(opaque<size_t>(3000)));
      void* small = opaque(malloc(40));
      if (block == nullptr || small == nullptr) abort();
      memset(block, 0xdd, 3000);
      memset(small, 0xdd, 40);
      free(block);
      free(small);
    }
  }
  no_timer();
  for (Filled& block : kept) block.drop();
  say("jumps", jumps);
  say("work", work(5000, 2));
  pthread_join(start(work_in_thread, number(1)), nullptr);
}

// ---- fork.

std::atomic<bool> stop{false};
void* hammer(void* argument) {
  const auto seed = static_cast<unsigned>(reinterpret_cast<uintptr_t>(argument));
  Churn churn(seed);
  while (!stop.load(std::memory_order_relaxed)) churn.run(50);
  churn.finish();
  return nullptr;
}

// What a child does: the parent's blocks are still good, malloc works, threads too.
int live_in_child(Filled* inherited, int count, unsigned seed) {
  for (int i = 0; i < count; ++i) inherited[i].drop();
  if (!work(1500, seed)) return 1;
  void* result = nullptr;
  pthread_t threads[2];
  for (pthread_t& thread : threads) thread = start(work_in_thread, number(seed));
  for (pthread_t thread : threads) {
    pthread_join(thread, &result);
    if (result != number(seed)) return 2;
  }
  const pid_t grandchild = fork();
  if (grandchild == 0) _exit(work(200, seed) ? 0 : 3);
  int status = -1;
  waitpid(grandchild, &status, 0);
  return status == 0 ? 0 : 4;
}

void forks_with_threads(bool with_handlers) {
  at_fork_is_on = with_handlers;
  pthread_t threads[4];
  for (uintptr_t i = 0; i < 4; ++i) threads[i] = start(hammer, number(i + 1));
  constexpr int kInherited = 100;
  Filled inherited[kInherited];
  for (int i = 0; i < kInherited; ++i) inherited[i].make(static_cast<size_t>(i * i));
  int well = 0;
  constexpr int kChildren = 12;
  for (unsigned i = 1; i <= kChildren; ++i) {
    const pid_t child = fork();
    if (child == 0) _exit(live_in_child(inherited, kInherited, i));
    int status = -1;
    waitpid(child, &status, 0);
    if (status != 0) say("status", status);
    well += status == 0;
    for (Filled& block : inherited) block.drop();
    for (int k = 0; k < kInherited; ++k) inherited[k].make(static_cast<size_t>(k * k));
  }
  stop = true;
  for (pthread_t thread : threads) pthread_join(thread, nullptr);
  for (Filled& block : inherited) block.drop();
  say("children", well);
  say("handlers", at_fork_calls);
  say("work", work(5000, 2));
}
void forks_among_threads() { forks_with_threads(false); }
void forks_with_handlers_that_allocate() { forks_with_threads(true); }

void* fork_in_thread(void*) {
  Filled block;
  block.make(4000);
  const pid_t child = fork();
  if (child == 0) _exit(live_in_child(&block, 1, 3));
  int status = -1;
  waitpid(child, &status, 0);
  block.drop();
  return number(static_cast<uintptr_t>(status));
}
void forks_by_threads() {
  pthread_t threads[4];
  for (pthread_t& thread : threads) thread = start(fork_in_thread, nullptr);
  for (pthread_t thread : threads) {
    void* status = nullptr;
    pthread_join(thread, &status);
    say("status", static_cast<long>(reinterpret_cast<uintptr_t>(status)));
  }
}

void vfork_child_allocates() {
  void* volatile left = nullptr;
  const pid_t child = vfork();
  if (child == 0) {
    left = malloc(500);
    free(malloc(5000));
    _exit(left == nullptr);
  }
  int status = -1;
  waitpid(child, &status, 0);
  say("status", status);
  memset(left, 1, 500);
  free(left);
  say("work", work(3000, 1));
}

// ---- Threads that hand blocks on.

constexpr int kHanded = 2000;
struct Exchange {
  Filled blocks[kHanded];
  std::atomic<int> ready{0};
};
void* produce(void* argument) {
  auto* exchange = static_cast<Exchange*>(argument);
  for (int i = 0; i < kHanded; ++i) {
    exchange->blocks[i].make(static_cast<size_t>(i * 37 % 3000 + (i % 500 == 0 ? 200000 : 0)));
    exchange->ready.store(i + 1, std::memory_order_release);
  }
  return nullptr;
}
void* consume(void* argument) {
  auto* exchange = static_cast<Exchange*>(argument);
  for (int i = 0; i < kHanded; ++i) {
    while (exchange->ready.load(std::memory_order_acquire) <= i) sched_yield();
    if (i % 3 == 0) exchange->blocks[i].resize(exchange->blocks[i].size + 300);
    exchange->blocks[i].drop();
  }
  return nullptr;
}
void blocks_from_thread_to_thread() {
  static Exchange exchanges[4];
  pthread_t threads[8];
  for (int i = 0; i < 4; ++i) {
    threads[2 * i] = start(produce, &exchanges[i]);
    threads[2 * i + 1] = start(consume, &exchanges[i]);
  }
  for (pthread_t thread : threads) pthread_join(thread, nullptr);
  // Blocks of threads that have ended.
  static Exchange left[3];
  for (Exchange& exchange : left) pthread_join(start(produce, &exchange), nullptr);
  for (Exchange& exchange : left) consume(&exchange);
  say("work", work(5000, 1));
}

// ---- Other stacks, other allocators.

ucontext_t main_context, coroutine_context;
bool coroutine_well = false;
void coroutine() {
  for (int i = 0; i < 20; ++i) {
    coroutine_well = work(100, static_cast<unsigned>(i));
    swapcontext(&coroutine_context, &main_context);
  }
}
void coroutines() {
  void* stack = malloc(65536);
  getcontext(&coroutine_context);
  coroutine_context.uc_stack.ss_sp = stack;
  coroutine_context.uc_stack.ss_size = 65536;
  coroutine_context.uc_link = &main_context;
  makecontext(&coroutine_context, coroutine, 0);
  int well = 0;
  for (int i = 0; i < 20; ++i) {
    swapcontext(&main_context, &coroutine_context);
    well += coroutine_well && work(50, 3);
  }
  free(stack);
  say("rounds", well);
}

// A second libc, with a heap of its own, whose blocks end up here.
void blocks_of_another_libc() {
  void* libc = dlmopen(LM_ID_NEWLM, "libc.so.6", RTLD_NOW | RTLD_LOCAL);
  say("loaded", libc != nullptr);
  auto other_malloc = reinterpret_cast<void* (*)(size_t)>(dlsym(libc, "malloc"));
  auto other_free = reinterpret_cast<void (*)(void*)>(dlsym(libc, "free"));
  Filled own[100];
  for (Filled& block : own) block.make(3000);
  // Only what glibc itself bears: cached sizes, and mappings.
  for (const size_t size : {24UL, 100UL, 900UL, 200000UL}) {
    void* block = opaque(other_malloc(size));
    memset(block, 1, size);
    say("usable", malloc_usable_size(block) >= size);
    free(block);
  }
  other_free(other_malloc(100));
  void* block = opaque(other_malloc(300000));
  memset(block, 7, 300000);
  block = opaque(realloc(block, 500000));
  say("resized", static_cast<char*>(block)[299999]);
  free(block);
  say("work", work(20000, 1));
  for (Filled& kept : own) kept.drop();
  say("work", work(20000, 2));
}

constexpr victim::NamedPart kSections[] = {
    SECTION(before_and_after),
    SECTION(thread_ends),
    SECTION(tiny_stacks),
    SECTION(limits_of_address_space),
    SECTION(limits_of_data),
    SECTION(wall_above_the_break),
    SECTION(sandbox_by_prctl),
    SECTION(sandbox_by_syscall),
    SECTION(raw_calls),
    SECTION(closed_descriptors),
    SECTION(handlers_that_allocate),
    SECTION(handlers_on_another_stack),
    SECTION(handlers_in_threads),
    SECTION(jumps_out_of_handlers),
    SECTION(forks_among_threads),
    SECTION(forks_with_handlers_that_allocate),
    SECTION(forks_by_threads),
    SECTION(vfork_child_allocates),
    SECTION(blocks_from_thread_to_thread),
    SECTION(coroutines),
    SECTION(blocks_of_another_libc),
};

}  // namespace

int main(int argc, char** argv) { return victim::run_named_part(kSections, argc, argv); }
