// SPDX-License-Identifier: Apache-2.0
// stack_jumps SECTION LOG: allocates before, during and after ways out of many frames at once: C++
// exceptions, longjmp, siglongjmp out of handlers; and in handlers that interrupt malloc and free.
// Its own account of each stack goes to LOG (shadow.h).
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/time.h>

#include <stdexcept>
#include <string>

#include "shadow.h"

namespace {

using victim::allocate;
using victim::Block;
using victim::release;
using victim::Shadow;

// ---- Exceptions.

struct Failure {
  int level;
  char weight[200];
};

// Allocates on its way out, while an exception is on its way through.
struct Guard {
  Block block;
  NOINLINE explicit Guard(const Block& own) : block(own) {}
  NOINLINE ~Guard() {
    HERE;
    release(allocate());
    release(block);
  }
};

NOINLINE void fall(int levels) {
  HERE;
  if (levels == 0) throw Failure{levels, {}};
  if (levels % 10 == 0) {
    const Guard guard(allocate());
    fall(levels - 1);
  } else {
    fall(levels - 1);
  }
  release(allocate());
}

NOINLINE int catches(int levels) {
  HERE;
  try {
    release(allocate());
    fall(levels);
  } catch (const Failure& failure) {
    release(allocate());
    return failure.level + 1;
  }
  return 0;
}

void exceptions_through_deep_stacks() {
  HERE;
  int caught = 0;
  for (int round = 0; round < 60; ++round) {
    caught += catches(round % 3 == 0 ? 500 : round);
    release(allocate());
  }
  printf("caught: %d\n", caught);
}

// Caught, allocated for, thrown on, at every third level.
NOINLINE void hands_on(int levels) {
  HERE;
  if (levels == 0) throw std::runtime_error(std::string(300, 'x'));
  if (levels % 3 != 0) return hands_on(levels - 1);
  try {
    hands_on(levels - 1);
  } catch (const std::exception&) {
    release(allocate());
    catches(levels);  // Another exception while this one is held.
    throw;
  }
}

void exceptions_thrown_on() {
  HERE;
  int caught = 0;
  for (int round = 0; round < 30; ++round) {
    try {
      hands_on(round * 2);
    } catch (const std::exception& error) {
      caught += strlen(error.what()) == 300;
      release(allocate());
    }
    release(allocate());
  }
  printf("caught: %d\n", caught);
}

void* thread_of_exceptions(void* argument) {
  static thread_local Shadow own;
  own.depth = 0;
  victim::use_shadow(&own);
  HERE;
  int caught = 0;
  for (int round = 0; round < 30; ++round) caught += catches(round * 3);
  return caught == 30 ? argument : nullptr;
}

void exceptions_in_threads() {
  HERE;
  pthread_t threads[4];
  static int arguments[4];
  for (int i = 0; i < 4; ++i) {
    pthread_create(&threads[i], nullptr, thread_of_exceptions, &arguments[i]);
  }
  int well = 0;
  for (int i = 0; i < 4; ++i) {
    void* result = nullptr;
    pthread_join(threads[i], &result);
    well += result == &arguments[i];
  }
  printf("threads: %d\n", well);
}

// ---- longjmp.

jmp_buf landing;

NOINLINE void jumps(int levels) {
  HERE;
  volatile char room[48] = {};
  room[0] = static_cast<char>(levels + room[1]);
  if (levels % 7 == 0) release(allocate());
  if (levels == 0) longjmp(landing, 1);
  if (levels > 0) jumps(levels - 1);
  release(allocate());
}
NOINLINE void other_frames(int levels) {
  HERE;
  volatile char room[80];
  room[0] = static_cast<char>(levels);
  if (levels % 5 == 0) release(allocate());
  if (levels > 0) other_frames(levels - 1);
  room[1] = room[0];
}

NOINLINE int lands(int levels) {
  HERE;
  const int depth = victim::shadow().depth;
  volatile int landed = 0;
  if (setjmp(landing) == 0) {
    jumps(levels);
  } else {
    victim::shadow().depth = depth;
    landed = 1;
  }
  release(allocate());
  return landed;
}

void long_jumps() {
  HERE;
  int landed = 0;
  for (int round = 0; round < 100; ++round) {
    landed += lands(round % 4 == 0 ? 300 : round);
    other_frames(round % 40);
  }
  printf("landed: %d\n", landed);
}

// ---- Out of handlers.

sigjmp_buf way_out;
void jump_from_handler(int) {
  HERE;
  release(allocate());
  siglongjmp(way_out, 1);
}
NOINLINE void raises(int levels) {
  HERE;
  const Block block = allocate();
  if (levels == 0) raise(SIGUSR1);
  if (levels > 0) raises(levels - 1);
  release(block);
}
NOINLINE int lands_from_handler(int levels) {
  HERE;
  const int depth = victim::shadow().depth;
  volatile int landed = 0;
  if (sigsetjmp(way_out, 1) == 0) {
    raises(levels);
  } else {
    victim::shadow().depth = depth;
    landed = 1;
  }
  release(allocate());
  return landed;
}
NOINLINE void jump_out_of_handlers(int flags) {
  struct sigaction action = {};
  action.sa_handler = jump_from_handler;
  action.sa_flags = flags;
  sigaction(SIGUSR1, &action, nullptr);
  HERE;
  int landed = 0;
  for (int round = 0; round < 50; ++round) {
    landed += lands_from_handler(round % 30);
    other_frames(round % 20);
  }
  printf("landed: %d\n", landed);
}
void jumps_out_of_handlers() {
  HERE;
  jump_out_of_handlers(0);
}
void jumps_off_other_stacks() {
  HERE;
  static char memory[65536];
  const stack_t stack = {memory, 0, sizeof memory};
  sigaltstack(&stack, nullptr);
  jump_out_of_handlers(SA_ONSTACK);
}

// Out of malloc and free themselves, wherever a timer finds them. What the handler interrupts may
// be lost, as in any allocator; the stacks after it are as good as before.
volatile sig_atomic_t may_jump = 0;
void jump_from_timer(int) {
  if (may_jump == 0) return;
  may_jump = 0;
  siglongjmp(way_out, 1);
}
NOINLINE void churns() {
  HERE;
  may_jump = 1;
  for (;;) {
    char* block = static_cast<char*>(malloc(100));
    if (block == nullptr) abort();
    block[0] = 1;
    free(block);
  }
}
void jumps_out_of_malloc() {
  HERE;
  const int depth = victim::shadow().depth;
  struct sigaction action = {};
  action.sa_handler = jump_from_timer;
  sigaction(SIGALRM, &action, nullptr);
  const itimerval timer = {{0, 200}, {0, 200}};
  setitimer(ITIMER_REAL, &timer, nullptr);
  static volatile int jumped;
  for (jumped = 0; jumped < 200;) {
    if (sigsetjmp(way_out, 1) == 0) churns();
    victim::shadow().depth = depth;
    jumped = jumped + 1;
    release(allocate());
    other_frames(jumped % 10);
  }
  const itimerval none = {};
  setitimer(ITIMER_REAL, &none, nullptr);
  printf("jumped: %d\n", jumped);
}

// ---- Handlers that allocate while the thread is inside malloc or free.

volatile sig_atomic_t handled = 0;
NOINLINE void handler_steps(int levels) {
  HERE;
  const Block block = allocate();
  if (levels > 0) handler_steps(levels - 1);
  release(block);
}
void on_timer(int) {
  HERE;
  handler_steps(handled % 4);
  handled = handled + 1;
}
NOINLINE void interrupted() {
  HERE;
  // Nothing of its own is called here: the shadow is right at every instruction.
  while (handled < 300) {
    char* block = static_cast<char*>(malloc(100));
    char* other = static_cast<char*>(malloc(3000));
    if (block == nullptr || other == nullptr) abort();
    block[0] = other[0] = 1;
    free(block);
    free(other);
  }
}
NOINLINE void interrupt(int flags) {
  HERE;
  struct sigaction action = {};
  action.sa_handler = on_timer;
  action.sa_flags = flags;
  sigaction(SIGALRM, &action, nullptr);
  handled = 0;
  const itimerval timer = {{0, 200}, {0, 200}};
  setitimer(ITIMER_REAL, &timer, nullptr);
  interrupted();
  const itimerval none = {};
  setitimer(ITIMER_REAL, &none, nullptr);
  printf("handled: %d\n", handled >= 300);
}
void handlers_inside_malloc() {
  HERE;
  interrupt(0);
}
void handlers_inside_malloc_on_another_stack() {
  HERE;
  static char memory[65536];
  const stack_t stack = {memory, 0, sizeof memory};
  sigaltstack(&stack, nullptr);
  interrupt(SA_ONSTACK);
}

constexpr victim::Section kSections[] = {
    SECTION(exceptions_through_deep_stacks),
    SECTION(exceptions_thrown_on),
    SECTION(exceptions_in_threads),
    SECTION(long_jumps),
    SECTION(jumps_out_of_handlers),
    SECTION(jumps_off_other_stacks),
    SECTION(jumps_out_of_malloc),
    SECTION(handlers_inside_malloc),
    SECTION(handlers_inside_malloc_on_another_stack),
};

}  // namespace

int main(int argc, char** argv) {
  static Shadow own;
  own.names[own.depth++] = "main";
  return victim::run_section(kSections, argc, argv, &own);
}
