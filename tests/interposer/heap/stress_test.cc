// SPDX-License-Identifier: Apache-2.0
//
// Random calls against a shadow of what every block must contain; all invariants after each 1000
// steps. The seed is printed; set HEAP_STRESS_SEED to repeat one. Threads hand blocks to each
// other, so frees meet other threads' caches.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "tests/interposer/heap/heap_fixture.h"

namespace heapledger::heap {
namespace {

// The thread sanitizer makes a step some forty times slower.
#if defined(__SANITIZE_THREAD__)
constexpr int kSlower = 10;
#else
constexpr int kSlower = 1;
#endif

struct Block {
  unsigned char* data = nullptr;
  size_t size = 0;
  unsigned char pattern = 0;
};

// Blocks that one thread gives away and another frees.
class Exchange {
 public:
  // Puts a block in and takes a random other one out, if there are enough.
  bool swap(Block* block, std::mt19937_64& random) {
    const std::lock_guard guard(mutex_);
    blocks_.push_back(*block);
    if (blocks_.size() < 50) return false;
    std::swap(blocks_[random() % blocks_.size()], blocks_.back());
    *block = blocks_.back();
    blocks_.pop_back();
    return true;
  }
  std::vector<Block> take_all() { return std::move(blocks_); }

 private:
  std::mutex mutex_;
  std::vector<Block> blocks_;
};

class Walker {
 public:
  Walker(TestAllocator& heap, uint64_t seed, Exchange* exchange)
      : heap_(heap), random_(seed), exchange_(exchange) {}

  void run(int steps, bool check_arena) {
    for (int i = 1; i <= steps / kSlower && !::testing::Test::HasFailure(); ++i) {
      step();
      if (i % 1000 != 0 || !check_arena) continue;
      const char* why = nullptr;
      ASSERT_TRUE(heap_.arena_is_valid(&thread_, &why)) << why << " after step " << i;
    }
  }
  void finish() {
    for (Block& block : live_) drop(block);
    live_.clear();
    heap_.thread_exit(thread_);
  }
  void drop(const Block& block) {
    verify(block);
    heap_.release(thread_, block.data);
  }

 private:
  size_t random_size() {
    switch (random_() % 16) {
      case 0:
        return random_() % 400000;
      case 1:
      case 2:
        return random_() % 20000;
      case 3:
      case 4:
      case 5:
        return random_() % 2000;
      default:
        return random_() % 200;
    }
  }

  void step() {
    const uint64_t choice = random_() % 100;
    if (choice < 40 || live_.empty()) {
      make();
    } else if (choice < 60) {
      resize();
    } else if (choice < 65 && exchange_ != nullptr) {
      Block& given = pick();
      if (!exchange_->swap(&given, random_)) forget(given);
    } else if (choice == 99 && random_() % 20 == 0) {
      heap_.trim(random_() % 100000);
    } else {
      Block& block = pick();
      drop(block);
      forget(block);
    }
  }

  void make() {
    if (live_.size() > 600) return;
    Block block;
    block.size = random_size();
    block.pattern = static_cast<unsigned char>(random_());
    const uint64_t kind = random_() % 10;
    if (kind < 6) {
      block.data = static_cast<unsigned char*>(heap_.allocate(thread_, block.size));
    } else if (kind < 8) {
      block.data = static_cast<unsigned char*>(heap_.allocate_zeroed(thread_, 1, block.size));
      for (size_t i = 0; i < block.size; ++i) ASSERT_EQ(block.data[i], 0) << "calloc at " << i;
    } else {
      const size_t alignment = size_t{1} << (random_() % 14);
      block.data =
          static_cast<unsigned char*>(heap_.allocate_aligned(thread_, alignment, block.size));
      ASSERT_EQ(base::address_of(block.data) % alignment, 0U);
    }
    ASSERT_NE(block.data, nullptr);
    ASSERT_EQ(TestAllocator::id_of(block.data), 0U);
    fill(block);
    live_.push_back(block);
  }

