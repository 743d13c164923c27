// SPDX-License-Identifier: Apache-2.0
// Kernel's and wrappers' views of system calls, joined by hand-made times.
#include "interposer/collector/syscall_join.h"

#include <gtest/gtest.h>

#include "interposer/collector/return_sites.h"
#include "interposer/collector/tracepoints.h"

namespace heapledger::collector {
namespace {

using schema::Origin;
using schema::SyscallName;

constexpr int64_t kMs = 1'000'000;
constexpr uint64_t kShimCode = 0x7000;

class SyscallJoinTest : public ::testing::Test {
 protected:
  SyscallJoinTest()
      : join_({[this](const SyscallRow& row) { rows_.push_back(row); },
               [this](Process& process, const Thread&, const KernelCall& call) {
                 if (process.id == 0) return false;
                 kernel_only_.push_back(call);
                 return true;
               },
               [](const Process&, const KernelCall& call) { return call.ip == kShimCode; }}) {
    process_.id = 1;
    thread_.tid = 10;
  }

  void wrapped(int64_t from_ns, int64_t to_ns, uint64_t address, int64_t result = 0) {
    SyscallRow row{};
    row.time_ns = from_ns;
    row.duration_ns = to_ns - from_ns;
    row.call.name = SyscallName::kMunmap;
    row.call.origin = Origin::kAllocator;
    row.call.args[0] = address;
    row.call.args[1] = 4096;
    row.call.result = result;
    join_.wrapped(process_, thread_, row);
  }
  void called(Process& process, Thread& thread, int64_t from_ns, int64_t to_ns, uint64_t address,
              uint64_t ip = 0x1000) {
    KernelCall call;
    call.entered_ns = from_ns;
    call.left_ns = to_ns;
    call.ip = ip;
    call.name = SyscallName::kMunmap;
    call.args[0] = address;
    call.args[1] = 4096;
    join_.called(process, thread, call);
  }
  void called(int64_t from_ns, int64_t to_ns, uint64_t address, uint64_t ip = 0x1000) {
    called(process_, thread_, from_ns, to_ns, address, ip);
  }

