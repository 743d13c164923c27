// SPDX-License-Identifier: Apache-2.0
// The drain thread with a producer and nobody, or somebody slow, behind it.
#include "interposer/collector/drain.h"

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <thread>

#include "interposer/collector/wire_reader.h"
#include "tests/interposer/collector/event_builder.h"

namespace heapledger::collector {
namespace {

using testing::allocation;
using testing::RingWriter;

constexpr size_t kRingBytes = 64U << 10;
constexpr uint64_t kEvents = 200'000;  // 8 MB: a hundred rings full.

class DrainTest : public ::testing::Test {
 protected:
  explicit DrainTest(uint64_t spool_limit = uint64_t{1} << 40)
      : spool_(std::filesystem::temp_directory_path().string(), spool_limit) {}

  // A program that writes all its events as fast as there is room.
  std::thread produce() {
    drain_.add_region(region_);
    return std::thread([this] {
      RingWriter ring(reinterpret_cast<std::byte*>(&region_->control()), 0);
      for (uint64_t id = 1; id <= kEvents; ++id) {
        if (!ring.write(allocation(schema::EventKind::kMalloc, id, id, id * 16, 1))) return;
        written_.store(id);
      }
    });
  }

  // Takes windows until all events came, and checks that they are all there in order.
  void take_all() {
    uint64_t next = 1;
    while (next <= kEvents) {
      auto message = queue_.pop(std::chrono::seconds(20));
      ASSERT_TRUE(message.has_value()) << next;
      const auto* window = std::get_if<Window>(&*message);
      if (window == nullptr) continue;
      for (const RingPiece& piece : window->rings) {
        WireReader reader({window->raw.data() + piece.offset, piece.bytes});
        WireEvent event;
        while (reader.next(event)) {
          ASSERT_EQ(event.as<schema::AllocEvent>().id, next);
          ++next;
        }
        EXPECT_EQ(reader.damaged(), 0U);
      }
    }
  }

  Spool spool_;
  MessageQueue queue_{256U << 10, spool_};
  PerfFaults perf_;
  KernelSyscalls syscalls_;
  RegionPtr region_ = std::make_shared<Region>(1, RegionLayout{4, 8, kRingBytes}, RegionSettings{});
  std::atomic<uint64_t> written_{0};
  Drain drain_{queue_, perf_, syscalls_, schema::Clock::kMonotonicRaw, [] {}};
};

TEST_F(DrainTest, ProgramRunsToItsEndThoughNothingIsPacked) {
  // Goal: draining never waits for packing below the limit. Method: nobody takes a window until the
  // program has ended; then everything is there, most of it in the spool.
  std::thread program = produce();
  program.join();
  EXPECT_EQ(written_.load(), kEvents);
  take_all();
  EXPECT_GT(spool_.use().peak_bytes, kEvents * 40 / 2);
  drain_.stop();
}

class TightDrainTest : public DrainTest {
 protected:
  TightDrainTest() : DrainTest(0) {}
};

TEST_F(TightDrainTest, ProgramWaitsAtTheLimitAndNothingIsLost) {
  // Goal: without a spool the program waits, as long as it takes. Method: nobody takes a window
  // until it has stood still, at less than what fits into memory; then somebody does.
  std::thread program = produce();
  uint64_t before = UINT64_MAX;
  for (int tries = 0; tries < 200 && before != written_.load(); ++tries) {
    before = written_.load();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  EXPECT_LT(written_.load(), kEvents / 4);
  take_all();
  program.join();
  EXPECT_EQ(written_.load(), kEvents);
  EXPECT_EQ(spool_.use().total_bytes, 0U);
  drain_.stop();
}

TEST_F(TightDrainTest, FullQueueStillLetsARecordingEnd) {
  // Goal: stop() does not hang behind a full queue. Method: stop while the program waits for room,
  // and take what there is meanwhile.
  std::thread program = produce();
  while (queue_.has_room()) std::this_thread::yield();
  std::thread stopper([this] { drain_.stop(); });
  std::atomic<bool> stopped{false};
  std::thread taker([this, &stopped] {
    while (!stopped) queue_.pop(std::chrono::milliseconds(1));
  });
  stopper.join();
  stopped = true;
  taker.join();
  program.join();
  EXPECT_EQ(region_->control().recording.load(), 0U);
}

}  // namespace
}  // namespace heapledger::collector
