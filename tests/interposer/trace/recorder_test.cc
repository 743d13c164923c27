// SPDX-License-Identifier: Apache-2.0
// The recorder inside a test program that has the system's own malloc: events, stacks as
// differences, threads, forks, fatal ends.
#include "interposer/trace/recorder.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <setjmp.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <set>
#include <thread>

#include "interposer/trace/stack_capture.h"
#include "tests/interposer/trace/fake_collector.h"

namespace heapledger::testing {
namespace {

using schema::EventKind;
using trace::CallScope;

// libunwind's destructor at a thread's end runs after the thread sanitizer's own and crashes it:
// there, stacks are one frame.
#ifdef __SANITIZE_THREAD__
constexpr bool kHaveStacks = false;
#else
constexpr bool kHaveStacks = true;
#endif

void load_unwinder() {
  if (!kHaveStacks) return;
  void* library = dlopen("libunwind.so.8", RTLD_NOW | RTLD_LOCAL);
  ASSERT_NE(library, nullptr);
  void* found[std::size(trace::kUnwinderSymbols)];
  for (size_t i = 0; i < std::size(found); ++i) {
    found[i] = dlsym(library, trace::kUnwinderSymbols[i]);
    ASSERT_NE(found[i], nullptr) << trace::kUnwinderSymbols[i];
  }
  trace::Unwinder unwinder;
  std::memcpy(&unwinder, found, sizeof(found));
  trace::set_unwinder(unwinder);
}

// Recording runs once per process: each test takes a region of its own by starting over.
class RecorderTest : public ::testing::Test {
 protected:
  void start(const RegionOptions& options = {}) {
    region_ = std::make_unique<RegionFile>(options);
    decoder_ = std::make_unique<Decoder>(*region_);
    trace::t_local = {};
    trace::g_stopped.store(0);
    trace::Region region;
    ASSERT_EQ(trace::map_region(region_->fd(), region_->bytes(), &region), nullptr);
    ASSERT_EQ(trace::start(region, {}, true, nullptr), nullptr);
    load_unwinder();
  }
  void TearDown() override { trace::g_stopped.store(1); }

  std::vector<Event>& drain() {
    decoder_->drain();
    EXPECT_TRUE(decoder_->damage.empty()) << decoder_->damage[0];
    return decoder_->events;
  }

