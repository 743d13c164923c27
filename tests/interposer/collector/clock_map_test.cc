// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/clock_map.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

namespace heapledger::collector {
namespace {

// A clock of 2.5 ticks per nanosecond that runs `ppm` fast, read with an error of up to `noise_ns`.
struct FakeClock {
  double ppm;
  int64_t noise_ns;
  std::minstd_rand random{7};

  uint64_t tick_at(int64_t ns) const {
    return 1'000'000 + static_cast<uint64_t>(static_cast<double>(ns) * 2.5 * (1 + ppm * 1e-6));
  }
  ClockPair pair_at(int64_t ns) {
    const auto span = static_cast<uint64_t>(2 * noise_ns + 1);
    const int64_t noise = static_cast<int64_t>(random() % span) - noise_ns;
    return {tick_at(ns), ns + noise, static_cast<uint64_t>(noise_ns)};
  }
};

TEST(ClockMap, NeverRunsBackwardsWhateverThePairsSay) {
  // Goal: invariant 1. Method: noisy pairs, and times asked before and after each, as ticks rise.
  FakeClock clock{30, 200};
  ClockMap map(schema::Clock::kTsc, clock.pair_at(0), clock.pair_at(2'000'000));
  int64_t last = INT64_MIN;
  for (int64_t ns = 0; ns < 3'000'000'000; ns += 9'999'983) {
    for (const int64_t step : {0, 1, 2, 400}) {
      const int64_t said = map.to_ns(clock.tick_at(ns + step));
      EXPECT_GE(said, last);
      last = said;
    }
    map.add(clock.pair_at(ns));
  }
}

TEST(ClockMap, FollowsTheTrueClockWithinItsStatedError) {
  // Goal: the error bound is honest. Method: compare with the truth at each pair.
  FakeClock clock{-80, 30};
  ClockMap map(schema::Clock::kTsc, clock.pair_at(0), clock.pair_at(2'000'000));
  for (int64_t ns = 100'000'000; ns < 5'000'000'000; ns += 100'000'000) {
    map.add(clock.pair_at(ns));
    const int64_t error = map.to_ns(clock.tick_at(ns)) - ns;
    EXPECT_LE(std::llabs(error), static_cast<int64_t>(map.error_ns()) + 60) << ns;
  }
  const int64_t at_end = map.to_ns(clock.tick_at(5'050'000'000)) - 5'050'000'000;
  EXPECT_LT(std::llabs(at_end), 100);
}

TEST(ClockMap, WhatItOnceSaidStaysTrue) {
  // Goal: invariant 2. Method: ask for ticks, add later pairs, ask again.
  FakeClock clock{50, 100};
  ClockMap map(schema::Clock::kTsc, clock.pair_at(0), clock.pair_at(2'000'000));
  map.add(clock.pair_at(100'000'000));
  std::vector<int64_t> said;
  for (int64_t ns = 0; ns < 100'000'000; ns += 7'000'000) {
    said.push_back(map.to_ns(clock.tick_at(ns)));
  }
  for (int64_t ns = 200'000'000; ns < 900'000'000; ns += 100'000'000) map.add(clock.pair_at(ns));
  size_t i = 0;
  for (int64_t ns = 0; ns < 100'000'000; ns += 7'000'000) {
    EXPECT_EQ(map.to_ns(clock.tick_at(ns)), said[i++]);
  }
}

TEST(ClockMap, NonsenseTicksGiveNumbersAndNoOverflow) {
  // Goal: a damaged event must not be undefined behaviour. Method: the extreme ticks.
  ClockMap map(schema::Clock::kMonotonicRaw, {1000, 1000, 0}, {2000, 2000, 0});
  EXPECT_LT(map.to_ns(0), 1000);
  EXPECT_NE(map.to_ns(UINT64_MAX), 1000);
  EXPECT_NE(map.to_ns(uint64_t{1} << 63), 1000);
}

TEST(ClockMap, ReadsPairsCloseTogether) {
  // Goal: the real clock gives pairs that advance. Method: two readings.
  const schema::Clock clock = best_clock();
  const ClockPair first = read_clock_pair(clock);
  const ClockPair second = read_clock_pair(clock);
  EXPECT_GT(second.tick, first.tick);
  EXPECT_GE(second.raw_ns, first.raw_ns);
}

}  // namespace
}  // namespace heapledger::collector
