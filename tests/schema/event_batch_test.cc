// SPDX-License-Identifier: Apache-2.0
#include "schema/event_batch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <random>

#include "schema/call_chunk.h"
#include "schema/crc32.h"
#include "schema/error.h"
#include "schema/event_batch_format.h"
#include "schema/packed_columns.h"
#include "tests/schema/blob_damage.h"
#include "tests/schema/plausible_calls.h"

namespace heapledger::schema {
namespace {

// Rows whose fields take every extreme, in all combinations that a random draw finds. They need
// not make sense: the codec must keep them all the same.
std::vector<CallRow> senseless_rows(uint64_t seed, size_t count) {
  std::mt19937_64 random(seed);
  const auto extreme = [&]() -> uint64_t {
    switch (random() % 8) {
      case 0:
      case 1:
        return 0;
      case 2:
        return UINT64_MAX;
      case 3:
        return uint64_t{1} << 63;
      case 4:
        return random();
      default:
        return random() % 64;
    }
  };
  std::vector<CallRow> rows(count);
  int64_t time = random() % 2 == 0 ? std::numeric_limits<int64_t>::min() : 0;
  for (CallRow& row : rows) {
    time += static_cast<int64_t>(random() % 1000);
    row.time_ns = time;
    row.ended_ns = random() % 2 == 0 ? time : static_cast<int64_t>(extreme());
    row.thread = static_cast<uint32_t>(extreme());
    row.kind = static_cast<EventKind>(1 + random() % 17);
    row.flags = static_cast<uint8_t>(random()) & kStoredFlags;
    row.id = extreme();
    row.address = extreme();
    row.size = extreme();
    row.usable = extreme();
    row.alignment = extreme();
    row.ended_id = extreme();
    row.old_address = extreme();
    row.stack = static_cast<uint32_t>(extreme());
  }
  return rows;
}

constexpr char kExampleHex[] =
    "48 4c 43 42 02 00 12 00 03 00 00 00 68 ea 34 66\n"
    "03 00 00 00 03 00 00 00 0d a0 4c 11 0c 00 00 00\n"
    "0c 00 00 00 a1 c5 ef 04 03 00 00 00 03 00 00 00\n"
    "7f 89 54 08 02 00 00 00 02 00 00 00 28 13 c5 2f\n"
    "06 00 00 00 06 00 00 00 82 d0 6f 12 02 00 00 00\n"
    "02 00 00 00 28 13 c5 2f 00 00 00 00 00 00 00 00\n"
    "00 00 00 00 02 00 00 00 02 00 00 00 2f 2c 01 4f\n"
    "00 00 00 00 00 00 00 00 00 00 00 00 02 00 00 00\n"
    "02 00 00 00 c5 b7 cd 39 00 00 00 00 00 00 00 00\n"
    "00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00\n"
    "01 00 00 00 01 00 00 00 f0 3b d8 c8 03 00 00 00\n"
    "03 00 00 00 eb e4 2b 65 02 00 00 00 02 00 00 00\n"
    "69 22 de 36 05 00 00 00 05 00 00 00 39 ff d2 a5\n"
    "00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00\n"
    "00 00 00 00 00 00 00 00 e8 c8 64 03 81 80 91 25\n"
    "90 c0 aa 35 8a 80 0a 00 01 02 01 01 82 80 80 80\n"
    "80 40 01 01 82 04 18 1e 14 02 0e 04 00 01 80 80\n"
    "04 07 01\n";

// A new block, its realloc in place, and the free of the result: the example of README.md.
std::vector<CallRow> example_rows() {
  CallRow begin;
  begin.time_ns = begin.ended_ns = 1000;
  begin.thread = 1;
  begin.kind = EventKind::kMalloc;
  begin.id = make_id(0, 1);
  begin.address = 0x1010;
  begin.size = 24;
  begin.usable = 32;
  begin.stack = 7;
  CallRow change = begin;
  change.time_ns = 1200;
  change.ended_ns = 1190;
  change.kind = EventKind::kRealloc;
  change.id = make_id(0, 2);
  change.size = 30;
  change.ended_id = begin.id;
  change.old_address = 0x1010;
  change.stack = 9;
  CallRow end;
  end.time_ns = end.ended_ns = 1300;
  end.thread = 1;
  end.kind = EventKind::kFree;
  end.address = 0x1010;
  end.ended_id = change.id;
  return {begin, change, end};
}

TEST(EventBatch, KeepsPlausibleRowsExactly) {
  // Whole batches of a realistic stream, through one encoder and decoder as a collector uses them.
  PlausibleCalls calls(42);
  CallEncoder encoder;
  CallDecoder decoder;
  CallBatch batch;
  for (const size_t count : {size_t{20000}, size_t{1}, size_t{7}, size_t{30000}}) {
    const std::vector<CallRow> rows = calls.take(count);
    decoder.decode(encoder.encode(rows), kColumnsAll, batch);
    ASSERT_EQ(batch.events, count);
    for (size_t i = 0; i < count; ++i) ASSERT_EQ(batch.row(i), rows[i]) << i;
  }
}

TEST(EventBatch, KeepsItsRowsWhenItIsPackedHarder) {
  // Goal: the final pass may pack calls anew. Method: a batch with much to find becomes smaller and
  // has the same rows; of one that cannot there is no other; a damaged one is refused.
  PlausibleCalls calls(43);
  std::vector<CallRow> rows = calls.take(20000);
  std::mt19937_64 random(44);
  for (size_t i = 0, from = 0; i < rows.size(); ++i, ++from) {
    if (i % 16 == 0) from = random() % 500;  // A piece of a program that ran before.
    if (rows[i].id != 0) rows[i].size = 1 + from * from * from % 9973;
  }
  const std::vector<uint8_t> blob = encode_calls(rows);
  const auto harder = packed_harder(blob);
  ASSERT_TRUE(harder.has_value());
  EXPECT_LT(harder->size(), blob.size());
  EXPECT_EQ(decode_calls(*harder), rows);
  EXPECT_FALSE(packed_harder(*harder).has_value());
  EXPECT_FALSE(packed_harder(encode_calls({})).has_value());
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    const std::vector<CallRow> senseless = senseless_rows(seed, 500);
    const std::vector<uint8_t> packed = encode_calls(senseless);
    EXPECT_EQ(decode_calls(packed_harder(packed).value_or(packed)), senseless);
  }
  for_each_flip(encode_calls(example_rows()), [](const std::vector<uint8_t>& bad, size_t at) {
    EXPECT_THROW(packed_harder(bad), Error) << at;
  });
  EXPECT_THROW(packed_harder({blob.data(), 10}), Error);
}

TEST(EventBatch, KeepsSenselessRowsExactly) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const std::vector<CallRow> rows = senseless_rows(seed, 500);
    ASSERT_EQ(decode_calls(encode_calls(rows)), rows) << "seed " << seed;
  }
}

