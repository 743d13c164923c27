// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/call_packer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace heapledger::collector {
namespace {

using schema::CallRow;

CallRow row_at(int64_t time_ns, uint32_t thread, uint64_t id) {
  CallRow row;
  row.time_ns = row.ended_ns = time_ns;
  row.thread = thread;
  row.kind = schema::EventKind::kMalloc;
  row.id = id;
  row.address = 0x1000 + id * 16;
  row.size = 16;
  row.usable = 16;
  return row;
}

class CallPackerTest : public ::testing::Test {
 protected:
  // What every batch must be, encoded or not.
  void take(std::span<const CallRow> rows) {
    ASSERT_FALSE(rows.empty());
    ASSERT_LE(rows.size(), CallPacker::kBatch);
    ASSERT_TRUE(std::is_sorted(rows.begin(), rows.end(), schema::call_before));
    given_.insert(given_.end(), rows.begin(), rows.end());
    ++batches_;
  }
  auto emit() {
    struct Emit {
      CallPackerTest* test;
      void operator()(std::span<const CallRow> rows) const { test->take(rows); }
      void operator()(const PackedCalls& batch) const {
        std::vector<uint8_t> blob(batch.blob.begin(), batch.blob.end());
        const std::vector<CallRow> rows = schema::decode_calls(blob);
        ASSERT_EQ(rows.size(), batch.events);
        ASSERT_EQ(rows.front().time_ns, batch.time_min_ns);
        ASSERT_EQ(rows.back().time_ns, batch.time_max_ns);
        test->take(rows);
        test->streamed_ += rows.size();
      }
    };
    return Emit{this};
  }
  void add(int ring, std::span<const CallRow> rows) {
    schema::CallChunk calls;
    calls.assign(rows);
    packer_.add(&rings_[ring], calls, encoders_, emit());
    added_.insert(added_.end(), rows.begin(), rows.end());
  }
  // `count` calls of one ring, `step` ns apart.
  void add(int ring, int64_t first_ns, int64_t step_ns, size_t count) {
    std::vector<CallRow> rows;
    for (size_t i = 0; i < count; ++i) {
      rows.push_back(row_at(first_ns + static_cast<int64_t>(i) * step_ns,
                            1 + static_cast<uint32_t>(ring), ++ids_));
    }
    for (size_t at = 0; at < count; at += 256) {
      add(ring, std::span(rows).subspan(at, std::min<size_t>(256, count - at)));
    }
  }
  // Everything was given out once, as it was.
  void expect_all() {
    packer_.close_all(encoders_, emit());
    EXPECT_TRUE(packer_.empty());
    const auto by_id = [](const CallRow& a, const CallRow& b) { return a.id < b.id; };
    std::sort(added_.begin(), added_.end(), by_id);
    std::sort(given_.begin(), given_.end(), by_id);
    EXPECT_EQ(added_, given_);
  }

  CallEncoders encoders_{2};
  CallPacker packer_;
  int rings_[3] = {};
  uint64_t ids_ = 0;
  std::vector<CallRow> added_, given_;
  size_t batches_ = 0;
  size_t streamed_ = 0;
};

TEST_F(CallPackerTest, CallsOfOneRingGoStraightIntoFullBatches) {
  // Goal: one thread's calls do not wait as rows. Method: two batches' worth and a little, in runs.
  add(0, 1000, 10, 2 * CallPacker::kBatch + 5000);
  EXPECT_EQ(streamed_, 2 * CallPacker::kBatch);
  EXPECT_EQ(packer_.size(), 5000U);
  expect_all();
  EXPECT_EQ(batches_, 3U);
}

TEST_F(CallPackerTest, AFewCallsBorrowNoEncoder) {
  // Goal: thousands of small processes do not take megabytes each.
  add(0, 1000, 10, CallPacker::kStreamFrom - 1);
  expect_all();
  EXPECT_EQ(streamed_, 0U);
  EXPECT_EQ(batches_, 1U);
}

TEST_F(CallPackerTest, ASecondRingsEarlierCallsKeepTheirPlaceInTime) {
  // Goal: nothing is lost, doubled or out of order when a thread joins. Method: one ring, then
  // three in turn over the same times, then a second with one ring alone.
  add(0, 0, 10, 20000);
  for (int64_t window = 0; window < 20; ++window) {
    for (int ring = 0; ring < 3; ++ring) {
      const int64_t first_ns = 150000 + window * 30000;
      add(ring, first_ns + ring, 10, 1500);
      packer_.close_full(emit());
    }
  }
  const size_t streamed = streamed_;
  EXPECT_GT(streamed, 0U);
  packer_.close_before(400000, encoders_, emit());
  add(1, 1000000, 10, 20000);
  packer_.close_before(2000000, encoders_, emit());
  EXPECT_GE(streamed_, streamed + 20000) << "alone again";
  expect_all();
}

TEST_F(CallPackerTest, TimesThatStandStillOrGoBackAreSorted) {
  // Goal: an encoder is never given rows out of order. Method: rising times, with one run of equal
  // and of falling ones every now and then.
  std::minstd_rand random(5);
  int64_t now = 0;
  for (int run = 0; run < 300; ++run) {
    std::vector<CallRow> rows;
    const auto kind = random() % 10;
    for (int i = 0; i < 100; ++i) {
      rows.push_back(row_at(kind == 0 ? now : kind == 1 ? now - i : now + i, 1, ++ids_));
      if (kind == 0 && i % 2 == 0) rows.back().kind = schema::EventKind::kRealloc;
    }
    now += 100;
    add(0, rows);
  }
  expect_all();
  EXPECT_GT(streamed_, 10000U);
}

TEST_F(CallPackerTest, GoesOnWithoutAnEncoderWhereAllAreLent) {
  // Goal: many busy processes share few encoders. Method: both are lent elsewhere, then given back.
  auto first = encoders_.lend();
  auto second = encoders_.lend();
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(encoders_.lend(), nullptr);
  add(0, 0, 10, 20000);
  EXPECT_EQ(packer_.size(), 20000U);
  encoders_.take_back(std::move(second));
  add(0, 1000000, 10, 1);
  packer_.close_before(2000000, encoders_, emit());
  EXPECT_EQ(streamed_, 20001U);
  EXPECT_NE(encoders_.lend(), nullptr) << "it was given back";
  expect_all();
}

}  // namespace
}  // namespace heapledger::collector
