// SPDX-License-Identifier: Apache-2.0
//
// Raw system calls: results and errors as the kernel gives them, errno never touched.
#include "interposer/base/sys.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "interposer/base/bits.h"

namespace heapledger::base {
namespace {

TEST(Sys, ErrorsAreNegativeNumbersAndErrnoIsKept) {
  errno = 4321;
  EXPECT_EQ(sys::open("/no/such/file", O_RDONLY), -ENOENT);
  EXPECT_TRUE(sys::failed(-ENOENT));
  EXPECT_FALSE(sys::failed(0));
  EXPECT_EQ(sys::munmap(pointer_to(1), 4096), -EINVAL);
  EXPECT_EQ(errno, 4321);
  EXPECT_EQ(sys::getpid(), ::getpid());
}

TEST(Sys, SixArgumentsReachTheKernel) {
  const long fd = sys::memfd_create("six", 0);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(sys::ftruncate(static_cast<int>(fd), 8192), 0);
  const long mapped =
      sys::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, static_cast<int>(fd), 4096);
  ASSERT_FALSE(sys::failed(mapped));
  std::memcpy(pointer_to(static_cast<uintptr_t>(mapped)), "second page", 12);
  char text[12] = {};
  EXPECT_EQ(::pread(static_cast<int>(fd), text, sizeof text, 4096), 12);
  EXPECT_STREQ(text, "second page");
  sys::munmap(pointer_to(static_cast<uintptr_t>(mapped)), 4096);
  EXPECT_EQ(sys::close(static_cast<int>(fd)), 0);
}

TEST(Sys, TheBreakIsAnswered) {
  const uintptr_t now = sys::brk(0);
  EXPECT_EQ(now, address_of(::sbrk(0)));
  EXPECT_EQ(sys::brk(1), now);  // Refused: the old one holds.
}

// A vfork on a stack of its own: the child runs the body, the parent waits for its end, memory is
// shared.
TEST(Sys, CloneCallRunsTheBodyAndReturnsInTheParent) {
  std::vector<char> stack(65536);
  struct Shared {
    int value = 0;
  } shared;
  const long pid = sys::clone_call(
      CLONE_VM | CLONE_VFORK | SIGCHLD, stack.data() + stack.size(),
      [](void* argument) {
        static_cast<Shared*>(argument)->value = 42;
        return 7;
      },
      &shared);
  ASSERT_GT(pid, 0);
  EXPECT_EQ(shared.value, 42);
  int status = 0;
  EXPECT_EQ(sys::wait4(static_cast<pid_t>(pid), &status, 0), pid);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
}

TEST(Sys, FutexWaitComparesFirst) {
  uint32_t word = 1;
  EXPECT_EQ(sys::futex_wait(&word, 2, nullptr, false), -EAGAIN);
  const timespec soon = {0, 1000000};
  EXPECT_EQ(sys::futex_wait(&word, 1, &soon, true), -ETIMEDOUT);
  EXPECT_EQ(sys::futex_wake(&word, 1, false), 0);
}

}  // namespace
}  // namespace heapledger::base
