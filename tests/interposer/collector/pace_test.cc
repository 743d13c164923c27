// SPDX-License-Identifier: Apache-2.0
// When packing rests for the program, and when it does not.
#include "interposer/collector/pace.h"

#include <gtest/gtest.h>

namespace heapledger::collector {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

constexpr uint64_t kMs = 1'000'000;
constexpr nanoseconds kNone{0};
constexpr Behind kLittle{1, 1000, 1};

TEST(Pace, GoesOnWhereItNeverWaits) {
  // Goal: on processors that are free packing never rests. Method: times in which it only ran.
  Pace pace;
  for (uint64_t run = 1; run < 100; ++run) {
    EXPECT_EQ(pace.rest({run * kMs, run * kMs / 20}, kLittle), kNone);
  }
}

TEST(Pace, RestsLongerAndLongerWhereItHadToWait) {
  // Goal: on busy processors a small part of the time goes to packing. Method: it waits each time;
  // then once it does not, and rests begin anew.
  Pace pace;
  nanoseconds total{0};
  nanoseconds last{0};
  uint64_t at = 0;
  for (int i = 0; i < 10; ++i) {
    at += kMs;
    const nanoseconds rest = pace.rest({at, at}, kLittle);
    EXPECT_GE(rest, last);
    last = rest;
    total += rest;
  }
  EXPECT_GE(total, milliseconds(400));
  EXPECT_LE(last, milliseconds(200));
  EXPECT_EQ(pace.rest({at + kMs, at}, kLittle), kNone);
  EXPECT_LT(pace.rest({at + 2 * kMs, at + kMs}, kLittle), last);
}

TEST(Pace, GoesOnWhereMuchLiesThere) {
  // Goal: the program is not made to wait, and a killed collector loses no more than is said.
  // Method: cross both limits; packing then goes on until half of that is left.
  Pace pace;
  uint64_t at = 0;
  const auto rests = [&](const Behind& behind) {
    at += kMs;
    return pace.rest({at, at}, behind) != kNone;
  };
  const uint64_t much = 1000 / Pace::kMuchShare;
  EXPECT_TRUE(rests({much - 1, 1000, 1}));
  EXPECT_FALSE(rests({much, 1000, 1}));
  EXPECT_FALSE(rests({much / 2, 1000, 1}));
  EXPECT_TRUE(rests({much / 2 - 1, 1000, 1}));
  EXPECT_TRUE(rests({1, 1000, Pace::kOldNs - 1}));
  EXPECT_FALSE(rests({1, 1000, Pace::kOldNs}));
  EXPECT_FALSE(rests({1, 1000, Pace::kOldNs / 2}));
  EXPECT_TRUE(rests({1, 1000, Pace::kOldNs / 2 - 1}));
}

TEST(Pace, LooksOncePerMillisecondOfPacking) {
  // Goal: short messages do not cost a look each. Method: ask at times around the next one.
  Pace pace;
  EXPECT_FALSE(pace.is_due(kMs - 1));
  EXPECT_TRUE(pace.is_due(kMs));
  pace.rest({5 * kMs, 0}, kLittle);
  EXPECT_FALSE(pace.is_due(6 * kMs - 1));
  EXPECT_TRUE(pace.is_due(6 * kMs));
}

}  // namespace
}  // namespace heapledger::collector