TEST(EventBatch, KeepsColumnsOfOneThreadExactly) {
  // Goal: the way of the collector, which has no rows. Method: rows with every extreme and
  // plausible ones as columns, many times into one batch, and rows of several threads between them.
  PlausibleCalls calls(3);
  std::vector<CallRow> all = calls.take(5000);
  for (CallRow& row : all) row.thread = 4;
  const auto append = [&](std::vector<CallRow> rows) {
    const int64_t shift = all.back().time_ns - rows.front().time_ns;
    for (CallRow& row : rows) {
      row.time_ns += shift;
      row.ended_ns += shift;
    }
    all.insert(all.end(), rows.begin(), rows.end());
  };
  PlausibleCalls senseful(8);
  for (int i = 0; i < 5; ++i) append(senseful.take(700));
  CallEncoder encoder;
  encoder.begin(all.size());
  CallChunk columns;
  for (size_t at = 0; at < all.size();) {
    const size_t count = std::min<size_t>(1 + at % CallChunk::kRows, all.size() - at);
    const auto part = std::span(all).subspan(at, count);
    const bool one = std::all_of(part.begin(), part.end(),
                                 [&](const CallRow& row) { return row.thread == part[0].thread; });
    if (one) {
      columns.assign(part);
      std::vector<CallRow> back(count);
      columns.copy_to(back);
      ASSERT_TRUE(std::equal(back.begin(), back.end(), part.begin()));
      encoder.add(columns);
    } else {
      encoder.add(part);
    }
    at += count;
  }
  const auto blob = encoder.finish();
  const std::vector<CallRow> rows = decode_calls(blob);
  ASSERT_EQ(rows.size(), all.size());
  for (size_t i = 0; i < rows.size(); ++i) ASSERT_EQ(rows[i], all[i]) << i;
}

