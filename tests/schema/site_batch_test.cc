// SPDX-License-Identifier: Apache-2.0
// Packed sites, and `site` and `stack` as virtual tables of a large trace.
#include "schema/site_batch.h"

#include <gtest/gtest.h>

#include <random>

#include "schema/error.h"
#include "schema/stack_batch.h"
#include "tests/schema/trace_fixture.h"

namespace heapledger::schema {
namespace {

std::vector<SiteRow> random_sites(uint64_t seed, size_t count) {
  std::mt19937_64 random(seed);
  std::vector<SiteRow> rows(count);
  int64_t stack = 0;
  for (SiteRow& row : rows) {
    for (int64_t& cell : row) cell = static_cast<int64_t>(random() >> random() % 64);
    row[kSiteStack] = stack += 1 + static_cast<int64_t>(random() % 9);
  }
  return rows;
}

TEST(SiteBatch, KeepsRowsExactly) {
  for (const size_t count : {0, 1, 3, 5000}) {
    const auto rows = random_sites(count, count);
    ASSERT_EQ(decode_sites(encode_sites(rows)), rows);
  }
}

TEST(SiteBatch, HasTheBytesThatTheReadmeShows) {
  // Goal: the layout does not change unnoticed. Method: two sites, by hand.
  SiteRow one{};
  one[kSiteStack] = 7;
  one[kSiteCalls] = 3;
  one[kSiteBytes] = 300;
  one[kSiteLiveBytesPeak] = one[kSiteLiveBytesEnd] = 100;
  one[kSiteFirstNs] = 1000;
  one[kSiteLastNs] = 1002;
  SiteRow two = one;
  two[kSiteStack] = 9;
  two[kSiteFirstNs] = two[kSiteLastNs] = 1005;
  const auto blob = encode_sites(std::vector<SiteRow>{one, two});
  std::vector<uint8_t> expected_tail = {14, 4, 6, 6, 0xd8, 4, 0xd8, 4, 0xc8, 1, 0xc8, 1};
  // Live blocks, the ends like the peaks, and so on to growth: nothing.
  expected_tail.resize(expected_tail.size() + 2 * (kSiteFirstNs - kSiteLiveBlocksPeak));
  expected_tail.insert(expected_tail.end(), {0xd0, 0x0f, 10, 4, 0});
  ASSERT_EQ(blob.size(), 16 + kSiteColumns * 12 + expected_tail.size());
  EXPECT_EQ(
      std::vector<uint8_t>(blob.end() - static_cast<ptrdiff_t>(expected_tail.size()), blob.end()),
      expected_tail);
}

TEST(SiteBatch, RefusesStacksThatDoNotAscend) {
  auto rows = random_sites(1, 5);
  rows[3][kSiteStack] = rows[2][kSiteStack];
  EXPECT_THROW(encode_sites(rows), Error);
}

TEST(SiteBatch, DamagedBytesAreAnError) {
  const auto blob = encode_sites(random_sites(2, 40));
  for (size_t cut = 0; cut < blob.size(); ++cut) {
    EXPECT_THROW(decode_sites(std::span(blob).first(cut)), Error) << cut;
  }
  for (size_t at = 0; at < blob.size(); ++at) {
    auto damaged = blob;
    damaged[at] ^= 0x41;
    EXPECT_THROW(decode_sites(damaged), Error) << at;
  }
}

// A trace with three batches of stacks and sites of two processes, as the final pass leaves it.
class PackedTables : public TraceTest {
 protected:
  static constexpr uint32_t kStacks = 1000;

  void make(int64_t plain_max, bool damaged = false) {
    db_ = create_trace(path_, true);
    std::mt19937_64 random(9);
    for (uint32_t first = 1; first <= kStacks; first += 400) {
      std::vector<StackRow> rows;
      for (uint32_t id = first; id < std::min(first + 400, kStacks + 1); ++id) {
        rows.push_back(
            {static_cast<uint32_t>(random() % id), static_cast<uint32_t>(random() % 99)});
        expected_.push_back(rows.back());
      }
      auto blob = encode_stacks(first, rows);
      if (damaged && first == 401) blob[blob.size() / 2] ^= 1;
      db_.prepare("INSERT INTO stack_batch VALUES(?, ?, ?)").run_with(first, rows.size(), blob);
    }
    sites_ = random_sites(5, 700);
    write_sites(db_, 1, sites_);
    write_sites(db_, 2, random_sites(6, 30));
    unpack_stacks(db_, plain_max);
    unpack_sites(db_, plain_max);
    db_.close();
    db_ = open_trace(path_, OpenMode::kReadOnly);
  }
  bool has_table(const std::string& name) {
    return db_.query_int("SELECT 1 FROM sqlite_schema WHERE name = '" + name + "'").has_value();
  }
  std::string walked(int64_t id) {
    return db_
        .query_text("WITH RECURSIVE up(id) AS (SELECT " + std::to_string(id) +
                    " UNION ALL SELECT parent FROM stack JOIN up USING (id) "
                    "WHERE parent != 0) SELECT group_concat(id) FROM up")
        .value_or("");
  }