  void resize() {
    Block& block = pick();
    const size_t size = 1 + random_size();
    auto* moved = static_cast<unsigned char*>(heap_.reallocate(thread_, block.data, size));
    ASSERT_NE(moved, nullptr);
    block.data = moved;
    const size_t kept = size < block.size ? size : block.size;
    for (size_t i = 0; i < kept; ++i) ASSERT_EQ(moved[i], block.pattern) << "realloc at " << i;
    block.size = size;
    fill(block);
  }

  // The whole usable size belongs to the program: writing it must hurt nobody.
  void fill(const Block& block) {
    const size_t usable = TestAllocator::usable_size(block.data);
    ASSERT_GE(usable, block.size);
    std::memset(block.data, block.pattern, usable);
    TestAllocator::set_id(block.data, base::address_of(block.data));
  }
  void verify(const Block& block) {
    for (size_t i = 0; i < block.size; ++i) ASSERT_EQ(block.data[i], block.pattern) << "at " << i;
    ASSERT_EQ(heap_.checked_id(block.data), base::address_of(block.data));
  }
  Block& pick() { return live_[random_() % live_.size()]; }
  void forget(Block& block) {
    block = live_.back();
    live_.pop_back();
  }

  TestAllocator& heap_;
  std::mt19937_64 random_;
  Exchange* exchange_;
  Thread<Header16> thread_;
  std::vector<Block> live_;
};

class Stress : public HeapTest {
 protected:
  uint64_t seed() {
    const char* given = std::getenv("HEAP_STRESS_SEED");
    const uint64_t seed =
        given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
    std::printf("HEAP_STRESS_SEED=%llu\n", static_cast<unsigned long long>(seed));
    return seed;
  }
  void run_alone(int steps) {
    Walker walker(heap(), seed(), nullptr);
    walker.run(steps, true);
    walker.finish();
    expect_nothing_left();
  }
  // Everything freed and every cache flushed: what remains is one free top.
  void expect_nothing_left() {
    heap().trim(0);
    expect_valid();
    const Info info = heap().info();
    EXPECT_EQ(info.mapped_count, 0U);
    EXPECT_EQ(info.mapped_bytes, 0U);
    EXPECT_EQ(info.fast_chunks, 0U);
  }
};

TEST_F(Stress, OneThread) { run_alone(60000); }

TEST_F(Stress, OneThreadWithoutCacheAndFastbins) {
  settings_.cache_count = 0;
  settings_.fast_chunk_max = 0;
  run_alone(40000);
  EXPECT_EQ(heap().info().free_chunks, 1U);  // All merged into the top.
}

TEST_F(Stress, OneThreadWithSmallPads) {
  settings_.top_pad = 0;
  settings_.trim_threshold = 4096;
  settings_.threshold_is_dynamic = false;
  run_alone(40000);
}

TEST_F(Stress, OneThreadWithEverythingMapped) {
  settings_.mmap_threshold = 0;
  settings_.threshold_is_dynamic = false;
  run_alone(5000);
}

TEST_F(Stress, OneThreadBehindAWall) {
  Walker walker(heap(), seed(), nullptr);
  for (int i = 0; i < 20; ++i) {
    walker.run(1000 * kSlower, true);
    space_.set_wall(i % 3 == 0);
    if (i % 5 == 4) {
      space_.set_wall(false);
      heap().note_break(space_.foreign_sbrk(100 * i));
    }
  }
  walker.finish();
  expect_nothing_left();
}

TEST_F(Stress, EightThreads) {
  const uint64_t first_seed = seed();
  Exchange exchange;
  heap().allocate(thread_, 1);
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < 8; ++i) {
    threads.emplace_back([this, i, first_seed, &exchange] {
      Walker walker(heap(), first_seed + i, &exchange);
      walker.run(15000, true);
      walker.finish();
    });
  }
  for (std::thread& thread : threads) thread.join();
  Walker last(heap(), first_seed, nullptr);
  for (const Block& block : exchange.take_all()) last.drop(block);
  last.finish();
  expect_nothing_left();
}

}  // namespace
}  // namespace heapledger::heap
