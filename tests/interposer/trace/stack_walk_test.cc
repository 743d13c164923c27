// SPDX-License-Identifier: Apache-2.0
// The delta walk against a walker that knows nothing of it: libgcc's (backtrace(3)). Stacks are
// put together from keep and fresh as the reader of a ring does it.
#include "interposer/trace/stack_walk.h"

#include <alloca.h>
#include <execinfo.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "interposer/trace/recipe_table.h"
#include "interposer/trace/stack_capture.h"

namespace heapledger::trace {
namespace {

bool have_recipes() {
  static const bool started = start_recipes();
  learn_bare_roots();
  return started;
}

// One ring's walker, and what its reader knows.
class Walker {
 public:
  explicit Walker(size_t depth = 128) : memory_(StackWalk::bytes_for(depth)) {
    walk_.attach(memory_.data(), depth);
  }

  StackWalk::Result take(const void* frame, uintptr_t caller) {
    const StackWalk::Result found = walk_.walk(registers_above(frame), caller, bounds_);
    EXPECT_NE(found.outcome, StackWalk::Outcome::kHelpless);
    EXPECT_LE(found.keep, stack_.size());
    stack_.resize(found.keep);
    for (size_t i = found.fresh; i-- > 0;) stack_.push_back(walk_.fresh()[i]);
    kept_ += found.keep;
    walked_ += found.fresh;
    return found;
  }
  // Innermost first.
  std::vector<uintptr_t> stack() const { return {stack_.rbegin(), stack_.rend()}; }
  void forget() {
    walk_.forget();
    stack_.clear();
  }
  size_t kept() const { return kept_; }
  size_t walked() const { return walked_; }

 private:
  std::vector<std::byte> memory_;
  StackWalk walk_{};
  StackBounds bounds_;
  std::vector<uintptr_t> stack_;  // Outermost first.
  size_t kept_ = 0;
  size_t walked_ = 0;
};

// The stack from the frame with this return address outwards.
std::vector<uintptr_t> unwound_from(uintptr_t caller) {
  std::vector<void*> frames(4096);
  frames.resize(static_cast<size_t>(backtrace(frames.data(), 4096)));
  std::vector<uintptr_t> result;
  for (void* frame : frames) {
    const auto ip = reinterpret_cast<uintptr_t>(frame);
    if (!result.empty() || ip == caller) result.push_back(ip);
  }
  return result;
}

Walker* g_walker = nullptr;
int g_compared = 0;
int g_incomplete = 0;

// What an exported function does: walks from its caller outwards.
__attribute__((noinline)) void capture() {
  const auto caller = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
  const StackWalk::Result found = g_walker->take(__builtin_frame_address(0), caller);
  std::vector<uintptr_t> expected = unwound_from(caller);
  ++g_compared;
  if (found.outcome != StackWalk::Outcome::kComplete) {
    ++g_incomplete;
    expected.resize(std::min(expected.size(), g_walker->stack().size()));
  }
  ASSERT_EQ(g_walker->stack(), expected);
}

// ---- Functions with frames of all kinds that call each other by chance.

std::mt19937 g_random;
// Called with how many levels lie below; -1 where the function is a leaf.
using Node = void (*)(int);
extern const std::vector<Node> g_nodes;

void descend(int depth) {
  const int calls = depth == 0 ? 0 : 1 + static_cast<int>(g_random() % 2);
  for (int i = 0; i < calls; ++i) {
    g_nodes[g_random() % g_nodes.size()](depth - 1 - static_cast<int>(g_random() % 3 == 0));
  }
  if (depth <= 0 || g_random() % 4 == 0) capture();
}

#define KEEP_FRAME __asm__ volatile("" ::: "memory")

template <int N>
__attribute__((noinline)) void plain(int depth) {
  if (depth >= 0) descend(depth);
  KEEP_FRAME;
}
template <int N>
__attribute__((noinline)) void sized(int depth) {
  volatile char room[N];
  room[0] = 1;
  __asm__ volatile("" ::"r"(room) : "memory");
  if (depth >= 0) descend(depth);
  KEEP_FRAME;
}
template <int N>
__attribute__((noinline)) void variable(int depth) {  // Finds its frame by rbp.
  auto* room = static_cast<volatile char*>(alloca(static_cast<size_t>(16 + (depth + 1) * N)));
  room[0] = 1;
  if (depth >= 0) descend(depth);
  KEEP_FRAME;
}
template <int N>
__attribute__((noinline)) void aligned(int depth) {
  alignas(64) volatile char room[N * 64];
  room[0] = 1;
  __asm__ volatile("" ::"r"(room) : "memory");
  if (depth >= 0) descend(depth);
  KEEP_FRAME;
}
__attribute__((noinline)) void aligned_variable(int depth) {  // gcc's way by a saved pointer.
  auto* more = static_cast<volatile char*>(alloca(static_cast<size_t>(17 + depth)));
  alignas(64) volatile char room[64];
  more[0] = 1;
  room[0] = 1;
  __asm__ volatile("" ::"r"(room), "r"(more) : "memory");
  if (depth >= 0) descend(depth);
  KEEP_FRAME;
}
// Uses rbp for a value of its own.
template <int N>
__attribute__((noinline, optimize("omit-frame-pointer"))) void busy(int depth) {
  register intptr_t value __asm__("rbp") = depth * 3 + N;
  __asm__ volatile("" : "+r"(value));
  if (depth >= 0) descend(depth);
  __asm__ volatile("" ::"r"(value) : "memory");
}

const std::vector<Node> g_nodes = {
    plain<0>,   plain<1>,    plain<2>,     sized<24>,        sized<40>,   sized<4000>, sized<65616>,
    sized<72>,  variable<8>, variable<24>, aligned<1>,       aligned<3>,  plain<3>,    plain<4>,
    sized<104>, busy<1>,     busy<2>,      aligned_variable, sized<9000>, busy<3>,
};

class StackWalkTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!have_recipes()) GTEST_SKIP() << "this glibc has no _dl_find_object";
    g_compared = g_incomplete = 0;
  }
};

