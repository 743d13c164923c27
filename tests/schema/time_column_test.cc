// SPDX-License-Identifier: Apache-2.0
#include "schema/time_column.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "schema/error.h"

namespace heapledger::schema {
namespace {

constexpr uint64_t kOneNs = 1 << 16;

// Two sections, each followed by zeros, as PackedReader has them.
struct Sections {
  std::vector<uint8_t> first, rest;
  size_t bytes() const { return first.size() + rest.size() - 2 * kVarintBytesMax; }
};

std::vector<uint8_t> padded(const VarintWriter& out) {
  std::vector<uint8_t> bytes(out.bytes().begin(), out.bytes().end());
  bytes.resize(bytes.size() + kVarintBytesMax);
  return bytes;
}

Sections written(const std::vector<int64_t>& times) {
  TimeColumnWriter writer;
  writer.start(times.size());
  for (const int64_t time : times) writer.put(time);
  VarintWriter first, rest;
  writer.finish({first, rest});
  return {padded(first), padded(rest)};
}

std::vector<int64_t> read_back(const Sections& sections, size_t rows) {
  const auto reader = [](const std::vector<uint8_t>& bytes) {
    return VarintReader(bytes.data(), bytes.data() + bytes.size() - kVarintBytesMax);
  };
  std::vector<int64_t> times(rows);
  NumberColumn numbers;
  read_times({reader(sections.first), reader(sections.rest)}, numbers, times);
  return times;
}

// Stamps of a clock that moves `step_ns` at a time, rounded down to nanoseconds.
std::vector<int64_t> stepped(double step_ns, size_t rows) {
  std::mt19937_64 random(7);
  std::geometric_distribution<int> steps(0.08);
  std::vector<int64_t> times(rows);
  double at = 12345.678;
  for (int64_t& time : times) {
    at += step_ns * (steps(random) + (random() % 50 == 0 ? 5000 : 0));
    time = static_cast<int64_t>(at);
  }
  return times;
}

TEST(TimeColumn, KeepsTimesExactly) {
  // Goal: reading is writing's inverse, whatever the clock. Method: clocks of several steps, too
  // few rows to tell, times before 0, the farthest times there are.
  for (const double step : {1.0, 0.385, 10.0, 10.0146, 13.3333, 41.6667, 250.0}) {
    for (const size_t rows : {size_t{0}, size_t{1}, size_t{100}, size_t{20000}}) {
      const auto times = stepped(step, rows);
      ASSERT_EQ(read_back(written(times), rows), times) << step;
    }
  }
  constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  std::vector<int64_t> far = {kMin, -5, 0, 0, kMax, kMax};
  EXPECT_EQ(read_back(written(far), far.size()), far);
  far = stepped(10.0, 5000);
  far.insert(far.begin(), kMin);
  far.push_back(kMax);
  EXPECT_EQ(read_back(written(far), far.size()), far);
}

TEST(TimeColumn, SaysDifferencesInStepsOfTheClock) {
  // Goal: most differences take one byte where the clock moves in steps. Method: the same steps of
  // a clock with 10.0146 ns, as one that moves 26 ticks of 2.596 GHz at a time, and of one with 1.
  const auto times = stepped(10.0146, 60000);
  std::vector<uint64_t> differences;
  for (size_t i = 1; i <= 512; ++i) {
    differences.push_back(static_cast<uint64_t>(times[i] - times[i - 1]));
  }
  EXPECT_NEAR(static_cast<double>(find_clock_step(differences)) / kOneNs, 10.0146, 0.001);
  EXPECT_LT(written(times).bytes(), 60000 * 1.1);
  EXPECT_GT(written(stepped(9.4, 60000)).bytes(), 60000 * 1.2);  // No whole number is its step.
}

TEST(TimeColumn, FindsNoStepWhereThereIsNone) {
  std::mt19937_64 random(3);
  std::vector<uint64_t> differences(512);
  for (uint64_t& difference : differences) difference = random() % 3000;
  EXPECT_EQ(find_clock_step(differences), kOneNs);
  std::vector<uint64_t> zeros(512);
  EXPECT_EQ(find_clock_step(zeros), kOneNs);
}

TEST(TimeColumn, RefusesTimesThatGoBackwardsAndImpossibleSteps) {
  EXPECT_THROW(read_back(written({5, 4}), 2), Error);
  VarintWriter first, rest;
  for (const uint64_t step : {uint64_t{0}, UINT64_MAX}) {
    first.start(1);
    first.put(1);
    rest.start(1);
    rest.put(step);
    EXPECT_THROW(read_back({padded(first), padded(rest)}, 1), Error);
  }
}

}  // namespace
}  // namespace heapledger::schema