  std::vector<SyscallRow> rows_;
  std::vector<KernelCall> kernel_only_;
  Process process_;
  Thread thread_;
  SyscallJoin join_;
};

TEST_F(SyscallJoinTest, APairIsOneRowWithTheKernelsTimes) {
  // Goal: whichever side comes first, one row: the wrapper's origin, the kernel's times.
  wrapped(1000, 2000, 0x5000);
  join_.settle(1500, true);
  EXPECT_TRUE(rows_.empty());
  called(1200, 1700, 0x5000);
  called(3200, 3700, 0x6000);
  wrapped(3000, 4000, 0x6000);
  join_.settle(5000, true);
  ASSERT_EQ(rows_.size(), 2U);
  EXPECT_EQ(rows_[0].time_ns, 1200);
  EXPECT_EQ(rows_[0].duration_ns, 500);
  EXPECT_EQ(rows_[0].call.origin, Origin::kAllocator);
  EXPECT_EQ(rows_[1].time_ns, 3200);
  join_.finish();
  EXPECT_TRUE(kernel_only_.empty());
  EXPECT_EQ(join_.unmatched(), 0U);
}

TEST_F(SyscallJoinTest, EqualCallsArePairedByTime) {
  // Goal: of calls with the same arguments and result each wrapper gets its own. Method: a raw one
  // between two wrapped ones, all alike.
  called(1100, 1200, 0x5000);
  called(2100, 2200, 0x5000);
  called(3100, 3200, 0x5000);
  wrapped(3000, 3300, 0x5000);
  wrapped(1000, 1300, 0x5000);
  join_.settle(4000, true);
  ASSERT_EQ(rows_.size(), 2U);
  EXPECT_EQ(rows_[0].time_ns, 1100);
  EXPECT_EQ(rows_[1].time_ns, 3100);
  join_.finish();
  ASSERT_EQ(kernel_only_.size(), 1U);
  EXPECT_EQ(kernel_only_[0].entered_ns, 2100);
}

TEST_F(SyscallJoinTest, ClocksMayDifferALittle) {
  // Goal: a row's times stay inside the wrapper's interval, so that its order to the thread's other
  // events holds.
  wrapped(1'000'000, 1'002'000, 0x5000);
  called(999'000, 1'000'500, 0x5000);
  join_.settle(2'000'000, true);
  ASSERT_EQ(rows_.size(), 1U);
  EXPECT_EQ(rows_[0].time_ns, 1'000'000);
  EXPECT_EQ(rows_[0].duration_ns, 1500);
}

TEST_F(SyscallJoinTest, AKernelsCallWaitsForWhatItsThreadTells) {
  // Goal: no call is given up for wrapperless before its thread has told of later ones.
  called(1 * kMs, 1 * kMs + 100, 0x5000);
  for (int round = 0; round < 5; ++round) join_.settle(50 * kMs, true);
  EXPECT_TRUE(kernel_only_.empty());
  thread_.events_until_ns = 20 * kMs;
  join_.settle(51 * kMs, false);  // What another ring holds is not all read.
  join_.settle(52 * kMs, true);
  EXPECT_TRUE(kernel_only_.empty());
  join_.settle(53 * kMs, true);
  EXPECT_EQ(kernel_only_.size(), 1U);
}

TEST_F(SyscallJoinTest, TheRecordersOwnWaitForTheEnd) {
  // Goal: what the recorder tells late is not counted twice.
  called(1 * kMs, 1 * kMs + 100, 0x5000, kShimCode);
  thread_.events_until_ns = 20 * kMs;
  for (int round = 0; round < 4; ++round) join_.settle(50 * kMs, true);
  EXPECT_TRUE(kernel_only_.empty());
  wrapped(1 * kMs - 50, 1 * kMs + 150, 0x5000);
  join_.close(process_);
  EXPECT_EQ(rows_.size(), 1U);
  EXPECT_TRUE(kernel_only_.empty());
}

TEST_F(SyscallJoinTest, WrappersAloneAreWrittenAndCounted) {
  // Goal: nothing vanishes where the kernel's record was dropped, and it shows; what was made
  // before the kernel was asked does not count.
  join_.set_since(1000);
  wrapped(500, 600, 0x5000);
  wrapped(2000, 2100, 0x5000);
  wrapped(3000, 3100, 0x6000, -22);  // The result differs: not the same call.
  called(3010, 3050, 0x6000);
  join_.settle(100 * kMs, true);
  EXPECT_TRUE(rows_.empty());
  join_.settle(300 * kMs, true);
  EXPECT_EQ(rows_.size(), 3U);
  EXPECT_EQ(join_.unmatched(), 2U);
  join_.finish();
  EXPECT_EQ(kernel_only_.size(), 1U);
}

TEST_F(SyscallJoinTest, AVforkChildsCallsAreFoundInItsParentsRing) {
  // Goal: a call that a child made and its parent's ring tells of is one row, and no miss.
  Process child;
  child.parent = &process_;
  Thread childs;
  wrapped(1000, 2000, 0x5000);
  called(child, childs, 1200, 1700, 0x5000);
  join_.settle(1 * kMs, true);
  EXPECT_EQ(rows_.size(), 1U);
  join_.finish();
  EXPECT_TRUE(kernel_only_.empty());
  EXPECT_EQ(join_.unmatched(), 0U);
}

TEST_F(SyscallJoinTest, AVforkChildsCallsAreNotItsParents) {
  // Goal: of two calls that are alike, microseconds apart, each side's events find their own.
  Process child;
  child.id = 2;
  child.parent = &process_;
  Thread childs;
  wrapped(100'000, 110'000, 0x5000);  // The child's.
  wrapped(130'000, 140'000, 0x5000);
  called(131'000, 139'000, 0x5000);
  join_.settle(1 * kMs, true);
  called(child, childs, 101'000, 109'000, 0x5000);
  join_.settle(2 * kMs, true);
  ASSERT_EQ(rows_.size(), 2U);
  EXPECT_EQ(rows_[0].time_ns, 131'000);
  EXPECT_EQ(rows_[1].time_ns, 101'000);
}

TEST_F(SyscallJoinTest, AVforkChildsEndLooksIntoItsParentsRing) {
  // Goal: the same where the child ends before the records are known to be complete.
  Process child;
  child.id = 2;
  child.parent = &process_;
  Thread childs;
  wrapped(1000, 2000, 0x5000);
  called(child, childs, 1200, 1700, 0x5000);
  join_.settle(2000, true);
  EXPECT_TRUE(rows_.empty());
  join_.close(child);
  EXPECT_EQ(rows_.size(), 1U);
  EXPECT_TRUE(kernel_only_.empty());
}

TEST_F(SyscallJoinTest, ACallWaitsUntilItsProcessHasARow) {
  process_.id = 0;
  called(1 * kMs, 1 * kMs + 100, 0x5000);
  thread_.events_until_ns = 20 * kMs;
  for (int round = 0; round < 4; ++round) join_.settle(50 * kMs, true);
  EXPECT_TRUE(kernel_only_.empty());
  process_.id = 1;
  join_.settle(51 * kMs, true);
  EXPECT_EQ(kernel_only_.size(), 1U);
}

TEST(SyscallArgumentsTest, OnlyWhatTheCallReadsIsKept) {
  uint64_t mmap_args[6] = {0, 4096, 3, 0x22, 0xffffffff, 0};
  normalize_arguments(SyscallName::kMmap, mmap_args);
  EXPECT_EQ(mmap_args[4], UINT64_MAX) << "a descriptor is an int";
  uint64_t mremap_args[6] = {0x1000, 4096, 8192, 1, 0xdead, 0xbeef};
  normalize_arguments(SyscallName::kMremap, mremap_args);
  EXPECT_EQ(mremap_args[4], 0U) << "no MREMAP_FIXED";
  uint64_t fixed_args[6] = {0x1000, 4096, 8192, 3, 0xdead, 0xbeef};
  normalize_arguments(SyscallName::kMremap, fixed_args);
  EXPECT_EQ(fixed_args[4], 0xdeadU);
  EXPECT_EQ(fixed_args[5], 0U);
}

TEST(TracepointsTest, FormatsGiveTheNumberAndTheOffsets) {
  const std::string head =
      "name: sys_enter_x\nID: 174\nformat:\n"
      "\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n"
      "\tfield:int __syscall_nr;\toffset:8;\tsize:4;\tsigned:1;\n";
  const std::string fields =
      "\tfield:unsigned long addr;\toffset:16;\tsize:8;\tsigned:0;\n"
      "\tfield:size_t len;\toffset:24;\tsize:8;\tsigned:0;\n";
  const Tracepoint point = parse_format(head + fields + "\nprint fmt: \"\"\n");
  EXPECT_EQ(point.id, 174U);
  ASSERT_EQ(point.fields, 2U);
  EXPECT_EQ(point.offset[1], 24);
  EXPECT_EQ(parse_format("").fields, 0U);
  EXPECT_EQ(parse_format(fields).fields, 0U) << "no system call's number";
  EXPECT_EQ(parse_format(head + "\tfield:int a;\toffset:16;\tsize:4;\n").fields, 0U);
  EXPECT_EQ(parse_format(head + "\tfield:long a;\toffset:99999;\tsize:8;\n").fields, 0U);
}

TEST(ReturnSitesTest, CallsAreToldFromOtherBytes) {
  const auto is_call = [](std::vector<uint8_t> bytes) {
    return ends_with_call(bytes.data(), bytes.size());
  };
  EXPECT_TRUE(is_call({0x90, 0xe8, 1, 2, 3, 4}));        // call rel32
  EXPECT_TRUE(is_call({0x90, 0xff, 0xd0}));              // call *%rax
  EXPECT_TRUE(is_call({0x41, 0xff, 0xd4}));              // call *%r12
  EXPECT_TRUE(is_call({0xff, 0x15, 1, 2, 3, 4}));        // call *x(%rip)
  EXPECT_TRUE(is_call({0xff, 0x50, 8}));                 // call *8(%rax)
  EXPECT_TRUE(is_call({0xff, 0x54, 0x24, 8}));           // call *8(%rsp)
  EXPECT_TRUE(is_call({0xff, 0x14, 0xc5, 1, 2, 3, 4}));  // call *x(,%rax,8)
  EXPECT_FALSE(is_call({0x90, 0x90, 0x90, 0x90, 0x90}));
  EXPECT_FALSE(is_call({0xff, 0xe0}));        // jmp *%rax
  EXPECT_FALSE(is_call({0xe9, 1, 2, 3, 4}));  // jmp rel32
  EXPECT_FALSE(is_call({}));
}

}  // namespace
}  // namespace heapledger::collector
