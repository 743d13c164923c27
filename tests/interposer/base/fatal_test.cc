// SPDX-License-Identifier: Apache-2.0
//
// fatal(): glibc's line on stderr, the hook once, SIGABRT; the checks built on it.
#include "interposer/base/fatal.h"

#include <gtest/gtest.h>

#include <csignal>

#include "interposer/base/sys.h"

namespace heapledger::base {
namespace {

TEST(FatalDeathTest, TheMessageIsGlibcsLine) {
  EXPECT_EXIT(fatal("free(): invalid pointer"), ::testing::KilledBySignal(SIGABRT),
              "^free\\(\\): invalid pointer\n$");
}

TEST(FatalDeathTest, TheHookRunsOnceBeforeAbort) {
  set_fatal_hook([](const char* message) {
    warn(message);
    fatal("again");  // A hook that fails in its turn must not start over.
  });
  EXPECT_EXIT(fatal("first"), ::testing::KilledBySignal(SIGABRT),
              "^first\nheapledger: first\nagain\n$");
  set_fatal_hook(nullptr);
}

TEST(FatalDeathTest, AFailedCheckNamesItself) {
  const int two = 2;
  HL_CHECK(two == 2);
  EXPECT_DEATH(HL_CHECK(two == 3), "heapledger: .*fatal_test.cc:[0-9]+: check failed: two == 3");
}

}  // namespace
}  // namespace heapledger::base
