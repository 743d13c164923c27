// SPDX-License-Identifier: Apache-2.0
#include "schema/fault_batch.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>

#include "schema/error.h"
#include "tests/schema/blob_damage.h"

namespace heapledger::schema {
namespace {

std::vector<FaultRow> random_faults(uint64_t seed, size_t count, bool extremes) {
  std::mt19937_64 random(seed);
  std::vector<FaultRow> rows(count);
  int64_t time = extremes ? std::numeric_limits<int64_t>::min() : 0;
  for (FaultRow& row : rows) {
    time += static_cast<int64_t>(random() % 5000);
    row.time_ns = time;
    row.thread = static_cast<uint32_t>(extremes ? random() : random() % 3);
    row.address = extremes ? random() : 0x7f0000000000 + 4096 * (random() % 1000) + random() % 16;
    row.ip = extremes ? random() : 0x400000 + random() % 50;
    row.major = random() % 16 == 0;
    row.kernel = random() % 8 == 0;
  }
  return rows;
}

std::vector<FaultAttribution> random_attribution(uint64_t seed, size_t count) {
  std::mt19937_64 random(seed);
  std::vector<FaultAttribution> rows(count);
  for (FaultAttribution& row : rows) {
    row.touch = static_cast<Touch>(random() % kTouchCount);
    if (random() % 4 != 0) row.block_id = random() >> random() % 64;
    if (random() % 4 != 0) row.site = static_cast<uint32_t>(random() >> random() % 64);
  }
  return rows;
}

// Two faults of one thread on neighbouring pages, as README.md has them.
std::vector<FaultRow> example_faults() {
  FaultRow first;
  first.time_ns = 500;
  first.thread = 1;
  first.address = 0x7000;
  first.ip = 0x401000;
  FaultRow second = first;
  second.time_ns = 700;
  second.address = 0x8010;
  second.kernel = true;
  return {first, second};
}

TEST(FaultBatch, KeepsRowsExactly) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    for (const bool extremes : {false, true}) {
      const std::vector<FaultRow> rows = random_faults(seed, 2000, extremes);
      ASSERT_EQ(decode_faults(encode_faults(rows)), rows) << "seed " << seed;
    }
  }
  EXPECT_TRUE(decode_faults(encode_faults({})).empty());
}

TEST(FaultBatch, TakesFewBytesWhereFaultsAreAlike) {
  // A program that walks through fresh memory: one new page, one instruction, one thread.
  std::vector<FaultRow> rows(50000);
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].time_ns = static_cast<int64_t>(300 * i);
    rows[i].address = 0x7f0000000000 + 4096 * i;
    rows[i].ip = 0x401234;
  }
  EXPECT_LT(encode_faults(rows).size(), rows.size() / 10);
}

TEST(FaultBatch, DecodesEachColumnAlone) {
  const std::vector<FaultRow> rows = random_faults(9, 100, true);
  const std::vector<uint8_t> blob = encode_faults(rows);
  FaultBatch all, some;
  decode_faults(blob, kFaultColumnsAll, all);
  const auto same = [&](uint32_t column, auto member) {
    decode_faults(blob, column, some);
    EXPECT_EQ(some.*member, all.*member) << "column " << column;
    EXPECT_EQ((some.*member).size(), rows.size());
  };
  same(kFaultTime, &FaultBatch::time_ns);
  same(kFaultThread, &FaultBatch::thread);
  same(kFaultAddress, &FaultBatch::address);
  same(kFaultIp, &FaultBatch::ip);
  same(kFaultFlags, &FaultBatch::major);
  same(kFaultFlags, &FaultBatch::kernel);
  EXPECT_TRUE(some.time_ns.empty());
}

TEST(FaultBatch, RefusesRowsOutOfOrder) {
  std::vector<FaultRow> rows = example_faults();
  rows[1].time_ns = 499;
  EXPECT_THROW(encode_faults(rows), Error);
}

