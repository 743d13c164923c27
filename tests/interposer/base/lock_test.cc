// SPDX-License-Identifier: Apache-2.0
//
// The lock excludes, wakes its sleepers, and can be reset as a forked child does.
#include "interposer/base/lock.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace heapledger::base {
namespace {

TEST(LockTest, CountsUnderContentionAreExact) {
  Lock lock;
  long counter = 0;  // Not atomic: only the lock protects it.
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50000; ++i) {
        const LockGuard guard(lock);
        ++counter;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(counter, 200000);
}

// Waiters that went to sleep in the kernel are woken one after another.
TEST(LockTest, SleepersAreWoken) {
  Lock lock;
  int done = 0;
  lock.lock();
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      const LockGuard guard(lock);
      ++done;
    });
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(done, 0);
  lock.unlock();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(done, 3);
}

TEST(LockTest, TryLockAndReset) {
  Lock lock;
  EXPECT_TRUE(lock.try_lock());
  EXPECT_FALSE(lock.try_lock());
  lock.reset();
  EXPECT_TRUE(lock.try_lock());
  lock.unlock();
  static_assert(sizeof(Lock) == 4);
}

}  // namespace
}  // namespace heapledger::base
