// SPDX-License-Identifier: Apache-2.0
// The writing side of a ring against the test's reader: wrapping, waiting, giving up.
#include "interposer/trace/ring_producer.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "tests/interposer/trace/fake_collector.h"

namespace heapledger::testing {
namespace {

using schema::EventKind;
using trace::Patience;
using trace::RingProducer;

constexpr uint64_t kRingBytes = 4096;

// A producer on ring 0 of a region with small rings.
class RingProducerTest : public ::testing::Test {
 protected:
  RingProducerTest() { attach(); }

  void attach() {
    shared_ = {&region_.control(), &stopped_, &region_.process(0), Patience{}};
    producer_ = {};
    producer_.attach(&shared_, &region_.ring(0), region_.data(0), kRingBytes);
    region_.control().ring_slots_used.store(1);
  }

  // Writes an event of `words` in all that carries `number`. False: no room, or recording has
  // ended.
  bool write(size_t words, uint64_t number, bool may_wait = true) {
    uint64_t* at = producer_.reserve(words, may_wait);
    if (at == nullptr) return false;
    const size_t text_words = words - sizeof(schema::TextEvent) / 8;
    schema::TextEvent event{};
    event.head = {EventKind::kNote, 0, static_cast<uint16_t>(words), 0, 0, number};
    event.text_bytes = text_words * 8;
    std::memcpy(at, &event, sizeof(event));
    for (size_t i = 0; i < text_words; ++i) at[sizeof(event) / 8 + i] = number * 1000 + i;
    producer_.commit(words);
    return true;
  }

  // Whether `event` is what write(words, number) wrote.
  static bool is_written(const Event& event, size_t words, uint64_t number) {
    if (event.words.size() != words || event.tick != number) return false;
    const size_t head_words = sizeof(schema::TextEvent) / 8;
    for (size_t i = head_words; i < words; ++i) {
      if (event.words[i] != number * 1000 + i - head_words) return false;
    }
    return true;
  }

