// SPDX-License-Identifier: Apache-2.0
// The fast way through a ring, against what each event says and the slow way to its stack.
#include "interposer/collector/call_run.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>

#include "interposer/collector/wire_reader.h"
#include "tests/interposer/collector/event_builder.h"

namespace heapledger::collector {
namespace {

using schema::EventKind;
using testing::allocation;
using testing::Bytes;
using testing::joined;
using testing::release;
using testing::stack;

class CallRunTest : public ::testing::Test {
 protected:
  size_t read(std::span<const std::byte> bytes) {
    CallRun::Times times{ClockMap::Cursor(clock_), 0, 1'000'000};
    return run_->read(bytes, times, 7);
  }
  std::vector<schema::CallRow> rows() const {
    std::vector<schema::CallRow> rows(run_->calls().count);
    run_->calls().copy_to(rows);
    return rows;
  }

  ClockMap clock_{schema::Clock::kMonotonicRaw, {0, 0, 0}, {1, 1, 0}};
  std::unique_ptr<CallRun> run_ = std::make_unique<CallRun>();  // Large.
};

TEST_F(CallRunTest, RowsSayWhatTheEventsSay) {
  // Goal: every field of every shape. Method: one event of each, by hand.
  schema::ReallocEvent moved{};
  moved.ended_tick = 45;
  moved.old_address = 0x1000;
  moved.ended_id = 1;
  moved.address = 0x3000;
  moved.size = 200;
  moved.id = 2;
  const Bytes bytes = joined({
      allocation(EventKind::kMalloc, 10, 1, 0x1000, 24, stack({9, 8})),
      allocation(EventKind::kMemalign, 20, 3, 0x2000, 100,
                 stack({9, 8}, 0, schema::kHasUsable | schema::kHasAlignment), {4096, 64}),
      testing::make_event(EventKind::kRealloc, moved, 50),
      release(60, 3, 0x2000),
      allocation(EventKind::kNew, 70, 0, 0, 1 << 30, {{}, 0, schema::kFailed, false}),
      testing::thread_end(80),
      Bytes(64),
  });
  const size_t taken = read(bytes);
  const auto rows = this->rows();
  ASSERT_EQ(rows.size(), 5U);
  EXPECT_EQ(taken, bytes.size() - 64 - sizeof(schema::PlainEvent));
  for (const schema::CallRow& row : rows) EXPECT_EQ(row.thread, 7U);
  EXPECT_EQ(rows[0].kind, EventKind::kMalloc);
  EXPECT_EQ(rows[0].time_ns, 10);
  EXPECT_EQ(rows[0].ended_ns, 10);
  EXPECT_EQ(rows[0].id, 1U);
  EXPECT_EQ(rows[0].address, 0x1000U);
  EXPECT_EQ(rows[0].size, 24U);
  EXPECT_EQ(rows[0].usable, 32U);
  EXPECT_EQ(rows[1].usable, 4096U);
  EXPECT_EQ(rows[1].alignment, 64U);
  EXPECT_EQ(rows[2].ended_ns, 45);
  EXPECT_EQ(rows[2].old_address, 0x1000U);
  EXPECT_EQ(rows[2].ended_id, 1U);
  EXPECT_EQ(rows[2].id, 2U);
  EXPECT_EQ(rows[2].usable, 208U);
  EXPECT_EQ(rows[3].kind, EventKind::kFree);
  EXPECT_EQ(rows[3].ended_id, 3U);
  EXPECT_EQ(rows[3].address, 0x2000U);
  EXPECT_EQ(rows[3].id + rows[3].size + rows[3].usable, 0U);
  EXPECT_EQ(rows[4].flags, schema::kFailed);
  EXPECT_EQ(rows[4].usable, 0U);
}

TEST_F(CallRunTest, StopsBeforeWhatIsNoSaneCall) {
  // Goal: such events are the slow reader's. Method: one good call, then one of each, then zeros.
  Bytes lengthless = release(2, 1, 1);
  lengthless[2] = lengthless[3] = std::byte{0};
  Bytes too_long = release(2, 1, 1);
  too_long[2] = too_long[3] = std::byte{255};
  Bytes frames_beyond = release(2, 1, 1);
  frames_beyond[1] = std::byte{schema::kHasStack};
  frames_beyond[4] = std::byte{9};
  const Bytes good = release(1, 1, 1);
  for (const Bytes& bad : {lengthless, too_long, frames_beyond, release(2'000'000, 1, 1),
                           testing::thread_start(2, 1, 1), Bytes(64)}) {
    EXPECT_EQ(read(joined({good, bad, Bytes(64)})), good.size());
    EXPECT_EQ(run_->calls().count, 1U);
  }
}

TEST_F(CallRunTest, StacksAreThoseOfTheSlowWay) {
  // Goal: plan and resolve give what apply gives, node for node. Method: random deltas, complete
  // and incomplete, some very deep, some keeping more than there is; many runs over one ring.
  std::minstd_rand random(3);
  FrameTable frames, slow_frames;
  AddressSpace space(frames), slow_space(slow_frames);
  // Half of the addresses are in a module, so that their keys are no numbers of frames.
  for (AddressSpace* known : {&space, &slow_space}) {
    Module module;
    module.base = module.start = 0x1000;
    module.end = 0x1013;
    known->load(module);
  }
  CallTree tree, slow_tree;
  StackCursor cursor, slow_cursor;
  size_t depth = 0;
  for (int round = 0; round < 60; ++round) {
    Bytes bytes;
    for (int i = 0; i < 100; ++i) {
      const bool deep = random() % 300 == 0;
      std::vector<uint64_t> fresh(deep ? 1500 : random() % 5);
      for (uint64_t& pc : fresh) pc = 0x1000 + random() % 40;
      size_t keep = random() % 20 == 0 ? 0 : random() % (std::min<size_t>(depth, 60) + 1);
      if (random() % 200 == 0) keep = 60000;
      const uint8_t flags = random() % 10 == 0 ? schema::kStackIncomplete : 0;
      const Bytes event = allocation(EventKind::kMalloc, 5, 1, 16, 1,
                                     stack(fresh, static_cast<uint16_t>(keep), flags));
      depth = (keep == 60000 ? 0 : keep) + fresh.size();
      bytes.insert(bytes.end(), event.begin(), event.end());
    }
    bytes.resize(bytes.size() + 64);
    WireReader reader(bytes);
    size_t position = 0;
    for (;;) {
      const size_t taken = read(std::span(bytes).subspan(position));
      if (taken == 0) break;
      position += taken;
      run_->find_stacks(cursor, tree, space);
      for (const schema::CallRow& row : rows()) {
        WireEvent event;
        ASSERT_TRUE(reader.next(event));
        uint32_t node = 0;
        slow_cursor.apply(
            slow_tree, event.head.keep, event.head.fresh, event.has(schema::kStackIncomplete),
            [&](size_t at) { return slow_space.key(event.frame(at), 5); }, node);
        ASSERT_EQ(row.stack, node);
      }
    }
    ASSERT_EQ(tree.size(), slow_tree.size());
    for (size_t node = 0; node < tree.fresh().size(); ++node) {
      ASSERT_EQ(tree.fresh()[node].key, slow_tree.fresh()[node].key);
      ASSERT_EQ(tree.fresh()[node].parent, slow_tree.fresh()[node].parent);
    }
  }
}

}  // namespace
}  // namespace heapledger::collector