TEST_F(StackWalkTest, AgreesWithLibgccOnRandomCallTrees) {
  for (unsigned seed = 0; seed < 300 && !HasFatalFailure(); ++seed) {
    Walker walker;
    g_walker = &walker;
    g_random.seed(seed);
    for (int i = 0; i < 3; ++i) g_nodes[g_random() % g_nodes.size()](10);
    EXPECT_GT(walker.kept(), 0U);
  }
  EXPECT_GT(g_compared, 10'000);
  EXPECT_EQ(g_incomplete, 0);
}

TEST_F(StackWalkTest, AgreesInThreads) {
  std::thread([] {
    Walker walker;
    g_walker = &walker;
    g_random.seed(1);
    for (int i = 0; i < 100; ++i) g_nodes[g_random() % g_nodes.size()](8);
  }).join();
  EXPECT_GT(g_compared, 1'000);
  EXPECT_EQ(g_incomplete, 0);
}

// ---- The depth limit: a stack that was cut says nothing about what lies outside it.

__attribute__((noinline)) void fall(int depth) {
  if (depth == 0) {
    capture();
  } else {
    fall(depth - 1);
  }
  KEEP_FRAME;
}
__attribute__((noinline)) void left(int depth) {
  fall(depth);
  KEEP_FRAME;
}
__attribute__((noinline)) void right(int depth) {
  fall(depth);
  KEEP_FRAME;
}

TEST_F(StackWalkTest, NeverJoinsAStackThatWasCut) {
  Walker walker(16);
  g_walker = &walker;
  for (int round = 0; round < 50; ++round) {
    for (const int depth : {30, 2, 31, 13, 14, 15, 16, 0, 1, 29, 9, 8, 7}) {
      round % 2 == 0 ? left(depth) : right(depth);
      ASSERT_LE(walker.stack().size(), 16U);
    }
  }
  EXPECT_GT(g_incomplete, 100);
  EXPECT_LT(g_incomplete, g_compared);
}

// Two callers with frames of the same size, one after the other: the slot's value tells them apart.
TEST_F(StackWalkTest, SeesThatAFrameWasReplaced) {
  Walker walker;
  g_walker = &walker;
  for (int round = 0; round < 100; ++round) {
    left(3);
    right(3);
  }
  EXPECT_EQ(g_compared, 200);
  EXPECT_EQ(g_incomplete, 0);
}

// ---- Signals: the handler has a ring of its own, and walks through the frame it interrupted.

Walker* g_handler_walker = nullptr;
void on_signal(int) {
  Walker* before = g_walker;
  g_walker = g_handler_walker;
  capture();
  g_walker = before;
}
__attribute__((noinline)) void interrupted(int depth) {
  if (depth == 0) {
    raise(SIGUSR1);
    capture();
  } else {
    interrupted(depth - 1);
  }
  KEEP_FRAME;
}

TEST_F(StackWalkTest, WalksThroughSignalsOnBothStacks) {
  Walker walker;
  Walker of_handler;
  g_walker = &walker;
  g_handler_walker = &of_handler;
  std::vector<char> room(1 << 16);
  for (const bool alternate : {false, true, true, false, true}) {
    stack_t stack{};
    stack.ss_sp = room.data();
    stack.ss_size = room.size();
    stack.ss_flags = alternate ? 0 : SS_DISABLE;
    ASSERT_EQ(sigaltstack(&stack, nullptr), 0);
    struct sigaction action {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_ONSTACK;
    ASSERT_EQ(sigaction(SIGUSR1, &action, nullptr), 0);
    for (const int depth : {3, 4, 4, 1}) interrupted(depth);
  }
  signal(SIGUSR1, SIG_DFL);
  EXPECT_EQ(g_compared, 40);
  EXPECT_EQ(g_incomplete, 0);
  EXPECT_GT(of_handler.kept(), 0U);
}

// ---- Coroutines, whose stacks come and go at the same addresses.

ucontext_t g_main;
ucontext_t g_coroutine;
void run_coroutine() {
  for (int i = 0;; ++i) {
    g_nodes[g_random() % g_nodes.size()](4);
    swapcontext(&g_coroutine, &g_main);
  }
}

TEST_F(StackWalkTest, FollowsCoroutinesOntoStacksThatGo) {
  Walker walker;
  g_walker = &walker;
  g_random.seed(3);
  constexpr size_t kBytes = 1 << 20;
  for (int round = 0; round < 40; ++round) {
    const size_t bytes = kBytes >> (round % 2);
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(memory, MAP_FAILED);
    ASSERT_EQ(getcontext(&g_coroutine), 0);
    g_coroutine.uc_stack.ss_sp = memory;
    g_coroutine.uc_stack.ss_size = bytes;
    g_coroutine.uc_link = nullptr;
    makecontext(&g_coroutine, run_coroutine, 0);
    for (int i = 0; i < 3; ++i) {
      swapcontext(&g_main, &g_coroutine);
      left(2);
    }
    ASSERT_EQ(munmap(memory, bytes), 0);
    note_unmapping();
  }
  EXPECT_GT(g_compared, 240);
  EXPECT_EQ(g_incomplete, 0);
}

// A first function that was jumped to: where its return address would be, the stack's memory ends.
TEST_F(StackWalkTest, StopsWhereTheStacksMemoryEnds) {
  Walker walker;
  constexpr size_t kPage = 4096;
  auto* memory = static_cast<char*>(
      mmap(nullptr, 2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(static_cast<void*>(memory), MAP_FAILED);
  ASSERT_EQ(mprotect(memory + kPage, kPage, PROT_NONE), 0);
  // As if capture() had been called from within plain<0>, whose frame reaches up to the end.
  const auto inside = reinterpret_cast<uintptr_t>(&plain<0>) + 2;  // Behind its first push or sub.
  auto* frame = reinterpret_cast<uintptr_t*>(memory + kPage) - 2;
  frame[0] = 0;
  frame[1] = inside;
  const StackWalk::Result found = walker.take(frame, inside);
  EXPECT_EQ(found.outcome, StackWalk::Outcome::kIncomplete);
  ASSERT_EQ(walker.stack().size(), 1U);
  EXPECT_EQ(walker.stack()[0], inside);
  munmap(memory, 2 * kPage);
  note_unmapping();
}

// The same stack again costs no frame.
TEST_F(StackWalkTest, KeepsWhatIsTheSame) {
  Walker walker;
  g_walker = &walker;
  std::vector<size_t> walked;
  volatile int rounds = 10;
  for (int i = 0; i < rounds; ++i) {
    left(6);
    walked.push_back(walker.walked());
  }
  EXPECT_GT(walked[0], 6U);
  EXPECT_EQ(walked[9], walked[2]);
}

// Frames of the shim's own lie between the walk and the program's call.
__attribute__((noinline)) void take_through(uintptr_t caller) {
  g_walker->take(__builtin_frame_address(0), caller);
  KEEP_FRAME;
}
__attribute__((noinline)) void exported() {
  const auto caller = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
  take_through(caller);
  ASSERT_EQ(g_walker->stack(), unwound_from(caller));
}
TEST_F(StackWalkTest, LeavesOutTheShimsOwnFrames) {
  Walker walker;
  g_walker = &walker;
  exported();
  EXPECT_GT(walker.stack().size(), 3U);
}

// Stacks that share little are walked plainly for a while; then joining is tried again, and found.
TEST_F(StackWalkTest, TriesAgainWhereStacksComeToRepeat) {
  Walker walker;
  g_walker = &walker;
  g_random.seed(7);
  for (int i = 0; i < 400; ++i) g_nodes[g_random() % g_nodes.size()](12);
  const size_t walked = walker.walked();
  volatile int rounds = 2000;
  for (int i = 0; i < rounds; ++i) left(40);
  EXPECT_EQ(g_incomplete, 0);
  EXPECT_LT(walker.walked() - walked, 2000U * 40U / 3U);
}

// What the reader was not told must not be built upon.
TEST_F(StackWalkTest, BeginsAnewAfterForgetting) {
  Walker walker;
  g_walker = &walker;
  for (int round = 0; round < 10; ++round) {
    left(5);
    walker.forget();
    right(5);
  }
  EXPECT_EQ(g_compared, 20);
  EXPECT_EQ(g_incomplete, 0);
}

}  // namespace
}  // namespace heapledger::trace
