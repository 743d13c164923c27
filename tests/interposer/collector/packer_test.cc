// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/packer.h"

#include <gtest/gtest.h>

#include <random>

namespace heapledger::collector {
namespace {

struct Row {
  int64_t time_ns;
  int ring;
};
struct Before {
  bool operator()(const Row& a, const Row& b) const { return a.time_ns < b.time_ns; }
};
using SmallPacker = Packer<Row, Before, 64>;

// Takes batches and checks what every batch must be.
struct Sink {
  std::vector<std::vector<Row>> batches;
  void operator()(std::span<const Row> rows) {
    ASSERT_FALSE(rows.empty());
    ASSERT_LE(rows.size(), 64U);
    for (size_t i = 1; i < rows.size(); ++i) ASSERT_LE(rows[i - 1].time_ns, rows[i].time_ns);
    batches.emplace_back(rows.begin(), rows.end());
  }
  size_t rows() const {
    size_t count = 0;
    for (const auto& batch : batches) count += batch.size();
    return count;
  }
};

TEST(Packer, GivesOutEveryRowOnceInSortedBatches) {
  // Goal: nothing is lost or doubled. Method: three rings' runs per window, many windows.
  SmallPacker packer;
  Sink sink;
  std::minstd_rand random(3);
  int64_t now = 0;
  size_t added = 0;
  for (int window = 0; window < 50; ++window) {
    for (int ring = 0; ring < 3; ++ring) {
      for (int i = 0; i < 17; ++i) packer.add({now + i * 3 + ring, ring}), ++added;
    }
    now += 51 + static_cast<int64_t>(random() % 5);
    packer.close_full([&](auto rows) { sink(rows); });
  }
  packer.close_all([&](auto rows) { sink(rows); });
  EXPECT_EQ(sink.rows(), added);
  EXPECT_TRUE(packer.empty());
}

TEST(Packer, LateRowsGoIntoABatchOfTheirOwn) {
  // Goal: one late row must not widen a batch. Method: close one batch, then add a row before it.
  SmallPacker packer;
  Sink sink;
  for (int i = 0; i < 100; ++i) packer.add({1000 + i, 0});
  packer.close_full([&](auto rows) { sink(rows); });
  ASSERT_EQ(sink.batches.size(), 1U);
  packer.add({500, 1});
  packer.close_all([&](auto rows) { sink(rows); });
  ASSERT_EQ(sink.batches.size(), 3U);
  EXPECT_EQ(sink.batches[1].front().time_ns, 1064);
  EXPECT_EQ(sink.batches[2].size(), 1U);
  EXPECT_EQ(sink.batches[2].front().time_ns, 500);
}

TEST(Packer, GivesOutWhatIsOldInABatchThatIsNotFull) {
  // Goal: a slow program's rows do not wait for a full batch. Method: a few rows of two rings, some
  // of them late; what lies before a time goes out in order, the rest stays.
  SmallPacker packer;
  Sink sink;
  for (int i = 0; i < 10; ++i) packer.add({100 + i * 10, 0});
  for (int i = 0; i < 10; ++i) packer.add({105 + i * 10, 1});
  packer.close_before(150, [&](auto rows) { sink(rows); });
  ASSERT_EQ(sink.batches.size(), 1U);
  EXPECT_EQ(sink.batches[0].size(), 10U);
  EXPECT_EQ(sink.batches[0].back().time_ns, 145);
  EXPECT_EQ(packer.size(), 10U);
  packer.close_before(150, [&](auto rows) { sink(rows); });
  EXPECT_EQ(sink.batches.size(), 1U);
  packer.add({120, 2});
  packer.close_before(151, [&](auto rows) { sink(rows); });
  ASSERT_EQ(sink.batches.size(), 3U);
  EXPECT_EQ(sink.batches[1].front().time_ns, 150);
  EXPECT_EQ(sink.batches[2].front().time_ns, 120);
  packer.close_all([&](auto rows) { sink(rows); });
  EXPECT_EQ(sink.rows(), 21U);
}

TEST(SortRuns, IsStable) {
  // Goal: rows of one time keep their order of arrival. Method: equal times from two runs.
  std::vector<Row> rows = {{5, 0}, {7, 0}, {5, 1}, {6, 1}, {5, 2}};
  sort_runs(rows, Before());
  std::vector<int> rings;
  for (const Row& row : rows) rings.push_back(row.ring);
  EXPECT_EQ(rings, (std::vector<int>{0, 1, 2, 1, 0}));
}

}  // namespace
}  // namespace heapledger::collector
