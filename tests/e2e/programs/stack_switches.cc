// SPDX-License-Identifier: Apache-2.0
// stack_switches SECTION LOG: allocates on stacks that come and go: coroutines on blocks and on
// mappings, coroutines that move between threads, threads on stacks of the program's own, signal
// handlers on alternate stacks. Its own account of each stack goes to LOG (shadow.h).
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "shadow.h"

namespace {

using victim::allocate;
using victim::Block;
using victim::release;
using victim::Shadow;

constexpr size_t kStackBytes = 64 << 10;

void* map_stack() {
  void* stack =
      mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (stack == MAP_FAILED) abort();
  return stack;
}

// ---- Coroutines.

struct Coroutine {
  ucontext_t own, caller;
  Shadow shadow;
  Shadow* callers_shadow;
  int rounds;
  bool done;
};

NOINLINE void leave(Coroutine& coroutine) {
  victim::use_shadow(coroutine.callers_shadow);
  swapcontext(&coroutine.own, &coroutine.caller);
}
NOINLINE void enter(Coroutine& coroutine) {
  coroutine.callers_shadow = victim::use_shadow(&coroutine.shadow);
  swapcontext(&coroutine.caller, &coroutine.own);
}

NOINLINE void descend(Coroutine& coroutine, int levels) {
  HERE;
  const Block before = allocate();
  if (levels > 0) descend(coroutine, levels - 1);
  if (levels % 3 == 0) leave(coroutine);
  const Block after = allocate();
  release(before);
  release(after);
}

NOINLINE void other_way(Coroutine& coroutine, int levels) {
  HERE;
  if (levels > 0) {
    other_way(coroutine, levels - 1);
  } else {
    descend(coroutine, 4);
  }
  release(allocate());
}

void coroutine_main(unsigned high, unsigned low) {
  auto& coroutine = *reinterpret_cast<Coroutine*>(uintptr_t{high} << 32 | low);
  HERE;
  for (int i = 0; i < coroutine.rounds; ++i) {
    descend(coroutine, i % 7);
    other_way(coroutine, i % 5);
  }
  coroutine.done = true;
  release(allocate());
}

NOINLINE void make(Coroutine& coroutine, void* stack, int rounds) {
  coroutine.shadow.depth = 0;
  coroutine.rounds = rounds;
  coroutine.done = false;
  getcontext(&coroutine.own);
  coroutine.own.uc_stack.ss_sp = stack;
  coroutine.own.uc_stack.ss_size = kStackBytes;
  coroutine.own.uc_link = &coroutine.caller;
  const auto address = reinterpret_cast<uintptr_t>(&coroutine);
  makecontext(&coroutine.own, reinterpret_cast<void (*)()>(coroutine_main), 2,
              static_cast<unsigned>(address >> 32), static_cast<unsigned>(address));
}

constexpr int kCoroutines = 8;
Coroutine coroutines[kCoroutines];

// One after the other, a step each; between the steps the main stack allocates.
NOINLINE int run_in_turns(int rounds) {
  HERE;
  int steps = 0;
  for (bool all_done = false; !all_done;) {
    all_done = true;
    for (Coroutine& coroutine : coroutines) {
      if (coroutine.done) continue;
      enter(coroutine);
      if (coroutine.done) victim::use_shadow(coroutine.callers_shadow);
      all_done = false;
      ++steps;
      if (steps % 2 == 0) release(allocate());
    }
  }
  return steps + rounds;
}

void coroutines_on_blocks() {
  HERE;
  for (int round = 0; round < 4; ++round) {
    Block stacks[kCoroutines];
    for (int i = 0; i < kCoroutines; ++i) {
      stacks[i] = allocate(kStackBytes);
      make(coroutines[i], stacks[i].address, 6 + i);
    }
    printf("steps: %d\n", run_in_turns(round));
    for (const Block& stack : stacks) {
      memset(stack.address, 0xdd, stack.size);
      release(stack);
    }
  }
}

// The stack of the last walk is gone when the next one begins, or something else is there.
void coroutines_on_mappings() {
  HERE;
  for (int round = 0; round < 40; ++round) {
    void* stacks[kCoroutines];
    for (int i = 0; i < kCoroutines; ++i) make(coroutines[i], stacks[i] = map_stack(), 2);
    int steps = 0;
    for (Coroutine& coroutine : coroutines) {
      while (!coroutine.done) {
        enter(coroutine);
        ++steps;
      }
      victim::use_shadow(coroutine.callers_shadow);
      void* stack = stacks[&coroutine - coroutines];
      munmap(stack, kStackBytes);
      if (round % 3 == 1) {
        mmap(stack, kStackBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
      } else if (round % 3 == 2) {
        memset(mmap(stack, kStackBytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
               0x5a, kStackBytes);
      }
      release(allocate());
      if (round % 3 != 0) munmap(stack, kStackBytes);
    }
    printf("steps: %d\n", steps);
  }
}

// A coroutine goes on in whichever thread takes it up next.
pthread_barrier_t turn;
void* carrier(void* argument) {
  static Shadow shadows[3];
  const auto index = reinterpret_cast<uintptr_t>(argument);
  victim::use_shadow(&shadows[index]);
  HERE;
  for (int round = 0; round < 12; ++round) {
    pthread_barrier_wait(&turn);
    for (uintptr_t i = 0; i < kCoroutines; ++i) {
      if ((i + static_cast<uintptr_t>(round)) % 3 != index || coroutines[i].done) continue;
      enter(coroutines[i]);
      if (coroutines[i].done) victim::use_shadow(coroutines[i].callers_shadow);
      release(allocate());
    }
  }
  return nullptr;
}
void coroutines_across_threads() {
  HERE;
  void* stacks[kCoroutines];
  for (int i = 0; i < kCoroutines; ++i) make(coroutines[i], stacks[i] = map_stack(), 1);
  pthread_barrier_init(&turn, nullptr, 3);
  pthread_t threads[3];
  for (uintptr_t i = 0; i < 3; ++i) {
    pthread_create(&threads[i], nullptr, carrier, reinterpret_cast<void*>(i));
  }
  for (pthread_t thread : threads) pthread_join(thread, nullptr);
  int done = 0;
  for (const Coroutine& coroutine : coroutines) done += coroutine.done;
  for (void* stack : stacks) munmap(stack, kStackBytes);
  release(allocate());
  printf("done: %d\n", done);
}

// ---- A switch of the program's own, as fiber libraries have it: no library call, no context.

extern "C" void switch_stack(void** from, void* to);
extern "C" void fiber_begins();
asm(R"(
  .text
  .type switch_stack, @function
switch_stack:
  .cfi_startproc
  pushq %rbp
  .cfi_adjust_cfa_offset 8
  pushq %rbx
  .cfi_adjust_cfa_offset 8
  pushq %r12
  .cfi_adjust_cfa_offset 8
  pushq %r13
  .cfi_adjust_cfa_offset 8
  pushq %r14
  .cfi_adjust_cfa_offset 8
  pushq %r15
  .cfi_adjust_cfa_offset 8
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  .cfi_adjust_cfa_offset -8
  popq %r14
  .cfi_adjust_cfa_offset -8
  popq %r13
  .cfi_adjust_cfa_offset -8
  popq %r12
  .cfi_adjust_cfa_offset -8
  popq %rbx
  .cfi_adjust_cfa_offset -8
  popq %rbp
  .cfi_adjust_cfa_offset -8
  ret
  .cfi_endproc
  .size switch_stack, .-switch_stack

  .type fiber_begins, @function
fiber_begins:
  .cfi_startproc
  .cfi_undefined %rip
  movq %rbx, %rdi
  call *%r12
  ud2
  .cfi_endproc
  .size fiber_begins, .-fiber_begins
)");

struct Fiber {
  void* own;
  void* caller;
  Shadow shadow;
  Shadow* callers_shadow;
  bool done;
};
Fiber fibers[4];

NOINLINE void fiber_leaves(Fiber& fiber) {
  victim::use_shadow(fiber.callers_shadow);
  switch_stack(&fiber.own, fiber.caller);
}
NOINLINE void fiber_enters(Fiber& fiber) {
  fiber.callers_shadow = victim::use_shadow(&fiber.shadow);
  switch_stack(&fiber.caller, fiber.own);
}
NOINLINE void fiber_works(Fiber& fiber, int levels) {
  HERE;
  const Block block = allocate();
  if (levels > 0) fiber_works(fiber, levels - 1);
  fiber_leaves(fiber);
  release(block);
}
NOINLINE void fiber_main(Fiber* fiber) {
  HERE;
  for (int i = 0; i < 10; ++i) fiber_works(*fiber, i);
  fiber->done = true;
  fiber_leaves(*fiber);
}

void fibers_by_hand() {
  HERE;
  for (int round = 0; round < 5; ++round) {
    void* stacks[4];
    for (int i = 0; i < 4; ++i) {
      stacks[i] = map_stack();
      auto* top = reinterpret_cast<void**>(static_cast<char*>(stacks[i]) + kStackBytes);
      *--top = nullptr;  // fiber_begins calls with an aligned stack.
      *--top = nullptr;
      *--top = reinterpret_cast<void*>(fiber_begins);
      *--top = nullptr;                              // rbp
      *--top = &fibers[i];                           // rbx
      *--top = reinterpret_cast<void*>(fiber_main);  // r12
      for (int k = 0; k < 3; ++k) *--top = nullptr;  // r13, r14, r15
      fibers[i].own = top;
      fibers[i].shadow.depth = 0;
      fibers[i].shadow.names[fibers[i].shadow.depth++] = "fiber_begins";
      fibers[i].done = false;
    }
    int steps = 0;
    for (int left = 4; left != 0;) {
      left = 0;
      for (Fiber& fiber : fibers) {
        if (fiber.done) continue;
        fiber_enters(fiber);
        ++steps;
        ++left;
        release(allocate());
      }
    }
    for (void* stack : stacks) munmap(stack, kStackBytes);
    release(allocate());
    printf("steps: %d\n", steps);
  }
}

// ---- Threads on small stacks, and on stacks that the program maps and unmaps itself.

NOINLINE void small_steps(int levels) {
  HERE;
  const Block block = allocate();
  if (levels > 0) small_steps(levels - 1);
  release(block);
}
void* thread_main(void* argument) {
  Shadow* own = static_cast<Shadow*>(argument);
  own->depth = 0;
  victim::use_shadow(own);
  HERE;
  for (int i = 0; i < 10; ++i) small_steps(i % 5);
  return argument;
}

NOINLINE void run_thread(const pthread_attr_t& attributes) {
  static Shadow shadow;
  pthread_t thread;
  if (pthread_create(&thread, &attributes, thread_main, &shadow) != 0) abort();
  void* result = nullptr;
  pthread_join(thread, &result);
  if (result != &shadow) abort();
}

void threads_on_small_stacks() {
  HERE;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, static_cast<size_t>(sysconf(_SC_THREAD_STACK_MIN)));
  for (int i = 0; i < 30; ++i) run_thread(attributes);
  printf("threads: 30\n");
}

void threads_on_own_mappings() {
  HERE;
  for (int i = 0; i < 30; ++i) {
    void* stack = map_stack();
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstack(&attributes, stack, kStackBytes);
    run_thread(attributes);
    munmap(stack, kStackBytes);
    release(allocate());
  }
  printf("threads: 30\n");
}

// ---- Handlers on stacks of their own.

int handled = 0;
NOINLINE void in_handler(int levels) {
  HERE;
  const Block block = allocate();
  if (levels > 0) in_handler(levels - 1);
  release(block);
}
void on_signal(int number) {
  HERE;
  ++handled;
  in_handler(number == SIGUSR1 ? 3 : 1);
  if (number == SIGUSR1) raise(SIGUSR2);
  release(allocate());
}
NOINLINE void raises(int levels) {
  HERE;
  const Block block = allocate();
  if (levels > 0) {
    raises(levels - 1);
  } else {
    raise(SIGUSR1);
  }
  raise(SIGUSR2);
  release(block);
}

void handlers_on_other_stacks() {
  HERE;
  struct sigaction action = {};
  action.sa_handler = on_signal;
  sigaction(SIGUSR2, &action, nullptr);
  action.sa_flags = SA_ONSTACK;
  sigaction(SIGUSR1, &action, nullptr);
  for (int round = 0; round < 20; ++round) {
    void* memory = map_stack();
    stack_t stack = {memory, 0, kStackBytes};
    if (sigaltstack(&stack, nullptr) != 0) abort();
    raises(round % 6);
    stack.ss_flags = SS_DISABLE;
    sigaltstack(&stack, nullptr);
    munmap(memory, kStackBytes);
    raises(round % 4);
  }
  printf("handled: %d\n", handled);
}

// A handler on the alternate stack, in a coroutine.
void coroutine_with_handler(unsigned, unsigned) {
  HERE;
  raises(3);
}
void handlers_in_coroutines() {
  HERE;
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_ONSTACK;
  sigaction(SIGUSR1, &action, nullptr);
  sigaction(SIGUSR2, &action, nullptr);
  for (int round = 0; round < 10; ++round) {
    void* memory = map_stack();
    const stack_t stack = {memory, 0, kStackBytes};
    if (sigaltstack(&stack, nullptr) != 0) abort();
    Coroutine& coroutine = coroutines[0];
    void* own_stack = map_stack();
    make(coroutine, own_stack, 0);
    makecontext(&coroutine.own, reinterpret_cast<void (*)()>(coroutine_with_handler), 0);
    enter(coroutine);
    victim::use_shadow(coroutine.callers_shadow);
    munmap(own_stack, kStackBytes);
    release(allocate());
    const stack_t none = {nullptr, SS_DISABLE, 0};
    sigaltstack(&none, nullptr);
    munmap(memory, kStackBytes);
  }
  printf("handled: %d\n", handled);
}

constexpr victim::Section kSections[] = {
    SECTION(coroutines_on_blocks),      SECTION(coroutines_on_mappings),
    SECTION(coroutines_across_threads), SECTION(fibers_by_hand),
    SECTION(threads_on_small_stacks),   SECTION(threads_on_own_mappings),
    SECTION(handlers_on_other_stacks),  SECTION(handlers_in_coroutines),
};

}  // namespace

int main(int argc, char** argv) {
  static Shadow own;
  own.names[own.depth++] = "main";
  return victim::run_section(kSections, argc, argv, &own);
}
