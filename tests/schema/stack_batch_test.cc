// SPDX-License-Identifier: Apache-2.0
#include "schema/stack_batch.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <numeric>
#include <random>

#include "schema/dictionary.h"
#include "schema/error.h"
#include "schema/stack_uses.h"
#include "schema/trace_db.h"

namespace heapledger::schema {
namespace {

// A tree as stacks make it: chains that branch off somewhere.
std::vector<StackRow> random_stacks(uint64_t seed, uint32_t first, size_t count) {
  std::mt19937_64 random(seed);
  std::vector<StackRow> rows(count);
  for (size_t i = 0; i < count; ++i) {
    const auto id = static_cast<uint32_t>(first + i);
    rows[i].parent = random() % 3 == 0 ? static_cast<uint32_t>(random() % id) : id - 1;
    rows[i].frame = static_cast<uint32_t>(random() >> random() % 64);
  }
  return rows;
}

TEST(StackBatch, KeepsRowsExactly) {
  // Goal: decode is encode's inverse. Method: random trees, from the first node and from a later
  // one, short and empty ones too.
  for (const size_t count : {0, 1, 5, 70000}) {
    for (const uint32_t first : {1U, 1000000U, UINT32_MAX - 70000U}) {
      const auto rows = random_stacks(count + first, first, count);
      ASSERT_EQ(decode_stacks(first, encode_stacks(first, rows)), rows);
    }
  }
}

TEST(StackBatch, HasTheBytesThatTheReadmeShows) {
  // Goal: the layout does not change unnoticed. Method: three nodes, by hand.
  const auto blob = encode_stacks(5, std::vector<StackRow>{{2, 9}, {5, 300}, {0, 1}});
  const std::vector<uint8_t> expected_tail = {0x02, 0x00, 0x06, 0x09, 0xac, 0x02, 0x01};
  ASSERT_EQ(blob.size(), 16 + 2 * 12 + expected_tail.size());
  EXPECT_EQ(std::vector<uint8_t>(blob.begin(), blob.begin() + 4),
            (std::vector<uint8_t>{'H', 'L', 'S', 'B'}));
  EXPECT_EQ(std::vector<uint8_t>(blob.end() - 7, blob.end()), expected_tail);
}

TEST(StackBatch, RefusesAParentThatIsNotBeforeItsNode) {
  EXPECT_THROW(encode_stacks(5, std::vector<StackRow>{{5, 1}}), Error);
  EXPECT_THROW(encode_stacks(5, std::vector<StackRow>{{4, 1}, {6, 1}}), Error);
}

TEST(StackBatch, DamagedBytesAreAnErrorAndNeverALaterParent) {
  // Goal: any bytes may be decoded. Method: cut at every length, flip every byte, decode as another
  // first node.
  const auto rows = random_stacks(1, 100, 300);
  const auto blob = encode_stacks(100, rows);
  for (size_t cut = 0; cut < blob.size(); ++cut) {
    EXPECT_THROW(decode_stacks(100, std::span(blob).first(cut)), Error) << cut;
  }
  for (size_t at = 0; at < blob.size(); ++at) {
    auto damaged = blob;
    damaged[at] ^= 0x41;
    EXPECT_THROW(decode_stacks(100, damaged), Error) << at;
  }
  EXPECT_THROW(decode_stacks(1, blob), Error);  // Parents would lie before node 1.
}

class UnpackStacks : public ::testing::Test {
 protected:
  UnpackStacks() : db_(create_trace(path_, true)) {}
  ~UnpackStacks() override { std::filesystem::remove(path_); }
  void put(uint32_t first, const std::vector<StackRow>& rows, bool damage = false) {
    auto blob = encode_stacks(first, rows);
    if (damage) blob[blob.size() / 2] ^= 1;
    db_.prepare("INSERT INTO stack_batch VALUES(?, ?, ?)").run_with(first, rows.size(), blob);
  }
  const std::string path_ = (std::filesystem::temp_directory_path() /
                             ("unpack_stacks_" + std::to_string(getpid()) + ".db"))
                                .string();
  Database db_;
};

TEST_F(UnpackStacks, MovesBatchesIntoRows) {
  // Goal: `stack` is an ordinary table. Method: two batches; again, with a third.
  put(1, {{0, 7}, {1, 8}});
  put(3, {{1, 9}});
  unpack_stacks(db_);
  put(4, {{3, 10}});
  unpack_stacks(db_);
  EXPECT_EQ(db_.query_text("SELECT group_concat(id || ' ' || parent || ' ' || frame) FROM stack"),
            "1 0 7,2 1 8,3 1 9,4 3 10");
  EXPECT_EQ(db_.query_int("SELECT count(*) FROM stack_batch"), 0);
  EXPECT_EQ(db_.query_int("SELECT count(*) FROM mark"), 0);
}

TEST_F(UnpackStacks, DamagedBatchBecomesIncompleteStacksAndANote) {
  // Goal: every stack that an event names exists. Method: the second of three batches is damaged.
  put(1, {{0, 7}, {1, 8}});
  put(3, std::vector<StackRow>(20, {1, 9}), true);
  put(23, {{22, 10}});
  unpack_stacks(db_);
  EXPECT_EQ(db_.query_int("SELECT count(*) FROM stack"), 23);
  EXPECT_EQ(db_.query_int("SELECT count(*) FROM stack WHERE parent = 0 AND frame = 1"), 20);
  EXPECT_EQ(db_.query_int("SELECT count(*) FROM mark WHERE kind = 'note'"), 1);
}

TEST(IdRows, FindsRowsOfDenseAndOfStrangeIds) {
  // Goal: a map from ids to rows, whatever the ids. Method: against std::map; runs of a few slots,
  // jumps within a slot, sequences before the first one, more slots than it keeps arrays for.
  std::mt19937_64 random(5);
  IdRows rows;
  for (int batch = 0; batch < 3; ++batch) {
    rows.start(10000);
    std::map<uint64_t, uint32_t> model;
    std::vector<uint64_t> next(6000, 1000);
    for (uint32_t row = 0; row < 10000; ++row) {
      const uint64_t slot = random() % 4 == 0 ? random() % next.size() : random() % 3;
      if (random() % 100 == 0) next[slot] += random() % 2 == 0 ? 1U << 30 : uint64_t(0) - 500;
      const uint64_t id = make_id(slot, next[slot]++ & ((uint64_t{1} << kIdSequenceBits) - 1));
      rows.put(id, row);
      model[id] = row;
      const uint64_t asked = random() % 2 == 0 ? id - random() % 50 : make_id(random() % 7000, 1);
      const auto found = model.find(asked);
      ASSERT_EQ(rows.find(asked), found == model.end() ? IdRows::kNone : found->second);
    }
  }
}

TEST(StackUses, ListsTheMostUsedFirstAndTheOthersAscending) {
  // Goal: the order that README.md promises, and an index for each row. Method: skewed random
  // stacks, few and many, near each other and anywhere, against a count of them; one object for
  // all.
  std::mt19937_64 random(9);
  StackUses uses;
  for (const size_t count : {0, 5, 300, 20000, 20000, 7, 20000}) {
    const uint32_t range = count % 2 == 0 ? 30000 : UINT32_MAX;
    std::vector<uint32_t> stacks(count);
    for (uint32_t& stack : stacks) {
      stack = static_cast<uint32_t>(random() % (random() % range + 1));
      if (random() % 50 == 0) stack = UINT32_MAX - stack % 40;
    }
    uses.start(count);
    std::vector<uint16_t> rows;
    std::vector<uint32_t> expected;
    for (size_t at = 0; at < count; at += rows.size()) {
      rows.resize(std::min<size_t>(200, count - at));
      std::iota(rows.begin(), rows.end(), uint16_t{0});
      uses.add(rows, [&](size_t row) { return stacks[at + row]; });
    }
    std::map<uint32_t, size_t> seen;
    for (const uint32_t stack : stacks) {
      if (stack == 0) continue;
      ++seen[stack];
      expected.push_back(stack);
    }
    uses.number();
    const auto values = uses.values();
    ASSERT_EQ(values.size(), seen.size());
    ASSERT_EQ(uses.rows(), expected.size());
    for (size_t row = 0; row < expected.size(); ++row) {
      ASSERT_EQ(values[uses.index(row)], expected[row]);
    }
    const size_t often = std::min(values.size(), StackUses::kOneByte);
    for (size_t i = 1; i < values.size(); ++i) {
      if (i < often) {
        EXPECT_GE(seen[values[i - 1]], seen[values[i]]);
      } else {
        EXPECT_LE(seen[values[i]], seen[values[often - 1]]);
        EXPECT_TRUE(i == often || values[i - 1] < values[i]);
      }
    }
  }
}

}  // namespace
}  // namespace heapledger::schema