TEST(EventBatch, KeepsSenselessRowsOfOneThreadExactly) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    std::vector<CallRow> rows = senseless_rows(seed, 500);
    for (CallRow& row : rows) row.thread = 7;
    ASSERT_EQ(decode_calls(encode_calls(rows)), rows) << "seed " << seed;
    CallChunk columns;
    columns.assign(std::span(rows).first(CallChunk::kRows));
    std::vector<CallRow> back(CallChunk::kRows);
    columns.copy_to(back);
    ASSERT_TRUE(std::equal(back.begin(), back.end(), rows.begin())) << "seed " << seed;
  }
}

TEST(EventBatch, KeepsTheWholeRangeOfTime) {
  std::vector<CallRow> rows(2);
  rows[0].time_ns = rows[0].ended_ns = std::numeric_limits<int64_t>::min();
  rows[1].time_ns = rows[1].ended_ns = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(decode_calls(encode_calls(rows)), rows);
}

TEST(EventBatch, KeepsNoRowsAtAll) { EXPECT_TRUE(decode_calls(encode_calls({})).empty()); }

TEST(EventBatch, KeepsAnIdThatBeganTwice) {
  // Ids of one image are unique, but a damaged program may say otherwise: the last one is meant.
  std::vector<CallRow> rows = example_rows();
  rows[1].id = rows[0].id;
  rows[2].ended_id = rows[0].id;
  EXPECT_EQ(decode_calls(encode_calls(rows)), rows);
}

TEST(EventBatch, DropsFlagsThatOnlyTheWireNeeds) {
  std::vector<CallRow> rows = example_rows();
  rows[0].flags = kHasStack | kHasUsable | kHasAlignment | kNested;
  EXPECT_EQ(decode_calls(encode_calls(rows))[0].flags, kNested);
}

TEST(EventBatch, DecodesEachColumnAlone) {
  // Each column by itself must equal that column of a decoding of all.
  const std::vector<CallRow> rows = senseless_rows(7, 300);
  const std::vector<uint8_t> blob = encode_calls(rows);
  CallDecoder decoder;
  CallBatch all, some;
  decoder.decode(blob, kColumnsAll, all);
  const auto same = [&](uint32_t column, auto member) {
    decoder.decode(blob, column, some);
    EXPECT_EQ(some.*member, all.*member) << "column " << column;
    EXPECT_EQ((some.*member).size(), rows.size());
    EXPECT_NE(some.columns & column, 0u);
  };
  same(kColumnTime, &CallBatch::time_ns);
  same(kColumnEndedTime, &CallBatch::ended_ns);
  same(kColumnThread, &CallBatch::thread);
  same(kColumnKind, &CallBatch::kind);
  same(kColumnKind, &CallBatch::flags);
  same(kColumnId, &CallBatch::id);
  same(kColumnAddress, &CallBatch::address);
  same(kColumnSize, &CallBatch::size);
  same(kColumnUsable, &CallBatch::usable);
  same(kColumnAlignment, &CallBatch::alignment);
  same(kColumnEndedId, &CallBatch::ended_id);
  same(kColumnOldAddress, &CallBatch::old_address);
  same(kColumnStack, &CallBatch::stack);
  EXPECT_TRUE(some.size.empty());  // The last one asked for stacks only.
}

TEST(EventBatch, RefusesRowsOutOfOrderAndKindsThatAreNoCalls) {
  std::vector<CallRow> rows = example_rows();
  rows[2].time_ns = 1;
  EXPECT_THROW(encode_calls(rows), Error);
  rows = example_rows();
  rows[1].kind = EventKind::kMark;
  EXPECT_THROW(encode_calls(rows), Error);
  rows[1].kind = EventKind::kPad;
  EXPECT_THROW(encode_calls(rows), Error);
}

TEST(EventBatch, EndsComeBeforeBeginningsOfTheSameNanosecond) {
  CallRow begin, change, end;
  begin.kind = EventKind::kNew;
  change.kind = EventKind::kReallocarray;
  end.kind = EventKind::kDeleteArray;
  EXPECT_TRUE(call_before(end, change));
  EXPECT_TRUE(call_before(change, begin));
  EXPECT_FALSE(call_before(begin, end));
  begin.time_ns = -1;
  EXPECT_TRUE(call_before(begin, end));
}