  Database db_;
  std::vector<StackRow> expected_;
  std::vector<SiteRow> sites_;
};

TEST_F(PackedTables, AreAsTheOrdinaryOnesWouldBe) {
  // Goal: SQL sees no difference. Method: the same trace with ordinary and with virtual tables.
  const char* queries[] = {
      "SELECT group_concat(id || ' ' || parent || ' ' || frame) FROM stack",
      "SELECT group_concat(id) FROM (SELECT id FROM stack WHERE frame = 7 ORDER BY id)",
      "SELECT group_concat(id) FROM (SELECT id FROM stack WHERE id > 795 AND id < 805)",
      "SELECT group_concat(id) FROM (SELECT id FROM stack ORDER BY id DESC LIMIT 3)",
      "SELECT count(*) FROM stack WHERE id IN (0, 1, 400, 401, 1000, 1001, -1, 4294967297)",
      "SELECT count(*) FROM stack WHERE id = '17' OR id = 18.0 OR id = 18.5 OR id IS NULL",
      "SELECT count(*) FROM stack AS a JOIN stack AS b ON a.parent = b.id",
      "SELECT group_concat(id || text, '/') FROM stack_text",
      "SELECT group_concat(stack || ' ' || calls || ' ' || last_ns) FROM site WHERE process = 1",
      "SELECT sum(calls % 1000) FROM site WHERE process = 2 AND stack BETWEEN 40 AND 60",
      "SELECT group_concat(quote(s.bytes)) FROM site AS s JOIN stack ON stack.id = s.stack",
      "SELECT count(*) FROM site WHERE process = 3",
      "SELECT sum(syscall_ns / 1000000) || ' ' || sum(growth / 1000000) FROM site",
  };
  make(100000);
  EXPECT_TRUE(has_table("stack") && has_table("site"));
  EXPECT_EQ(db_.query_int("SELECT count(*) FROM stack_batch"), 0);
  std::vector<std::optional<std::string>> ordinary;
  for (const char* query : queries) ordinary.push_back(db_.query_text(query));
  const std::string path_to_root = walked(kStacks);
  expected_.clear();
  db_.close();

  make(100);
  EXPECT_FALSE(has_table("stack") || has_table("site"));
  for (size_t i = 0; i < std::size(queries); ++i) {
    EXPECT_EQ(db_.query_text(queries[i]), ordinary[i]) << queries[i];
  }
  EXPECT_EQ(walked(kStacks), path_to_root);
  EXPECT_EQ(db_.query_int("SELECT parent FROM stack WHERE id = 500"), expected_[499].parent);
  EXPECT_EQ(db_.query_int("SELECT live_blocks_end FROM site LIMIT 1"),
            sites_[0][kSiteLiveBlocksEnd]);
}

TEST_F(PackedTables, DamagedStacksAreIncomplete) {
  // Goal: every stack that an event names exists. Method: the second of three batches is damaged.
  make(100, true);
  EXPECT_EQ(db_.query_int("SELECT count(*) FROM stack"), kStacks);
  EXPECT_EQ(db_.query_int("SELECT count(*) FROM stack WHERE id > 400 AND id <= 800 AND "
                          "parent = 0 AND frame = 1"),
            400);
  EXPECT_EQ(db_.query_int("SELECT count(*) FROM mark WHERE kind = 'note'"), 1);
}

TEST_F(PackedTables, DamagedSitesAreAnErrorThatNamesTheBatch) {
  make(100);
  db_.close();
  db_ = open_trace(path_, OpenMode::kReadWrite);
  damage(db_, "site_batch", 1);
  try {
    db_.query_int("SELECT sum(calls) FROM site");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("batch 1: "), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace heapledger::schema
