// SPDX-License-Identifier: Apache-2.0
// The shim in a C program, watched by a fake collector: what is recorded, and that the program does
// not notice.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <set>
#include <sstream>

#include "interposer/heap/os.h"
#include "tests/interposer/trace/fake_collector.h"

namespace heapledger::testing {
namespace {

using schema::EventKind;

std::string victim(const char* name) { return std::string(HEAPLEDGER_VICTIMS) + "/victim_" + name; }

std::string joined(const std::vector<std::string>& lines) {
  std::string result;
  for (const std::string& line : lines) result += line + "\n";
  return result;
}

// Address range of a module by the end of its path.
std::pair<uint64_t, uint64_t> range_of(const FakeCollector& collector, const std::string& name) {
  for (const Event& event : collector.of(EventKind::kModuleLoad)) {
    const std::string path = event.text();
    const auto module = event.as<schema::ModuleEvent>();
    if (path.ends_with(name)) return {module.start, module.end};
  }
  return {0, 0};
}

bool called_from(const Event& event, std::pair<uint64_t, uint64_t> range) {
  return !event.stack.empty() && event.stack[0] >= range.first && event.stack[0] < range.second;
}

class CallsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    result_ = run_recorded(collector_, {victim("calls")});
    collector_.finish();
    range_ = range_of(collector_, "victim_calls");
  }
  int64_t count(EventKind kind) {
    const auto events = collector_.of(kind);
    return std::count_if(events.begin(), events.end(),
                         [&](const Event& event) { return called_from(event, range_); });
  }

  FakeCollector collector_{{.free_stacks = true}};
  RunResult result_;
  std::pair<uint64_t, uint64_t> range_;
};

// Goal: the numbers of the program, exactly. Method: count events whose innermost frame lies in the
// victim.
TEST_F(CallsTest, CountsEveryCallOfTheVictim) {
  EXPECT_EQ(WEXITSTATUS(result_.status), 7);
  EXPECT_EQ(result_.out, "466200 200\n");
  EXPECT_EQ(result_.err, "");
  EXPECT_EQ(joined(collector_.damage()), "");
  EXPECT_EQ(count(EventKind::kMalloc), 201);
  EXPECT_EQ(count(EventKind::kRealloc), 200);
  EXPECT_EQ(count(EventKind::kCalloc), 200);
  EXPECT_EQ(count(EventKind::kPosixMemalign), 200);
  EXPECT_EQ(count(EventKind::kAlignedAlloc), 200);
  EXPECT_EQ(count(EventKind::kMemalign), 200);
  EXPECT_EQ(count(EventKind::kFree), 200 + 3 * 200);
  EXPECT_EQ(collector_.region().process(0).events_lost.load(), 0U);
}

// Goal: ids close the books. Method: replay all calls; every id begins once and ends at most once,
// and what is left is what the victim kept (its calloc blocks).
TEST_F(CallsTest, EveryIdIsBornOnceAndEndsOnce) {
  std::map<uint64_t, uint64_t> live;  // id -> size
  std::set<uint64_t> seen;
  for (const Event& event : collector_.events()) {
    if (!schema::is_call(event.kind)) continue;
    const char role = schema::kind_row(event.kind)->role;
    uint64_t id = 0, size = 0, ended = 0;
    if (role == 'a') {
      const auto alloc = event.as<schema::AllocEvent>();
      id = alloc.id, size = alloc.size;
      EXPECT_EQ(alloc.address == 0, event.has(schema::kFailed));
      EXPECT_EQ(id == 0, event.has(schema::kFailed));
    } else if (role == 'f') {
      ended = event.as<schema::FreeEvent>().ended_id;
      EXPECT_NE(ended, 0U);
    } else {
      const auto realloc = event.as<schema::ReallocEvent>();
      id = realloc.id, size = realloc.size, ended = realloc.ended_id;
      EXPECT_LE(realloc.ended_tick, event.tick);
    }
    if (ended != 0) {
      EXPECT_EQ(live.erase(ended), 1U) << std::hex << ended;
    }
    if (id == 0) continue;
    EXPECT_TRUE(seen.insert(id).second);
    live[id] = size;
  }
  uint64_t callocs = 0;
  for (const auto& [id, size] : live) callocs += size == 3 * 777;
  EXPECT_EQ(callocs, 200U);
}

// Goal: the program's own system calls are recorded with the kernel's arguments; the allocator's
// carry a cause and a stack.
TEST_F(CallsTest, TellsTheProgramsSystemCallsFromTheAllocators) {
  std::map<std::string, int> program, allocator;
  for (const Event& event : collector_.of(EventKind::kSyscall)) {
    const auto call = event.as<schema::SyscallEvent>();
    const char* name = schema::kSyscallNames[static_cast<int>(call.name)];
    if (call.origin == schema::Origin::kRecorder) continue;
    if (call.origin == schema::Origin::kProgram) {
      if (called_from(event, range_)) ++program[name];
      EXPECT_EQ(call.cause, 0);
    } else {
      ++allocator[name];
      EXPECT_NE(call.cause, 0);
      EXPECT_TRUE(event.has(schema::kHasStack));
    }
  }
  EXPECT_EQ(program["mmap"], 1);
  EXPECT_EQ(program["mprotect"], 1);
  EXPECT_EQ(program["madvise"], 1);
  EXPECT_EQ(program["mremap"], 1);
  EXPECT_EQ(program["munmap"], 1);
  EXPECT_GE(program["brk"], 1);
  EXPECT_GT(allocator["brk"], 1);
  EXPECT_GT(allocator["mmap"], 0);
}

// Goal: stacks are whole. Method: the recursion of deep() must show with its own depth, main and
// the root below it.
TEST_F(CallsTest, StacksReachTheRoot) {
  std::map<size_t, int> depths;
  int incomplete = 0;
  for (const Event& event : collector_.of(EventKind::kMalloc)) {
    const auto alloc = event.as<schema::AllocEvent>();
    if (!called_from(event, range_) || event.has(schema::kFailed)) continue;
    incomplete += event.has(schema::kStackIncomplete);
    size_t own = 0;
    for (const uint64_t frame : event.stack) own += frame >= range_.first && frame < range_.second;
    ++depths[own];
    EXPECT_GE(alloc.size, 100000U);
  }
  EXPECT_EQ(incomplete, 0);
  // deep() 1..7 times, main, _start.
  ASSERT_EQ(depths.size(), 7U);
  EXPECT_EQ(depths.begin()->first, 3U);
  EXPECT_EQ(depths.rbegin()->first, 9U);
}

// Goal: what the process says of itself at its end.
TEST_F(CallsTest, LeavesItsExitStatusAndFaultsBehind) {
  schema::ProcessSlot& process = collector_.region().process(0);
  EXPECT_EQ(process.state.load(), schema::ProcessState::kLive);
  EXPECT_EQ(process.exit_status.load(), 8U);
  EXPECT_NE(process.end_tick.load(), 0U);
  EXPECT_GT(process.end_minor_faults.load(), process.start_minor_faults);
  EXPECT_EQ(process.mmap_threshold, 131072U);
  EXPECT_NE(process.heap_start, 0U);
  EXPECT_GE(process.snapshot_wanted.load(), 1U);
}

}  // namespace
}  // namespace heapledger::testing