TEST(EventBatch, HasTheBytesThatTheReadmeShows) {
  // The format is a contract with traces already written: whoever changes it must change
  // kPackedVersion, README.md and this.
  const std::vector<uint8_t> blob = encode_calls(example_rows());
  EXPECT_EQ(hex_lines(blob), kExampleHex);
  EXPECT_EQ(decode_calls(blob), example_rows());
}

TEST(EventBatch, IsRefusedWhenCutAnywhere) {
  const std::vector<uint8_t> blob = encode_calls(example_rows());
  for_each_cut(blob,
               [](const std::vector<uint8_t>& cut) { EXPECT_THROW(decode_calls(cut), Error); });
}

TEST(EventBatch, IsRefusedWhenAnyBitIsFlipped) {
  // Every byte is covered by a checksum or checked by itself. Small (stored) and large (zstd).
  for (const size_t count : {size_t{3}, size_t{400}}) {
    const auto rows = count == 3 ? example_rows() : PlausibleCalls(3).take(count);
    for_each_flip(encode_calls(rows), [](const std::vector<uint8_t>& bad, size_t at) {
      EXPECT_THROW(decode_calls(bad), Error) << "byte " << at;
    });
  }
}

TEST(EventBatch, NeverCrashesOnDamageWithGoodChecksums) {
  // The checks behind the checksums: rows or an Error, and under the sanitizers nothing else.
  size_t accepted = 0, refused = 0;
  for (const size_t count : {size_t{3}, size_t{30}}) {
    const auto rows = count == 3 ? example_rows() : senseless_rows(5, count);
    for_each_flip(encode_calls(rows), [&](std::vector<uint8_t> bad, size_t) {
      fix_checksums(bad);
      try {
        accepted += decode_calls(bad).size() <= kBatchEventsMax;
      } catch (const Error&) {
        ++refused;
      }
    });
  }
  EXPECT_GT(accepted, 0u);  // Or the checksums were not made good.
  EXPECT_GT(refused, 0u);
}

TEST(EventBatch, SaysWhatIsWrongWithItsHeader) {
  const auto why = [](size_t at, uint8_t value) -> std::string {
    std::vector<uint8_t> blob = encode_calls(example_rows());
    blob[at] = value;
    fix_checksums(blob);
    try {
      decode_calls(blob);
    } catch (const Error& error) {
      return error.why();
    }
    return "";
  };
  EXPECT_EQ(why(0, 'X'), "it begins with the wrong magic number");
  EXPECT_EQ(why(4, 9), "it has batch version 9, this heapledger reads version 2");
  EXPECT_EQ(why(6, 3), "it has the wrong number of columns");
  EXPECT_EQ(why(11, 0xff), "it claims 4278190083 rows");
}

TEST(Crc32, IsThatOfEveryBitInTurn) {
  // Goal: one checksum, whatever the way to it. Method: random bytes of every length up to some
  // hundred and at every offset, cut in two anywhere, against the definition, bit by bit.
  std::mt19937 random(6);
  std::vector<uint8_t> bytes(600);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  for (size_t length = 0; length < 560; ++length) {
    const auto part = std::span(bytes).subspan(random() % 32, length);
    uint32_t slow = ~uint32_t{0};
    for (const uint8_t byte : part) {
      slow ^= byte;
      for (int bit = 0; bit < 8; ++bit) slow = slow >> 1 ^ (slow % 2 == 0 ? 0 : 0xEDB88320u);
    }
    const size_t cut = random() % (length + 1);
    ASSERT_EQ(crc32(part), ~slow) << length;
    ASSERT_EQ(crc32(part.subspan(cut), crc32(part.first(cut))), ~slow) << length << " at " << cut;
  }
}

TEST(PackedColumns, HasTheChecksumOfZlib) {
  // The check value of CRC-32 as catalogues of checksums give it, and one that is not a multiple
  // of eight bytes.
  const std::string text = "123456789";
  const std::vector<uint8_t> bytes(text.begin(), text.end());
  EXPECT_EQ(crc32(bytes), 0xCBF43926u);
  EXPECT_EQ(crc32({}), 0u);
  EXPECT_EQ(crc32(std::span(bytes).subspan(4), crc32(std::span(bytes).first(4))), 0xCBF43926u);
}

}  // namespace
}  // namespace heapledger::schema