  RegionFile region_{{.process_slots = 1, .ring_slots = 1, .ring_bytes = kRingBytes}};
  Decoder decoder_{region_};
  std::atomic<uint32_t> stopped_{0};
  RingProducer::Shared shared_{};
  RingProducer producer_{};
};

constexpr size_t kSmallest = sizeof(schema::TextEvent) / 8;

// Goal: an event never wraps, at whatever offset the ring's end meets it. Method: for every event
// length, walk the write position through the ring in steps that meet every offset; each event must
// come back whole.
TEST_F(RingProducerTest, EventsOfEveryLengthComeBackWholeAtEveryOffset) {
  uint64_t number = 0;
  for (size_t words = kSmallest; words <= kRingBytes / 8 / 2; words += 7) {
    for (size_t offset = 0; offset < kRingBytes / 8; offset += words + 1) {
      ASSERT_TRUE(write(words, ++number));
      decoder_.drain();
      ASSERT_EQ(decoder_.events.size(), 1U);
      ASSERT_TRUE(is_written(decoder_.events[0], words, number)) << words << " at " << offset;
      decoder_.events.clear();
    }
    ASSERT_TRUE(write(kSmallest + words % 3, ++number));  // Shifts the next round's offsets.
    decoder_.drain();
    decoder_.events.clear();
  }
  EXPECT_TRUE(decoder_.damage.empty());
}

// Goal: a ring holds exactly what fits, and says no beyond. Method: write without waiting until
// refused.
TEST_F(RingProducerTest, RefusesWhatDoesNotFitIfItMayNotWait) {
  uint64_t count = 0;
  while (write(8, count + 1, false)) ++count;
  EXPECT_EQ(count, kRingBytes / 64);
  EXPECT_EQ(region_.ring(0).events.load(), count);
  EXPECT_EQ(decoder_.drain_ring(0, 64), 1U);
  EXPECT_TRUE(write(8, count + 1, false));
  EXPECT_FALSE(write(8, count + 2, false));
  EXPECT_FALSE(write(kRingBytes / 8 / 2 + 1, 1, true)) << "larger than half a ring: never";
}

// Goal: lossless. Method: a slow reader in another thread, a writer that never stops; all events
// arrive, in order.
TEST_F(RingProducerTest, AFullRingWaitsForItsReader) {
  constexpr uint64_t kEvents = 20000;
  std::atomic<bool> done{false};
  std::thread reader([&] {
    while (!done) {
      region_.control().heartbeat.fetch_add(1);
      decoder_.drain_ring(0, 512);
    }
    decoder_.drain();
  });
  for (uint64_t i = 1; i <= kEvents; ++i) ASSERT_TRUE(write(kSmallest + i % 40, i));
  done = true;
  reader.join();
  ASSERT_EQ(decoder_.events.size(), kEvents);
  for (uint64_t i = 1; i <= kEvents; ++i) {
    ASSERT_TRUE(is_written(decoder_.events[i - 1], kSmallest + i % 40, i));
  }
  EXPECT_TRUE(decoder_.damage.empty());
  EXPECT_GT(region_.ring(0).stalls.load(), 0U);
  EXPECT_GT(region_.ring(0).stall_ticks.load(), 0U);
}

// The same between two processes, as it is used.
TEST_F(RingProducerTest, TheReaderMayBeAnotherProcess) {
  constexpr uint64_t kEvents = 20000;
  const pid_t child = fork();
  if (child == 0) {
    for (uint64_t i = 1; i <= kEvents; ++i) {
      if (!write(kSmallest + i % 40, i)) _exit(1);
    }
    _exit(0);
  }
  while (decoder_.events.size() < kEvents && decoder_.damage.empty()) {
    region_.control().heartbeat.fetch_add(1);
    decoder_.drain_ring(0, UINT64_MAX);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  ASSERT_EQ(decoder_.events.size(), kEvents);
  for (uint64_t i = 1; i <= kEvents; ++i) {
    ASSERT_TRUE(is_written(decoder_.events[i - 1], kSmallest + i % 40, i));
  }
}

// Goal: a collector that has said goodbye is not waited for.
TEST_F(RingProducerTest, AnEndedRecordingReleasesTheWriter) {
  region_.control().recording.store(0);
  uint64_t count = 0;
  while (write(8, ++count)) {
  }
  EXPECT_EQ(count, kRingBytes / 64 + 1);
  EXPECT_EQ(stopped_.load(), 1U);
  EXPECT_FALSE(write(8, 1)) << "for good";
}

// Goal: a dead collector (no such process, no heartbeat) is not waited for either.
TEST_F(RingProducerTest, ADeadCollectorReleasesTheWriter) {
  const pid_t child = fork();
  if (child == 0) _exit(0);
  waitpid(child, nullptr, 0);
  region_.control().collector_pid = static_cast<uint32_t>(child);
  shared_.patience = {10'000'000'000, 100'000'000};
  uint64_t count = 0;
  while (write(8, ++count)) {
  }
  EXPECT_EQ(count, kRingBytes / 64 + 1);
  EXPECT_EQ(stopped_.load(), 1U);
}

// Goal: nor one that lives, but is stuck.
TEST_F(RingProducerTest, ASilentCollectorReleasesTheWriter) {
  shared_.patience = {200'000'000, 100'000'000};
  uint64_t count = 0;
  while (write(8, ++count)) {
  }
  EXPECT_EQ(count, kRingBytes / 64 + 1);
  EXPECT_EQ(stopped_.load(), 1U);
}

// Goal: the sequence of ids and the stream go on under a slot's next owner.
TEST_F(RingProducerTest, TheNextOwnerGoesOnWhereTheLastOneEnded) {
  EXPECT_EQ(producer_.take_sequence(), 1U);
  EXPECT_EQ(producer_.take_sequence(), 2U);
  ASSERT_TRUE(write(9, 1));
  producer_.detach();
  attach();
  EXPECT_EQ(producer_.take_sequence(), 3U);
  ASSERT_TRUE(write(11, 2));
  decoder_.drain();
  ASSERT_EQ(decoder_.events.size(), 2U);
  EXPECT_TRUE(is_written(decoder_.events[1], 11, 2));
  EXPECT_EQ(region_.ring(0).events.load(), 2U);
}

// Goal: a sleeping collector is woken before the ring is full.
TEST_F(RingProducerTest, RingsTheDoorbellPastTheHalf) {
  region_.control().collector_sleeps.store(1);
  uint64_t count = 0;
  while (count < kRingBytes / 2 / 64) ASSERT_TRUE(write(8, ++count));
  EXPECT_EQ(region_.control().doorbell.load(), 0U);
  ASSERT_TRUE(write(8, ++count));
  EXPECT_EQ(region_.control().doorbell.load(), 1U);
}

// Goal: what a forked child finds (all zero) does nothing.
TEST_F(RingProducerTest, AWipedProducerRefuses) {
  RingProducer wiped{};
  EXPECT_FALSE(wiped.attached());
  EXPECT_EQ(wiped.reserve(4), nullptr);
  EXPECT_EQ(wiped.take_sequence(), 0U);
  wiped.commit(4);
}

}  // namespace
}  // namespace heapledger::testing
