// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/ring_reader.h"

#include <gtest/gtest.h>

#include <thread>

#include "interposer/collector/wire_reader.h"
#include "tests/interposer/collector/event_builder.h"

namespace heapledger::collector {
namespace {

using testing::allocation;
using testing::Bytes;
using testing::RingWriter;
using testing::stack;

constexpr RegionLayout kSmall{4, 4, 4096};

std::byte* base_of(const Region& region) { return reinterpret_cast<std::byte*>(&region.control()); }

struct Drained {
  RawBytes raw;
  std::vector<RingPiece> pieces;
};

TEST(RingReader, ReadsAProducersEventsInOrderThroughManyWraps) {
  // Goal: nothing lost, doubled or torn while both sides run. Method: a thread writes events of
  // changing length into a 4 KiB ring, this one drains and checks the sequence.
  const auto region = std::make_shared<Region>(1, kSmall, RegionSettings{});
  constexpr uint64_t kEvents = 50000;
  std::thread producer([&] {
    RingWriter writer(base_of(*region), 2);
    for (uint64_t id = 1; id <= kEvents; ++id) {
      const Bytes event = allocation(schema::EventKind::kMalloc, id, id, id * 16, id % 1000,
                                     stack(std::vector<uint64_t>(id % 7, id)));
      ASSERT_TRUE(writer.write(event));  // Waits for room now and then.
    }
  });
  RingReader reader(region);
  uint64_t expected = 1;
  while (expected <= kEvents) {
    Drained drained;
    reader.drain(drained.raw, drained.pieces, 1U << 20);
    for (const RingPiece& piece : drained.pieces) {
      ASSERT_FALSE(piece.broken);
      WireReader events({drained.raw.data() + piece.offset, piece.bytes});
      WireEvent event;
      while (events.next(event)) {
        ASSERT_EQ(event.as<schema::AllocEvent>().id, expected);
        ASSERT_EQ(event.head.fresh, expected % 7);
        ++expected;
      }
      ASSERT_EQ(events.damaged(), 0U);
    }
    if (drained.pieces.empty()) std::this_thread::yield();
  }
  producer.join();
  EXPECT_EQ(region->ring_slot(2).tail.load(), region->ring_slot(2).head.load());
}

TEST(RingReader, StopsAtItsByteLimitAndGoesOnWithTheNextRing) {
  // Goal: one busy ring does not starve the others. Method: four full rings, a limit of one.
  const auto region = std::make_shared<Region>(1, kSmall, RegionSettings{});
  for (uint32_t slot = 0; slot < 4; ++slot) {
    RingWriter writer(base_of(*region), slot);
    for (int i = 0; i < 50; ++i) writer.write(testing::release(1, 1, 1));
  }
  RingReader reader(region);
  std::vector<uint32_t> order;
  for (int round = 0; round < 5; ++round) {
    Drained drained;
    const bool whole = reader.drain(drained.raw, drained.pieces, 1);
    EXPECT_EQ(whole, round == 4);
    for (const RingPiece& piece : drained.pieces) order.push_back(piece.slot);
  }
  EXPECT_EQ(order, (std::vector<uint32_t>{0, 1, 2, 3}));
}

TEST(RingReader, ImpossibleHeadGivesTheRingUpWithoutBlockingItsProducer) {
  // Goal: a slot that was written over neither crashes nor makes anyone wait. Method: set heads
  // that cannot be; the tail must follow them, and no bytes may be copied.
  for (const uint64_t head : {uint64_t{4096 + 8}, uint64_t{13}, UINT64_MAX, uint64_t{1} << 63}) {
    const auto region = std::make_shared<Region>(1, kSmall, RegionSettings{});
    RingWriter writer(base_of(*region), 0);
    region->ring_slot(0).head.store(head);
    RingReader reader(region);
    Drained drained;
    reader.drain(drained.raw, drained.pieces, 1U << 20);
    ASSERT_EQ(drained.pieces.size(), 1U);
    EXPECT_TRUE(drained.pieces[0].broken);
    EXPECT_EQ(drained.pieces[0].bytes, 0U);
    EXPECT_EQ(region->ring_slot(0).tail.load(), head);
  }
}

TEST(RingReader, SlotCountsBeyondTheRegionAreCut) {
  // Goal: the high-water mark is not trusted. Method: write nonsense into it.
  const auto region = std::make_shared<Region>(1, kSmall, RegionSettings{});
  region->control().ring_slots_used.store(0xFFFFFFFF);
  region->control().process_slots_used.store(0xFFFFFFFF);
  RingReader reader(region);
  Drained drained;
  EXPECT_TRUE(reader.drain(drained.raw, drained.pieces, 1U << 20));
  EXPECT_EQ(region->process_slots_used(), kSmall.process_slots);
}

}  // namespace
}  // namespace heapledger::collector
