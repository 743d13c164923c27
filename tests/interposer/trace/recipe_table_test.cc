// SPDX-License-Identifier: Apache-2.0
// The table by itself, with recipes that follow from the address alone or from a year number.
#include "interposer/trace/recipe_table.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>

#include <array>
#include <random>
#include <thread>
#include <vector>

namespace heapledger::testing {
namespace {

using trace::PackedRecipe;
using trace::Recipe;
using trace::RecipeTable;
using trace::RecipeType;

// Which code lies in memory at the moment: recipes name it.
std::atomic<uint32_t> g_code{0};
std::atomic<uint64_t> g_compiled{0};

// What is right for an address under that code. One in eight is wide.
Recipe recipe_for(uintptr_t at, uint32_t code) {
  const auto hash = static_cast<uint32_t>((at * 0x9e3779b97f4a7c15) >> 40);
  const int32_t cfa = static_cast<int32_t>(code % 256) * 8 + 8;
  if (hash % 8 == 0) return {RecipeType::kRbp, 1 << 20, cfa};
  return {hash % 2 == 0 ? RecipeType::kRsp : RecipeType::kRbp, cfa,
          -8 * static_cast<int32_t>(hash % 500)};
}
Recipe compile(uintptr_t at) noexcept {
  g_compiled.fetch_add(1, std::memory_order_relaxed);
  return recipe_for(at, g_code.load());
}
uint32_t code_of(const Recipe& recipe) {
  const int32_t mark = recipe.cfa_offset == 1 << 20 ? recipe.rbp_offset : recipe.cfa_offset;
  return static_cast<uint32_t>(mark / 8 - 1);
}
bool equal(const Recipe& a, const Recipe& b) {
  return a.type == b.type && a.cfa_offset == b.cfa_offset && a.rbp_offset == b.rbp_offset;
}

class RecipeTableTest : public ::testing::Test {
 protected:
  RecipeTableTest() {
    memory_ = mmap(nullptr, RecipeTable::kBytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    attach(compile);
    g_code = 0;
    g_compiled = 0;
  }
  ~RecipeTableTest() override { munmap(memory_, RecipeTable::kBytes); }

  void attach(RecipeTable::Compile how) { table_.attach(memory_, how); }
  static Recipe ask(RecipeTable& table, uintptr_t at) {
    const PackedRecipe packed = table.find(at);
    return packed.type() == RecipeType::kWide ? table.find_wide(at) : packed.unpacked();
  }
  Recipe ask(uintptr_t at) { return ask(table_, at); }

  // Addresses that all fall into the first bucket.
  static std::vector<uintptr_t> same_bucket(size_t count) {
    std::vector<uintptr_t> addresses;
    for (uint64_t i = 1; i <= count; ++i) {
      addresses.push_back(RecipeTable::address_of(0, RecipeTable::tag_of(i << 18 | i % 64)));
    }
    return addresses;
  }

  void* memory_;
  RecipeTable table_;
};

// Goal: packing loses nothing, or says so.
TEST(PackedRecipeTest, KeepsWhatFitsAndSaysWhatDoesNot) {
  for (const RecipeType type : {RecipeType::kRsp, RecipeType::kRbp, RecipeType::kAligned}) {
    for (int32_t cfa = -40000; cfa <= 40000; cfa += 4) {
      for (const int32_t rbp : {0, -8, -16, 8, -4096, 4088, -16376, -16384, -12}) {
        // Only a realigned frame lies above what its register names.
        const int32_t least = type == RecipeType::kAligned ? -32768 : 0;
        // Below the CFA and not where the return address is.
        const bool rbp_fits = rbp == 0 || (rbp % 8 == 0 && rbp <= -16 && rbp >= -16376);
        const bool fits = cfa % 8 == 0 && cfa >= least && cfa < 32768 && rbp_fits;
        const PackedRecipe packed = PackedRecipe::pack({type, cfa, rbp});
        if (fits) {
          EXPECT_TRUE(equal(packed.unpacked(), {type, cfa, rbp})) << cfa << " " << rbp;
        } else {
          EXPECT_EQ(packed.type(), RecipeType::kWide) << cfa << " " << rbp;
        }
      }
    }
  }
}

// Goal: an address can be had back from its place and tag, so no two share them.
TEST(RecipePlace, IsABijection) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 100000; ++i) {
    const uintptr_t at = random() >> 16;
    EXPECT_EQ(RecipeTable::address_of(RecipeTable::home_of(at), RecipeTable::tag_of(at)), at);
  }
}

// Goal: each address is compiled once and answered rightly ever after. Method: more addresses than
// the first level holds, some wide.
TEST_F(RecipeTableTest, AnswersRightlyFarBeyondItsFirstLevel) {
  constexpr uintptr_t kCount = 60000;
  for (int pass = 0; pass < 2; ++pass) {
    for (uintptr_t i = 0; i < kCount; ++i) {
      const uintptr_t at = 0x7f0000001000 + i * 37;
      ASSERT_TRUE(equal(ask(at), recipe_for(at, 0))) << i;
    }
  }
  // A wide recipe is asked for twice, but found the second time.
  EXPECT_EQ(g_compiled.load(), kCount);
  EXPECT_GT(table_.count_first(), RecipeTable::kFirstEntries * 8 / 10);
  EXPECT_GT(table_.count_second(), kCount / 8);
}

// Goal: a full bucket loses nothing and mixes nothing up (the overflow of an earlier design made
// entries ambiguous). Method: 100 addresses of one bucket.
TEST_F(RecipeTableTest, KeepsMoreThanABucketHolds) {
  const std::vector<uintptr_t> addresses = same_bucket(100);
  for (int pass = 0; pass < 2; ++pass) {
    for (const uintptr_t at : addresses) ASSERT_TRUE(equal(ask(at), recipe_for(at, 0)));
  }
  EXPECT_EQ(table_.count_first() + table_.count_second(), addresses.size());
  EXPECT_LE(table_.count_first(), RecipeTable::kBucketEntries);
  EXPECT_EQ(g_compiled.load(), addresses.size());
}

// Goal: addresses that no table entry can hold are answered, not mixed up with others.
TEST_F(RecipeTableTest, AnswersForAddressesOfMoreThan48Bits) {
  ask(0x7f0000001000);
  EXPECT_EQ(ask(0x7f0000001000 | uintptr_t{1} << 52).type, RecipeType::kNoCfi);
  EXPECT_EQ(ask(0xffffffffff600000).type, RecipeType::kNoCfi);
  EXPECT_TRUE(equal(ask(0), recipe_for(0, 0)));
}

// Goal: forgetting hits its range, on both levels, and nothing else. Method: which addresses are
// compiled anew.
TEST_F(RecipeTableTest, ForgetsARangeAndNothingElse) {
  std::vector<uintptr_t> addresses = same_bucket(30);
  for (uintptr_t i = 0; i < 3000; ++i) addresses.push_back(0x7f0000001000 + i * 64);
  for (const uintptr_t at : addresses) ask(at);
  const uint32_t before = table_.generation();
  EXPECT_TRUE(table_.may_know(0x7f0000001000, 0x7f0000002000));
  EXPECT_FALSE(table_.may_know(0x7f0040000000, 0x7f0040100000));
  g_code = 1;
  const uintptr_t start = 0x7f0000001000 + 1000 * 64;
  const uintptr_t end = 0x7f0000001000 + 2000 * 64;
  table_.forget(start, end);
  EXPECT_NE(table_.generation(), before);
  for (const uintptr_t at : addresses) {
    ASSERT_TRUE(equal(ask(at), recipe_for(at, at >= start && at < end ? 1 : 0)));
  }
  // All of them, and the places are used again.
  const size_t first = table_.count_first();
  table_.forget(0, uintptr_t{1} << 48);
  EXPECT_EQ(table_.count_first() + table_.count_second(), 0U);
  for (const uintptr_t at : addresses) ASSERT_TRUE(equal(ask(at), recipe_for(at, 1)));
  EXPECT_EQ(table_.count_first(), first);
}

// Goal: "no information" is not kept when code came or went anywhere: it may lie there now.
TEST_F(RecipeTableTest, ForgetsNegativeAnswersWithEveryChange) {
  attach([](uintptr_t) noexcept -> Recipe {
    return {g_code == 0 ? RecipeType::kNoCfi : RecipeType::kRsp, 0, 0};
  });
  EXPECT_EQ(ask(0x10000).type, RecipeType::kNoCfi);
  g_code = 1;
  EXPECT_EQ(ask(0x10000).type, RecipeType::kNoCfi);
  table_.forget(0x7f0000000000, 0x7f0000001000);
  EXPECT_EQ(ask(0x10000).type, RecipeType::kRsp);
}

// Goal: while code is being unloaded nothing is kept.
TEST_F(RecipeTableTest, KeepsNothingWhileHeld) {
  table_.hold_inserts();
  EXPECT_TRUE(equal(ask(0x10000), recipe_for(0x10000, 0)));
  g_code = 1;
  table_.allow_inserts();
  EXPECT_TRUE(equal(ask(0x10000), recipe_for(0x10000, 1)));
}

// Goal: an insert whose code was forgotten before it was done is not seen by anybody. Method: the
// compilation itself forgets, as another thread might at that moment.
TEST_F(RecipeTableTest, TakesNoEntryFromBeforeAForget) {
  static RecipeTable* table = nullptr;
  table = &table_;
  attach([](uintptr_t at) noexcept -> Recipe {
    const Recipe recipe = recipe_for(at, g_code);
    if (g_code.exchange(1) == 0) table->forget(0, uintptr_t{1} << 47);
    return recipe;
  });
  for (const uintptr_t at : {uintptr_t{0x100010}, uintptr_t{0x100020}, uintptr_t{0x100030}}) {
    g_code = 0;
    ask(at);
    EXPECT_TRUE(equal(ask(at), recipe_for(at, 1)));
  }
}

// ---- Several threads, and handlers.

RecipeTable* g_table = nullptr;
std::atomic<uint64_t> g_handled{0};
std::atomic<uint64_t> g_wrong{0};
constexpr uintptr_t kCode = 0x7f1200000000;
constexpr uintptr_t kCodeStep = 48;
constexpr uintptr_t kCodeCount = 20000;

void ask_from_handler(int) {
  const uint64_t count = g_handled.fetch_add(1);
  for (uintptr_t i = 0; i < 20; ++i) {
    const uintptr_t at = kCode + (count * 20 + i) % kCodeCount * kCodeStep;
    const PackedRecipe packed = g_table->find(at);
    const Recipe recipe =
        packed.type() == RecipeType::kWide ? g_table->find_wide(at) : packed.unpacked();
    if (!equal(recipe, recipe_for(at, code_of(recipe)))) g_wrong.fetch_add(1);
  }
}

// Goal: whatever threads and handlers do at once, each answer is the one for its address, and never
// that of code that had been forgotten before the question. Method: two threads ask, a timer's
// handler interrupts them and asks as well, a third exchanges the code and forgets it; each answer
// names its code, which must lie between the last one that was surely there and the newest.
TEST_F(RecipeTableTest, IsRightUnderThreadsHandlersAndForgetting) {
  g_table = &table_;
  g_handled = g_wrong = 0;
  std::atomic<uint32_t> forgotten_before{0};  // Older code than this is gone for everybody.
  std::atomic<bool> done{false};
  struct sigaction action {};
  struct sigaction before {};
  action.sa_handler = ask_from_handler;
  action.sa_flags = SA_RESTART;
  sigaction(SIGPROF, &action, &before);
  const itimerval timer = {{0, 500}, {0, 500}};
  setitimer(ITIMER_PROF, &timer, nullptr);

  std::array<uint64_t, 2> asked{};
  const auto asker = [&](size_t self) {
    std::mt19937_64 random(self);
    while (!done) {
      const uintptr_t at = kCode + random() % kCodeCount * kCodeStep;
      const uint32_t oldest = forgotten_before.load();
      const Recipe recipe = ask(table_, at);
      const uint32_t code = code_of(recipe);
      const uint32_t newest = g_code.load();
      const bool right = code - oldest % 256 <= newest - oldest &&  // Modulo 256: none wraps here.
                         equal(recipe, recipe_for(at, code));
      if (!right) g_wrong.fetch_add(1);
      ++asked[self];
    }
  };
  std::thread first(asker, 0);
  std::thread second(asker, 1);
  for (uint32_t code = 1; code < 30; ++code) {
    g_code.store(code);
    table_.forget(kCode, kCode + kCodeCount * kCodeStep);
    forgotten_before.store(code);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  done = true;
  first.join();
  second.join();
  const itimerval stop{};
  setitimer(ITIMER_PROF, &stop, nullptr);
  sigaction(SIGPROF, &before, nullptr);
  EXPECT_EQ(g_wrong.load(), 0U);
  EXPECT_GT(asked[0], 1000U);
  EXPECT_GT(asked[1], 1000U);
  EXPECT_GT(g_handled.load(), 10U);
}

}  // namespace
}  // namespace heapledger::testing
