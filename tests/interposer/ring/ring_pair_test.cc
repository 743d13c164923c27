// SPDX-License-Identifier: Apache-2.0
// The shim's end and the collector's end of a ring, over one mapping in threads, and over two
// mappings in two processes.
#include "tests/interposer/ring/ring_pair.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <random>
#include <thread>

namespace heapledger::testing {
namespace {

using collector::Region;
using collector::RegionLayout;
using collector::RegionSettings;

constexpr uint32_t kThreads = 4;
constexpr RegionLayout kSmallRings{1, kThreads, 4096};
constexpr RegionLayout kLargeRings{1, kThreads, 1U << 18};

void nap(uint64_t ns) {
  const timespec time{0, static_cast<long>(ns)};
  nanosleep(&time, nullptr);
}

// Now and then a side that pauses: the rings run full, and empty.
void pause_sometimes(uint64_t random) {
  if (random % 512 == 0) nap(random / 512 % 200'000);
}

// Goal: nothing is lost, doubled or torn, and (under the thread sanitizer) every word of the ring
// is handed over by head and tail alone. Method: four producers and a reader, threads of one
// process on one mapping, rings so small that they are full most of the time.
TEST(RingPair, ThreadsOverOneMappingPassEveryEventOn) {
  constexpr uint64_t kEvents = 4000;
  const auto region = std::make_shared<Region>(1, kSmallRings, RegionSettings{});
  const trace::Region mapped = same_mapping(*region);
  Receiver receiver(region);
  std::vector<std::thread> producers;
  std::atomic<uint32_t> sent{0};
  for (uint32_t slot = 0; slot < kThreads; ++slot) {
    receiver.expect(slot, 100 + slot);
    producers.emplace_back([&, slot] {
      Sender sender(mapped, slot, 100 + slot);
      for (uint64_t i = 0; i < kEvents; ++i) {
        if (!sender.send()) return;
        pause_sometimes(mixed(slot, i));
      }
      sent.fetch_add(1);
    });
  }
  for (uint64_t round = 0; sent.load() < kThreads; ++round) {
    receiver.drain();
    pause_sometimes(mixed(77, round));
  }
  while (receiver.drain() != 0) {
  }
  for (std::thread& producer : producers) producer.join();
  EXPECT_EQ(receiver.wrong(), "");
  for (uint32_t slot = 0; slot < kThreads; ++slot) {
    EXPECT_EQ(receiver.received(slot), kEvents) << slot;
    EXPECT_EQ(region->ring_slot(slot).events.load(), kEvents);
    EXPECT_GT(region->ring_slot(slot).stalls.load(), 0U) << "the ring was never full";
  }
}

// A producer in a process of its own, on a mapping of its own. What it has sent stands in `noted`,
// which the test shares with it and which is no part of the region.
class SendingProcess {
 public:
  SendingProcess(const Region& region, uint32_t slot, uint64_t seed, uint64_t events)
      : noted_(static_cast<std::atomic<uint64_t>*>(
            mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))),
        pid_(fork()) {
    if (pid_ == 0) run(region, slot, seed, events);
  }
  ~SendingProcess() { munmap(noted_, 4096); }
  SendingProcess(const SendingProcess&) = delete;
  SendingProcess& operator=(const SendingProcess&) = delete;

  pid_t pid() const { return pid_; }
  uint64_t noted() const { return noted_->load(); }
  bool has_ended() {
    if (!ended_) ended_ = waitpid(pid_, &status_, WNOHANG) == pid_;
    return ended_;
  }
  int status() const { return status_; }

 private:
  [[noreturn]] void run(const Region& region, uint32_t slot, uint64_t seed, uint64_t events) {
    const trace::Region mapped = map_as_program(region.fd(), region.layout().region_bytes());
    Sender sender(mapped, slot, seed);
    for (uint64_t i = 1; i <= events; ++i) {
      if (!sender.send()) _exit(1);
      noted_->store(i);
      pause_sometimes(mixed(seed, i));
    }
    _exit(0);
  }

  std::atomic<uint64_t>* noted_;
  pid_t pid_;
  int status_ = 0;
  bool ended_ = false;
};

// Goal: the same between processes, where the sanitizer sees nothing: random sizes, random pauses,
// both sides at full speed in between. Method: two producing processes, the test reads.
TEST(RingPair, ProcessesPassEveryEventOn) {
  constexpr uint64_t kEvents = 100'000;
  for (const RegionLayout& layout : {kSmallRings, kLargeRings}) {
    const auto region = std::make_shared<Region>(1, layout, RegionSettings{});
    Receiver receiver(region);
    receiver.expect(1, 5);
    receiver.expect(3, 6);
    SendingProcess one(*region, 1, 5, kEvents);
    SendingProcess two(*region, 3, 6, kEvents);
    for (uint64_t round = 0; !(one.has_ended() && two.has_ended()); ++round) {
      receiver.drain();
      pause_sometimes(mixed(78, round));
    }
    receiver.drain();
    EXPECT_EQ(receiver.wrong(), "");
    EXPECT_EQ(one.status(), 0);
    EXPECT_EQ(two.status(), 0);
    EXPECT_EQ(receiver.received(1), kEvents);
    EXPECT_EQ(receiver.received(3), kEvents);
  }
}

// Goal: SIGKILL at any instruction leaves a ring that reads up to the last event that was
// published, at most one more than the process could note. Method: kill at random times, also while
// it waits for room, and read what is left.
TEST(RingPair, AKilledProducerLeavesAllItHadSent) {
  std::mt19937 random(20241101);
  for (int kill_number = 0; kill_number < 60; ++kill_number) {
    const RegionLayout& layout = kill_number % 2 == 0 ? kSmallRings : kLargeRings;
    const auto region = std::make_shared<Region>(1, layout, RegionSettings{});
    Receiver receiver(region);
    receiver.expect(0, 9);
    SendingProcess producer(*region, 0, 9, UINT64_MAX);
    const auto end =
        std::chrono::steady_clock::now() + std::chrono::microseconds(random() % 20'000);
    const bool reads = kill_number % 3 != 0;  // Else the ring fills and the producer waits.
    while (std::chrono::steady_clock::now() < end) {
      if (reads) receiver.drain();
      nap(50'000);
    }
    kill(producer.pid(), SIGKILL);
    while (!producer.has_ended()) nap(50'000);
    while (receiver.drain() != 0) {
    }
    ASSERT_EQ(receiver.wrong(), "") << kill_number;
    ASSERT_GE(receiver.received(0), producer.noted()) << kill_number;
    ASSERT_LE(receiver.received(0), producer.noted() + 1) << kill_number;
  }
}

}  // namespace
}  // namespace heapledger::testing
