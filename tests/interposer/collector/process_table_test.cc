// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/process_table.h"

#include <gtest/gtest.h>

#include <set>

namespace heapledger::collector {
namespace {

// Pids that no process of this machine has: beyond the kernel's PID_MAX_LIMIT.
constexpr pid_t kFirst = 5'000'000;
constexpr pid_t kChild = 5'000'001;
constexpr int kExited3 = 3 << 8;

class ProcessTableTest : public ::testing::Test {
 protected:
  static PerfRecord record(PerfKind kind, pid_t pid, pid_t parent = 0) {
    PerfRecord made;
    made.kind = kind;
    made.pid = made.tid = static_cast<uint32_t>(pid);
    made.parent_pid = static_cast<uint32_t>(parent);
    return made;
  }
  ImageJoined hello(pid_t pid, pid_t ppid, const char* exe) {
    auto region = std::make_shared<Region>(++images, RegionLayout{4, 4, 4096}, RegionSettings{});
    return {region, pid, static_cast<uint32_t>(pid), ppid, exe, exe, 0};
  }
  Process& launch() { return table.launched({kFirst, "/bin/prog", "prog", "", 0}, 10); }

  FrameTable frames;
  std::set<pid_t> watched;
  ProcessTable table{frames, [this](pid_t pid) { watched.insert(pid); }};
  uint32_t images = 0;
};

TEST_F(ProcessTableTest, LaunchExecAndHelloAreOneRowInEitherOrder) {
  // Goal: row 1 is the program, whichever news came first. Method: both orders.
  for (const bool exec_first : {true, false}) {
    ProcessTable fresh{frames, [](pid_t) {}};
    fresh.launched({kFirst, "/bin/prog", "prog", "", 0}, 10);
    if (exec_first) fresh.kernel_exec(record(PerfKind::kExec, kFirst), 20);
    fresh.joined(hello(kFirst, 1, "/bin/prog"), 30);
    if (!exec_first) fresh.kernel_exec(record(PerfKind::kExec, kFirst), 20);
    EXPECT_EQ(fresh.rows(), 1U);
    const Process& row = *fresh.current(kFirst);
    EXPECT_EQ(row.id, 1U);
    EXPECT_TRUE(row.recorded);
    EXPECT_EQ(row.start_ns, 10);
  }
}

TEST_F(ProcessTableTest, ExecOfARecordedProcessEndsItsRowAndBeginsAnother) {
  // Goal: one row per image, linked, with the kernel's time. Method: both orders of exec and Hello.
  for (const bool exec_first : {true, false}) {
    ProcessTable fresh{frames, [](pid_t) {}};
    fresh.launched({kFirst, "/bin/sh", "sh", "", 0}, 10);
    fresh.kernel_exec(record(PerfKind::kExec, kFirst), 20);
    Process& old = fresh.joined(hello(kFirst, 1, "/bin/sh"), 30);
    if (exec_first) fresh.kernel_exec(record(PerfKind::kExec, kFirst), 100);
    Process& now = fresh.joined(hello(kFirst, 1, "/bin/ls"), 110);
    if (!exec_first) fresh.kernel_exec(record(PerfKind::kExec, kFirst), 100);
    EXPECT_NE(&old, &now);
    EXPECT_STREQ(old.ended_by, "exec");
    EXPECT_EQ(old.end_ns, 100);
    EXPECT_EQ(now.start_ns, 100);
    EXPECT_EQ(now.parent, &old);
    EXPECT_FALSE(now.forked);
    EXPECT_EQ(fresh.rows(), 2U);
    EXPECT_EQ(&fresh.at(kFirst, 99), &old);
    EXPECT_EQ(&fresh.at(kFirst, 100), &now);
  }
}

TEST_F(ProcessTableTest, ForkThatClaimsASlotSharesItsParentsImage) {
  // Goal: forked rows. Method: the kernel's record before and after the claim.
  for (const bool kernel_first : {true, false}) {
    ProcessTable fresh{frames, [](pid_t) {}};
    fresh.launched({kFirst, "/bin/sh", "sh", "", 0}, 10);
    Process& parent = fresh.joined(hello(kFirst, 1, "/bin/sh"), 30);
    if (kernel_first) fresh.kernel_fork(record(PerfKind::kFork, kChild, kFirst), 50);
    Process& child = fresh.forked(parent.region, 1, kChild, &parent, 48);
    if (!kernel_first) fresh.kernel_fork(record(PerfKind::kFork, kChild, kFirst), 50);
    EXPECT_EQ(fresh.rows(), 2U);
    EXPECT_TRUE(child.forked);
    EXPECT_TRUE(child.recorded);
    EXPECT_EQ(child.image, parent.image);
    EXPECT_EQ(child.parent, &parent);
    EXPECT_NE(child.space, parent.space);
    EXPECT_EQ(fresh.current(kChild), &child);
  }
}

TEST_F(ProcessTableTest, VforkedChildThatExecsIsANewImageOfItsParent) {
  // Goal: posix_spawn leaves one row, not two. Method: fork and exec records, then Hello.
  launch();
  Process& parent = table.joined(hello(kFirst, 1, "/bin/make"), 30);
  table.kernel_fork(record(PerfKind::kFork, kChild, kFirst), 50);
  table.kernel_exec(record(PerfKind::kExec, kChild), 60);
  Process& child = table.joined(hello(kChild, kFirst, "/bin/cc"), 70);
  EXPECT_EQ(table.rows(), 2U);
  EXPECT_FALSE(child.forked);
  EXPECT_EQ(child.parent, &parent);
  EXPECT_TRUE(watched.contains(kChild));
}

TEST_F(ProcessTableTest, ChildThatNeverSaysHelloGetsARowWithTheReason) {
  // Goal: recorded = 0 and why, with and without the kernel's records. Method: exec of a file that
  // does not exist any more, announced by the shim.
  for (const bool kernel : {true, false}) {
    ProcessTable fresh{frames, [](pid_t) {}};
    fresh.launched({kFirst, "/bin/sh", "sh", "", 0}, 10);
    Process& parent = fresh.joined(hello(kFirst, 1, "/bin/sh"), 30);
    fresh.exec_announced(kChild, parent, "/no/such/static", "static -x", 55);
    if (kernel) {
      fresh.kernel_fork(record(PerfKind::kFork, kChild, kFirst), 50);
      fresh.kernel_exec(record(PerfKind::kExec, kChild), 60);
    }
    Process* child = fresh.gone(kChild, {true, kExited3}, 90);
    ASSERT_NE(child, nullptr);
    EXPECT_EQ(child->id, 2U);
    EXPECT_FALSE(child->recorded);
    EXPECT_FALSE(child->reason.empty());
    EXPECT_EQ(child->exe, "/no/such/static");
    EXPECT_EQ(child->command, "static -x");
    EXPECT_EQ(child->exit_status, 3);
    EXPECT_EQ(child->parent, &parent);
  }
}

TEST_F(ProcessTableTest, KernelRecordsThatComeAfterAForkAndTwoHellosFindTheirRows) {
  // Goal: a script's interpreter chain, faster than the kernel's records. Method: claim, Hello,
  // Hello, then fork and exec records in their order; times decide.
  launch();
  Process& parent = table.joined(hello(kFirst, 1, "/bin/bash"), 30);
  Process& fork = table.forked(parent.region, 1, kChild, &parent, 49);
  Process& env = table.joined(hello(kChild, kFirst, "/usr/bin/env"), 80);
  Process& script = table.joined(hello(kChild, kFirst, "/bin/bash"), 120);
  table.kernel_fork(record(PerfKind::kFork, kChild, kFirst), 50);
  table.kernel_exec(record(PerfKind::kExec, kChild), 70);
  table.kernel_exec(record(PerfKind::kExec, kChild), 110);
  EXPECT_EQ(table.rows(), 4U);
  EXPECT_EQ(fork.start_ns, 49);
  EXPECT_EQ(fork.end_ns, 70);
  EXPECT_EQ(env.start_ns, 70);
  EXPECT_EQ(env.end_ns, 110);
  EXPECT_EQ(script.start_ns, 110);
  EXPECT_EQ(&table.at(kChild, 60), &fork);
  EXPECT_EQ(&table.at(kChild, 90), &env);
  EXPECT_EQ(&table.at(kChild, 115), &script);
  EXPECT_EQ(script.parent, &env);
  EXPECT_EQ(env.parent, &fork);
}

TEST_F(ProcessTableTest, FailedExecChangesNothing) {
  // Goal: no row for an exec that did not happen. Method: announce, take back, end.
  launch();
  Process& process = table.joined(hello(kFirst, 1, "/bin/sh"), 30);
  table.exec_announced(kFirst, process, "/no/such", "", 40);
  table.exec_failed(kFirst);
  table.gone(kFirst, {true, 9}, 50);
  EXPECT_EQ(table.rows(), 1U);
  EXPECT_STREQ(process.ended_by, "signal");
  EXPECT_EQ(process.signal, 9);
  EXPECT_FALSE(process.exit_status.has_value());
}

TEST_F(ProcessTableTest, SelfExecOfAnUnrecordableFileWithoutKernelRecords) {
  // Goal: the old row ends by exec although nobody but the shim said so. Method: announce, then
  // end.
  launch();
  Process& process = table.joined(hello(kFirst, 1, "/bin/sh"), 30);
  table.exec_announced(kFirst, process, "/no/such/static", "", 40);
  Process* image = table.gone(kFirst, {true, 0}, 50);
  EXPECT_STREQ(process.ended_by, "exec");
  EXPECT_EQ(process.end_ns, 40);
  ASSERT_NE(image, &process);
  EXPECT_FALSE(image->recorded);
  EXPECT_STREQ(image->ended_by, "exit");
}

TEST_F(ProcessTableTest, PidThatIsGivenOutAgainIsANewProcess) {
  // Goal: pids are not identities. Method: end a process, fork its pid again.
  launch();
  Process& parent = table.joined(hello(kFirst, 1, "/bin/sh"), 30);
  table.kernel_fork(record(PerfKind::kFork, kChild, kFirst), 50);
  Process& first = table.forked(parent.region, 1, kChild, &parent, 50);
  table.gone(kChild, {true, 0}, 60);
  table.kernel_fork(record(PerfKind::kFork, kChild, kFirst), 80);
  Process& second = table.forked(parent.region, 2, kChild, &parent, 80);
  EXPECT_NE(&first, &second);
  EXPECT_EQ(&table.at(kChild, 55), &first);
  EXPECT_EQ(&table.at(kChild, 85), &second);
}

TEST_F(ProcessTableTest, NoForkEndsBeforeItBegan) {
  // Goal: durations are never negative. Method: a fork whose start, mapped from its parent's stamp,
  // lies a little after the end that the observer read from the clock.
  launch();
  Process& parent = table.joined(hello(kFirst, 1, "/bin/sh"), 30);
  const Process& child = table.forked(parent.region, 1, kChild, &parent, 52);
  table.gone(kChild, {true, 0}, 50);
  EXPECT_EQ(child.start_ns, 50);
  EXPECT_EQ(child.end_ns, 50);
}

TEST_F(ProcessTableTest, LaunchToldTwiceIsOneRow) {
  // Goal: `record` may add a reason later. Method: launch, then the reason.
  launch();
  table.launched({kFirst, "", "", "statically linked", 0}, 12);
  EXPECT_EQ(table.rows(), 1U);
  EXPECT_EQ(table.current(kFirst)->reason, "statically linked");
  EXPECT_EQ(table.current(kFirst)->exe, "/bin/prog");
}

TEST_F(ProcessTableTest, ShortLivedProcessOfAnotherNamespaceIsOneRow) {
  // Goal: a slot whose pid could not be found and the kernel's word of the fork are one process.
  // Method: both orders, the kernel's half over already or not.
  for (const bool kernel_first : {true, false}) {
    for (const bool over : {true, false}) {
      ProcessTable fresh{frames, [](pid_t) {}};
      fresh.launched({kFirst, "/bin/sh", "sh", "", 0}, 10);
      Process& parent = fresh.joined(hello(kFirst, 1, "/bin/sh"), 30);
      if (kernel_first) fresh.kernel_fork(record(PerfKind::kFork, kChild, kFirst), 50);
      if (kernel_first && over) fresh.gone(kChild, {true, kExited3}, 55);
      Process& child = fresh.forked(parent.region, 1, -7, &parent, 52);
      if (!kernel_first) fresh.kernel_fork(record(PerfKind::kFork, kChild, kFirst), 50);
      EXPECT_EQ(fresh.rows(), 2U);
      EXPECT_TRUE(child.recorded);
      EXPECT_EQ(child.reason, "");
      EXPECT_EQ(child.reopened, kernel_first && over);
      EXPECT_EQ(fresh.gone(kChild, {}, 60), &child);
      EXPECT_TRUE(child.over);
      EXPECT_EQ(child.exit_status.has_value(), kernel_first && over);
    }
  }
}

TEST_F(ProcessTableTest, ForkWithoutASlotHasItsReasonAndAnImageAfterItIsAnother) {
  // Goal: who found no slot is named, and what it runs later is recorded as itself. Method: a
  // refused fork that executes a program, whose Hello may have come first.
  for (const bool hello_first : {true, false}) {
    ProcessTable fresh{frames, [](pid_t) {}};
    fresh.launched({kFirst, "/bin/sh", "sh", "", 0}, 10);
    Process& parent = fresh.joined(hello(kFirst, 1, "/bin/sh"), 30);
    if (hello_first) fresh.joined(hello(kChild, kFirst, "/bin/ls"), 70);
    Process& refused = fresh.refused(kChild, &parent, "no slot", 50);
    if (!hello_first) fresh.joined(hello(kChild, kFirst, "/bin/ls"), 70);
    EXPECT_EQ(fresh.rows(), 3U);
    EXPECT_FALSE(refused.recorded);
    EXPECT_EQ(refused.reason, "no slot");
    EXPECT_STREQ(refused.ended_by, "exec");
    EXPECT_EQ(refused.end_ns, 70);
    const Process& image = *fresh.current(kChild);
    EXPECT_NE(&image, &refused);
    EXPECT_TRUE(image.recorded);
    EXPECT_EQ(image.exe, "/bin/ls");
  }
}

TEST_F(ProcessTableTest, ImageThatWasTurnedAwayHasARowWithTheReason) {
  // Goal: what called and was not taken in is named. Method: an image that the kernel told of, and
  // one that nobody told of.
  Process& first = launch();
  table.kernel_exec(record(PerfKind::kExec, kFirst), 20);
  EXPECT_EQ(&table.unrecorded({kFirst, "another version", 0}, 30), &first);
  EXPECT_EQ(first.reason, "another version");
  const Process& second = table.unrecorded({kChild, "another version", 0}, 40);
  EXPECT_FALSE(second.recorded);
  EXPECT_EQ(second.reason, "another version");
  EXPECT_EQ(table.rows(), 2U);
}

}  // namespace
}  // namespace heapledger::collector