  std::unique_ptr<RegionFile> region_;
  std::unique_ptr<Decoder> decoder_;
};

// Stands for an exported function.
__attribute__((noinline)) uint64_t record_malloc(uint64_t size) {
  CallScope scope(__builtin_return_address(0));
  const uint64_t id = scope.next_id();
  scope.on_allocation({EventKind::kMalloc, reinterpret_cast<void*>(0x1000), size,
                       schema::usable_by_rule(size), 0, id});
  return id;
}
__attribute__((noinline)) void record_free(uint64_t id) {
  CallScope scope(__builtin_return_address(0));
  scope.on_release(EventKind::kFree, reinterpret_cast<void*>(0x1000), id);
}
__attribute__((noinline)) uint64_t record_at_depth(int depth, uint64_t size) {
  volatile uint64_t id = depth == 0 ? record_malloc(size) : record_at_depth(depth - 1, size);
  return id;
}

TEST_F(RecorderTest, WritesWhatItWasTold) {
  start();
  const uint64_t id = record_malloc(100);
  record_free(id);
  const std::vector<Event>& events = drain();
  ASSERT_EQ(events.size(), 3U);
  EXPECT_EQ(events[0].kind, EventKind::kThreadStart);
  EXPECT_EQ(events[0].tid, static_cast<uint32_t>(gettid()));
  EXPECT_EQ(events[1].kind, EventKind::kMalloc);
  EXPECT_EQ(events[1].as<schema::AllocEvent>().size, 100U);
  EXPECT_EQ(events[1].as<schema::AllocEvent>().id, id);
  EXPECT_EQ(events[1].usable(), 112U);
  EXPECT_EQ(id, schema::make_id(0, 1));
  EXPECT_EQ(events[2].as<schema::FreeEvent>().ended_id, id);
  EXPECT_FALSE(events[2].has(schema::kHasStack)) << "releases carry none unless asked";
}

// Goal: the difference coding gives back the very stack that was walked. Method: recursions of
// changing depth; the stacks of deeper calls are those of shallower ones with frames added inside.
TEST_F(RecorderTest, StacksComeBackWhole) {
  if (!kHaveStacks) GTEST_SKIP();
  start();
  std::vector<int> depths;
  for (int i = 0; i < 500; ++i) depths.push_back(i * 7919 % 60);
  for (const int depth : depths) record_at_depth(depth, 8);
  size_t base = 0, i = 0;
  for (const Event& event : drain()) {
    if (event.kind != EventKind::kMalloc) continue;
    EXPECT_TRUE(event.has(schema::kHasStack));
    if (i == 0) base = event.stack.size() - static_cast<size_t>(depths[0]);
    ASSERT_EQ(event.stack.size(), base + static_cast<size_t>(depths[i])) << i;
    ++i;
  }
  EXPECT_EQ(i, depths.size());
}

// Goal: differences are short where stacks are alike.
TEST_F(RecorderTest, ARepeatedStackCostsNoFrames) {
  start();
  volatile int rounds = 3;  // Volatile: one call site, not three.
  for (int i = 0; i < rounds; ++i) record_malloc(8);
  const std::vector<Event>& events = drain();
  ASSERT_EQ(events.size(), 4U);
  EXPECT_EQ(events[3].as<schema::EventHead>().fresh, 0U);
  EXPECT_EQ(events[3].stack, events[2].stack);
}

TEST_F(RecorderTest, DeepStacksAreCutAndSaySo) {
  if (!kHaveStacks) GTEST_SKIP();
  start({.stack_depth = 16});
  record_at_depth(40, 8);
  record_malloc(8);
  const std::vector<Event>& events = drain();
  EXPECT_EQ(events[1].stack.size(), 16U);
  EXPECT_TRUE(events[1].has(schema::kStackIncomplete));
  EXPECT_LT(events[2].stack.size(), 17U);
}

TEST_F(RecorderTest, NoStacksMeansNone) {
  start({.stack_depth = 0});
  record_malloc(8);
  EXPECT_FALSE(drain()[1].has(schema::kHasStack));
}

// Goal: the innermost frame is the caller of the exported function, here record_at_depth.
TEST_F(RecorderTest, StacksBeginAtTheCaller) {
  if (!kHaveStacks) GTEST_SKIP();
  start();
  record_at_depth(3, 8);
  const Event event = drain()[1];
  ASSERT_GE(event.stack.size(), 4U);
  EXPECT_EQ(event.stack[1], event.stack[2]) << "the recursion";
  Dl_info info;
  EXPECT_NE(dladdr(reinterpret_cast<void*>(event.stack[0]), &info), 0);
}

// A call within a call within a call, each in a frame of its own, as signal handlers are; the
// innermost does `then`.
using Innermost = std::function<void(const CallScope&)>;
__attribute__((noinline)) void nest(int levels, const Innermost& then) {
  CallScope scope(__builtin_return_address(0));
  if (levels > 1) {
    nest(levels - 1, then);
  } else {
    then(scope);
  }
  scope.on_text(EventKind::kNote, "", false);
}

// Goal: a call within a call (a signal handler) goes to a ring of its own, and is marked.
TEST_F(RecorderTest, NestedCallsUseOtherRings) {
  start();
  nest(4, [](const CallScope& scope) { EXPECT_FALSE(scope.recording()) << "level 3 has no ring"; });
  std::set<std::pair<uint32_t, uint32_t>> rings;
  for (const Event& event : drain()) {
    if (event.kind != EventKind::kNote) continue;
    rings.emplace(event.ring, event.level);
    EXPECT_EQ(event.has(schema::kNested), event.level != 0);
  }
  EXPECT_EQ(rings.size(), 3U);
  EXPECT_EQ(region_->process(0).events_lost.load(), 1U);
}

// Goal: a handler that jumps out of calls leaves nothing behind: later ones are of their own level.
// Method: jumps from three levels deep, more often than there are levels.
TEST_F(RecorderTest, JumpsOutOfCallsCostNothing) {
  start();
  volatile int jumps = 0;
  while (jumps < 5) {
    jumps = jumps + 1;
    jmp_buf out;
    if (setjmp(out) == 0) {
      nest(3, [&out](const CallScope& scope) {
        EXPECT_TRUE(scope.recording());
        longjmp(out, 1);
      });
    }
    nest(1, [](const CallScope& scope) { EXPECT_TRUE(scope.recording()); });
    EXPECT_EQ(trace::t_local.level, 0);
  }
  int notes = 0;
  for (const Event& event : drain()) {
    if (event.kind != EventKind::kNote) continue;
    ++notes;
    EXPECT_EQ(event.level, 0U);
  }
  EXPECT_EQ(notes, 5);
  EXPECT_EQ(region_->process(0).events_lost.load(), 0U);
}

// Goal: what the allocator does under its lock comes before the call's own event, with its stack.
TEST_F(RecorderTest, PendingSystemCallsCarryTheStackOfTheirCall) {
  start();
  {
    CallScope scope(__builtin_return_address(0));
    const uint64_t args[6] = {1, 2, 3};
    trace::note_os_call(schema::SyscallName::kMmap, 5, trace::tick(), args, -12);
    trace::note_policy(1, 10, 20);
    scope.on_allocation({EventKind::kMalloc, nullptr, 8, 0, 0, 0});
  }
  const std::vector<Event>& events = drain();
  ASSERT_EQ(events.size(), 4U);
  const auto call = events[1].as<schema::SyscallEvent>();
  EXPECT_EQ(call.cause, 5);
  EXPECT_EQ(call.result, -12);
  EXPECT_EQ(call.args[2], 3U);
  EXPECT_TRUE(events[1].has(schema::kFailed));
  EXPECT_EQ(events[2].as<schema::PolicyEvent>().new_value, 20U);
  EXPECT_TRUE(events[3].has(schema::kFailed));
  EXPECT_EQ(events[1].stack, events[3].stack);
  EXPECT_FALSE(events[1].stack.empty());
}

// Goal: more system calls in one call than can be kept are still all recorded, the first ones
// without stacks.
TEST_F(RecorderTest, ManyPendingSystemCallsSpill) {
  start();
  {
    CallScope scope(__builtin_return_address(0));
    for (uint64_t i = 0; i < 40; ++i) {
      const uint64_t args[6] = {i};
      trace::note_os_call(schema::SyscallName::kMunmap, 1, trace::tick(), args, 0);
    }
    scope.flush();
  }
  uint64_t i = 0;
  for (const Event& event : drain()) {
    if (event.kind != EventKind::kSyscall) continue;
    EXPECT_EQ(event.as<schema::SyscallEvent>().args[0], i);
    EXPECT_EQ(event.has(schema::kHasStack), i >= 40 - trace::kPendingMax);
    ++i;
  }
  EXPECT_EQ(i, 40U);
}

// Goal: many threads at once, each with its own ring; ids never meet.
TEST_F(RecorderTest, ThreadsHaveRingsOfTheirOwn) {
  start();
  constexpr int kThreads = 8;
  constexpr int kCalls = 500;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([] {
      for (int i = 0; i < kCalls; ++i) record_free(record_malloc(32));
      trace::end_thread();
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::set<uint64_t> ids;
  int ends = 0;
  for (const Event& event : drain()) {
    if (event.kind == EventKind::kMalloc) ids.insert(event.as<schema::AllocEvent>().id);
    ends += event.kind == EventKind::kThreadEnd;
  }
  EXPECT_EQ(ids.size(), size_t{kThreads} * kCalls);
  EXPECT_EQ(ends, kThreads);
}

// Goal: a child never writes into its parent's ring, and its ids never equal the parent's.
TEST_F(RecorderTest, AForkedChildIsAProcessOfItsOwn) {
  start();
  const uint64_t before = record_malloc(1);
  trace::before_fork();
  const pid_t child = fork();
  if (child == 0) {
    trace::after_fork_in_child();
    record_malloc(2);
    _exit(0);
  }
  trace::after_fork_in_parent();
  record_malloc(3);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  std::map<uint64_t, Event> by_size;
  for (const Event& event : drain()) {
    if (event.kind == EventKind::kMalloc) by_size[event.as<schema::AllocEvent>().size] = event;
  }
  ASSERT_EQ(by_size.size(), 3U);
  EXPECT_EQ(by_size[2].pid, static_cast<uint32_t>(child));
  EXPECT_NE(by_size[2].ring, by_size[1].ring);
  EXPECT_EQ(by_size[3].ring, by_size[1].ring);
  EXPECT_NE(schema::id_slot(by_size[2].as<schema::AllocEvent>().id), schema::id_slot(before));
  schema::ProcessSlot& slot = region_->process(1);
  EXPECT_EQ(slot.pid, static_cast<uint32_t>(child));
  EXPECT_EQ(slot.parent_slot, 0U);
  EXPECT_LE(slot.parent_fork_tick, slot.start_tick);
}

// Goal: without any handler (raw clone, _Fork) the wiped memory alone keeps the child apart.
TEST_F(RecorderTest, AChildWithoutForkHandlersIsKeptApartToo) {
  start();
  record_malloc(1);
  const pid_t child = _Fork();
  if (child == 0) {
    record_malloc(2);
    _exit(0);
  }
  waitpid(child, nullptr, 0);
  record_malloc(3);
  int seen = 0;
  for (const Event& event : drain()) {
    if (event.kind != EventKind::kMalloc) continue;
    ++seen;
    const bool of_child = event.as<schema::AllocEvent>().size == 2;
    EXPECT_EQ(event.pid, static_cast<uint32_t>(of_child ? child : getpid()));
  }
  EXPECT_EQ(seen, 3);
}

// Goal: where no ring can be had the program goes on, and the loss is counted.
TEST_F(RecorderTest, WithoutRingsEventsAreLostAndCounted) {
  start({.ring_slots = 1});
  record_malloc(1);
  region_->control().recording.store(0);  // Else the claim would wait for a slot.
  std::thread([] { EXPECT_EQ(record_malloc(2), 0U); }).join();
  EXPECT_EQ(region_->process(0).events_lost.load(), 1U);
}

// Goal: the note of a fatal end names the message and the stack of the offending call.
TEST_F(RecorderTest, AFatalMessageBecomesANote) {
  start();
  {
    CallScope scope(__builtin_return_address(0));
    trace::note_fatal("free(): invalid pointer");
  }
  const Event event = drain()[1];
  EXPECT_EQ(event.kind, EventKind::kNote);
  EXPECT_EQ(event.text(), "free(): invalid pointer");
  EXPECT_TRUE(event.has(schema::kHasStack));
}

// Goal: the announcement of an exec carries the path and whole arguments, as many as fit.
TEST_F(RecorderTest, ExecEventsCarryPathAndArguments) {
  start();
  const std::string large(8000, 'x');
  const char* argv[] = {"prog", "-a", large.c_str(), large.c_str(), nullptr};
  {
    CallScope scope(__builtin_return_address(0));
    scope.on_exec(42, "/bin/prog", argv);
  }
  const Event event = drain()[1];
  const auto exec = event.as<schema::ExecEvent>();
  EXPECT_EQ(exec.pid, 42U);
  EXPECT_EQ(exec.path_bytes, 9U);
  EXPECT_EQ(event.text(), std::string("/bin/prog") + "prog" + '\0' + "-a" + '\0' + large + '\0');
}

}  // namespace
}  // namespace heapledger::testing