TEST(FaultBatch, HasTheseBytes) {
  const std::vector<uint8_t> blob = encode_faults(example_faults());
  // First bytes of times 500 and +200; thread 1; pages 7 and +1 (zigzag); offsets 0 and 16; one ip;
  // flags 0 and 2; the step of the clock, 1 ns, and what follows the first bytes.
  const std::vector<uint8_t> sections = {0xf4, 0xc8,  //
                                         0x01, 0x01,  //
                                         0x0e, 0x02,  //
                                         0x00, 0x10,  //
                                         0x01, 0x80, 0xc0, 0x80, 0x04, 0x00, 0x00,
                                         0x00, 0x02, 0x80, 0x80, 0x04, 0x03, 0x01};
  ASSERT_GT(blob.size(), sections.size());
  EXPECT_EQ(std::vector<uint8_t>(blob.end() - static_cast<ptrdiff_t>(sections.size()), blob.end()),
            sections);
  EXPECT_EQ(hex_lines(std::span(blob).first(12)), "48 4c 46 42 02 00 08 00 02 00 00 00\n");
}

TEST(FaultBatch, IsRefusedWhenCutOrFlippedAnywhere) {
  for (const size_t count : {size_t{2}, size_t{300}}) {
    const std::vector<uint8_t> blob =
        encode_faults(count == 2 ? example_faults() : random_faults(1, count, false));
    for_each_cut(blob, [](const auto& bad) { EXPECT_THROW(decode_faults(bad), Error); });
    for_each_flip(blob, [](const auto& bad, size_t at) {
      EXPECT_THROW(decode_faults(bad), Error) << "byte " << at;
    });
  }
}

TEST(FaultBatch, NeverCrashesOnDamageWithGoodChecksums) {
  size_t accepted = 0, refused = 0;
  for_each_flip(encode_faults(random_faults(3, 12, true)), [&](std::vector<uint8_t> bad, size_t) {
    fix_checksums(bad);
    try {
      accepted += decode_faults(bad).size() <= kBatchFaultsMax;
    } catch (const Error&) {
      ++refused;
    }
  });
  EXPECT_GT(accepted, 0u);
  EXPECT_GT(refused, 0u);
}

TEST(Attribution, KeepsRowsExactly) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    const std::vector<FaultAttribution> rows = random_attribution(seed, 3000);
    ASSERT_EQ(decode_attribution(encode_attribution(rows)), rows) << "seed " << seed;
  }
  EXPECT_TRUE(decode_attribution(encode_attribution({})).empty());
}

TEST(Attribution, IsRefusedWhenCutOrFlippedAnywhere) {
  const std::vector<uint8_t> blob = encode_attribution(random_attribution(1, 60));
  for_each_cut(blob, [](const auto& bad) { EXPECT_THROW(decode_attribution(bad), Error); });
  for_each_flip(blob, [](std::vector<uint8_t> bad, size_t at) {
    EXPECT_THROW(decode_attribution(bad), Error) << "byte " << at;
    fix_checksums(bad);
    try {
      EXPECT_LE(decode_attribution(bad).size(), kBatchFaultsMax);
    } catch (const Error&) {
      // As good an answer.
    }
  });
}

TEST(Attribution, IsNotTakenForFaultsNorFaultsForIt) {
  EXPECT_THROW(decode_faults(encode_attribution(random_attribution(1, 3))), Error);
  EXPECT_THROW(decode_attribution(encode_faults(example_faults())), Error);
}

TEST(Attribution, NamesItsTouches) {
  EXPECT_STREQ(touch_name(Touch::kZeroUpgrade), "zero_upgrade");
  EXPECT_STREQ(touch_name(Touch::kRepeat), "repeat");
  EXPECT_EQ(touch_name(Touch::kUnknown), nullptr);
  EXPECT_EQ(touch_name(static_cast<Touch>(200)), nullptr);
}

}  // namespace
}  // namespace heapledger::schema
