// SPDX-License-Identifier: Apache-2.0
// The writer by itself: rings of a region that nobody runs in, drained and decoded into a file.
#include "interposer/collector/recorder.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <random>

#include "schema/stack_batch.h"
#include "schema/trace_db.h"
#include "tests/interposer/collector/event_builder.h"

namespace heapledger::collector {
namespace {

using schema::EventKind;
using testing::allocation;
using testing::Bytes;
using testing::joined;
using testing::release;
using testing::RingWriter;
using testing::stack;

constexpr pid_t kPid = 5'000'000;  // Of no process of this machine.

class RecorderTest : public ::testing::Test {
 protected:
  RecorderTest() {
    const std::string name = ::testing::UnitTest::GetInstance()->current_test_info()->name();
    path_ = std::filesystem::temp_directory_path() /
            ("collector_" + name + "_" + std::to_string(getpid()) + ".db");
    writer_ = std::make_unique<TraceWriter>(path_, true);
    const ClockPair now{at(0), origin_, 0};
    const ClockPair later{at(1), origin_ + 1, 0};
    recorder_ = std::make_unique<Recorder>(
        *writer_, perf_, ClockMap(schema::Clock::kMonotonicRaw, now, later), origin_,
        Recorder::Hooks{[](pid_t) {}, [](uint64_t) {},
                        [this](const std::string& why) { failure_ = why; }});
    region_ = std::make_shared<Region>(1, RegionLayout{4, 8, 1U << 16}, RegionSettings{});
    recorder_->handle(ImageJoined{region_, kPid, kPid, 1, "/bin/prog", "prog", origin_});
    testing::claim_process(base(), 0, kPid, UINT32_MAX, at(0));
    reader_ = std::make_unique<RingReader>(region_);
  }
  ~RecorderTest() override { std::filesystem::remove(path_); }

  std::byte* base() const { return reinterpret_cast<std::byte*>(&region_->control()); }
  uint64_t at(int64_t ns) const { return static_cast<uint64_t>(origin_ + ns); }  // As a tick.

  void drain() {
    Window window;
    reader_->drain(window.raw, window.rings, 1U << 24);
    window.began_raw_ns = raw_now_ns();
    recorder_->handle(std::move(window));
  }
  schema::Database finish() {
    drain();
    recorder_->handle(Finish{raw_now_ns(), 0});
    EXPECT_EQ(failure_, "");
    schema::Database db = schema::open_trace(path_, schema::OpenMode::kReadWrite);
    schema::unpack_stacks(db);
    return db;
  }

  std::string path_;
  const int64_t origin_ = raw_now_ns() - 1'000'000'000;  // A second ago, so that stamps are past.
  PerfFaults perf_;
  std::string failure_;
  std::unique_ptr<TraceWriter> writer_;
  std::unique_ptr<Recorder> recorder_;
  RegionPtr region_;
  std::unique_ptr<RingReader> reader_;
};

TEST_F(RecorderTest, CallsOfTwoThreadsComeBackInOrderOfTime) {
  // Goal: rows equal the events, merged. Method: two rings, interleaved stamps, read by SQL.
  RingWriter one(base(), 0);
  RingWriter two(base(), 1);
  one.write(testing::thread_start(at(10), kPid, kPid));
  two.write(testing::thread_start(at(11), kPid, kPid + 1));
  one.write(allocation(EventKind::kMalloc, at(20), 1, 0x1000, 100, stack({7, 8})));
  two.write(allocation(EventKind::kNew, at(30), schema::make_id(1, 1), 0x2000, 5, stack({7, 8})));
  two.write(release(at(40), 1, 0x1000));
  schema::Database db = finish();
  EXPECT_EQ(
      db.query_text("SELECT group_concat(kind || ' ' || time_ns || ' ' || address) FROM event"),
      "malloc 20 4096,new 30 8192,free 40 4096");
  EXPECT_EQ(db.query_int("SELECT usable FROM event WHERE kind = 'malloc'"), 112);
  EXPECT_EQ(db.query_int("SELECT count(DISTINCT stack) FROM event WHERE stack != 0"), 1);
  EXPECT_EQ(db.query_int("SELECT count(*) FROM stack"), 2);
  EXPECT_EQ(db.query_int("SELECT count(*) FROM thread"), 2);
  EXPECT_EQ(db.query_int("SELECT events || events_lost FROM process"), 30);
}

TEST_F(RecorderTest, MarksAndNotesHaveStacksThatLaterEventsBuildOn) {
  // Goal: the ring's current stack goes through every event with one. Method: a mark between two
  // calls, the second of which keeps frames that only the mark brought.
  RingWriter ring(base(), 0);
  ring.write(testing::thread_start(at(10), kPid, kPid));
  ring.write(allocation(EventKind::kMalloc, at(20), 1, 0x1000, 100, stack({2, 1})));
  const schema::TextEvent text{.head = {}, .text_bytes = 4};
  ring.write(testing::make_event(EventKind::kMark, text, at(30), stack({4, 3}, 1), "here"));
  ring.write(testing::make_event(EventKind::kNote, text, at(40), stack({6, 5}, 2), "note"));
  ring.write(allocation(EventKind::kMalloc, at(50), 2, 0x2000, 100, stack({7}, 3)));
  schema::Database db = finish();
  // Outermost frame first.
  const auto frames = [&db](const std::string& stack) {
    return db.query_text(
        "WITH RECURSIVE up(id, depth) AS (SELECT (" + stack +
        "), 0 UNION ALL SELECT parent, depth + 1 FROM stack JOIN up USING (id) WHERE parent != 0) "
        "SELECT group_concat(offset, ' ') FROM (SELECT offset FROM up JOIN stack USING (id) JOIN "
        "frame ON frame.id = frame ORDER BY depth DESC)");
  };
  EXPECT_EQ(frames("SELECT stack FROM mark WHERE kind = 'mark'"), "1 3 4");
  EXPECT_EQ(frames("SELECT stack FROM mark WHERE kind = 'note'"), "1 3 5 6");
  EXPECT_EQ(frames("SELECT stack FROM event WHERE id = 2"), "1 3 5 7");
}

TEST_F(RecorderTest, ReallocHasBothStampsAndBothIds) {
  // Goal: realloc's special row. Method: one in the ring, read back by the batch reader.
  RingWriter ring(base(), 0);
  ring.write(testing::thread_start(at(10), kPid, kPid));
  schema::ReallocEvent event{};
  event.ended_tick = at(45);
  event.old_address = 0x1000;
  event.ended_id = 1;
  event.address = 0x3000;
  event.size = 200;
  event.id = 2;
  ring.write(testing::make_event(EventKind::kRealloc, event, at(50)));
  schema::Database db = finish();
  schema::Statement batch = db.prepare("SELECT data FROM event_batch");
  ASSERT_TRUE(batch.step());
  const auto rows = schema::decode_calls(batch.column_blob(0));
  ASSERT_EQ(rows.size(), 1U);
  EXPECT_EQ(rows[0].time_ns, 50);
  EXPECT_EQ(rows[0].ended_ns, 45);
  EXPECT_EQ(rows[0].ended_id, 1U);
  EXPECT_EQ(rows[0].id, 2U);
  EXPECT_EQ(rows[0].old_address, 0x1000U);
  EXPECT_EQ(rows[0].usable, 208U);
}

TEST_F(RecorderTest, FramesBelongToTheModuleThatWasThereAtTheTime) {
  // Goal: an address that two modules had in turn. Method: load, call, unload, load another, call,
  // all in one window; the second thread's ring is decoded first and knows the modules too.
  RingWriter early(base(), 0);
  RingWriter late(base(), 1);
  early.write(testing::thread_start(at(1), kPid, kPid + 1));
  late.write(testing::thread_start(at(1), kPid, kPid));
  late.write(testing::module(EventKind::kModuleLoad, at(5), 0x10000, 0x20000, "/lib/old.so"));
  early.write(allocation(EventKind::kMalloc, at(7), 1, 0x1, 1, stack({0x10010})));
  late.write(testing::module(EventKind::kModuleUnload, at(10), 0x10000, 0x20000, "/lib/old.so"));
  late.write(testing::module(EventKind::kModuleLoad, at(12), 0x10000, 0x20000, "/lib/new.so"));
  early.write(allocation(EventKind::kMalloc, at(15), 2, 0x2, 1, stack({0x10010})));
  schema::Database db = finish();
  EXPECT_EQ(db.query_text(
                "SELECT group_concat(path || '+' || offset) FROM event JOIN stack ON stack.id = "
                "event.stack JOIN frame ON frame.id = frame JOIN module ON module.id = module"),
            "/lib/old.so+16,/lib/new.so+16");
  EXPECT_EQ(db.query_int("SELECT end_ns FROM module WHERE path = '/lib/old.so'"), 10);
  EXPECT_EQ(db.query_text("SELECT build_id FROM module LIMIT 1"), "ab");
}

TEST_F(RecorderTest, ForkedChildKeepsItsParentsModules) {
  // Goal: frames of a forked child share rows. Method: the same address called in both.
  RingWriter parent(base(), 0);
  parent.write(testing::thread_start(at(1), kPid, kPid));
  parent.write(testing::module(EventKind::kModuleLoad, at(2), 0x10000, 0x20000, "/bin/prog"));
  parent.write(allocation(EventKind::kMalloc, at(3), 1, 0x1, 1, stack({0x10010})));
  drain();
  testing::claim_process(base(), 1, kPid + 1, 0, at(20));
  RingWriter child(base(), 1);
  child.write(testing::thread_start(at(21), kPid + 1, kPid + 1, 1));
  child.write(allocation(EventKind::kMalloc, at(22), 2, 0x2, 1, stack({0x10010})));
  schema::Database db = finish();
  EXPECT_EQ(db.query_int("SELECT count(DISTINCT stack) FROM event"), 1);
  EXPECT_EQ(db.query_int("SELECT count(DISTINCT process) FROM event"), 2);
  EXPECT_EQ(db.query_int("SELECT parent * 10 + forked FROM process WHERE id = 2"), 11);
  EXPECT_EQ(db.query_int("SELECT start_ns FROM process WHERE id = 2"), 20);
}

TEST_F(RecorderTest, SlotOfAnEndedThreadIsGivenBackOnceItIsDecoded) {
  // Goal: slots are reused, and ids go on. Method: end a thread, drain, claim the slot again.
  RingWriter ring(base(), 0);
  ring.write(testing::thread_start(at(1), kPid, kPid + 1));
  ring.write(allocation(EventKind::kMalloc, at(2), 1, 0x1, 1));
  ring.write(testing::thread_end(at(3)));
  ring.ring().next_sequence.store(2);
  ring.ring().state.store(schema::RingState::kEnded);
  drain();
  EXPECT_EQ(ring.ring().state.load(), schema::RingState::kFree);
  RingWriter again(base(), 0);
  again.write(testing::thread_start(at(5), kPid, kPid + 2));
  again.write(allocation(EventKind::kMalloc, at(6), 2, 0x2, 1));
  schema::Database db = finish();
  EXPECT_EQ(ring.ring().next_sequence.load(), 2U);
  EXPECT_EQ(db.query_int("SELECT count(DISTINCT thread) FROM event"), 2);
  EXPECT_EQ(db.query_int("SELECT sum(events_lost) FROM process"), 0);
}

TEST_F(RecorderTest, AThreadThatProcStillNamesAfterItsEndIsNoOtherThread) {
  // Goal: a thread has one row; another with its tid has its own. Method: a snapshot that lists a
  // thread long after its end, and then a start with the same tid.
  constexpr pid_t kTid = kPid + 1;
  RingWriter ring(base(), 0);
  ring.write(testing::thread_start(at(1), kPid, kTid));
  ring.write(testing::thread_end(at(3)));
  ring.ring().state.store(schema::RingState::kEnded);
  drain();
  Snapshot snapshot;
  snapshot.raw_ns = snapshot.end_raw_ns = origin_ + 50'000'000;
  snapshot.threads.push_back({kTid, "late", 7, 0});
  recorder_->handle(SnapshotTaken{kPid, snapshot});
  RingWriter again(base(), 0);
  again.write(testing::thread_start(at(90'000'000), kPid, kTid));
  schema::Database db = finish();
  EXPECT_EQ(db.query_int("SELECT count(*) FROM thread"), 2);
  EXPECT_EQ(db.query_int("SELECT minor_faults FROM thread WHERE end_ns = 3"), 7);
  EXPECT_EQ(db.query_int("SELECT start_ns FROM thread WHERE end_ns IS NULL"), 90'000'000);
}

TEST_F(RecorderTest, RingThatWasWrittenOverIsCountedNotFatal) {
  // Goal: damage costs events, which are counted, and nothing else. Method: overwrite the middle of
  // a ring's data with noise before it is drained.
  std::minstd_rand random(1);
  for (int round = 0; round < 30; ++round) {
    RingWriter ring(base(), static_cast<uint32_t>(round % 8));
    ring.write(testing::thread_start(at(1), kPid, kPid + round));
    const uint64_t from = ring.ring().head.load() % region_->layout().ring_bytes;
    for (uint64_t i = 0; i < 100; ++i) {
      ring.write(allocation(EventKind::kMalloc, at(2), i + 1, 16 * i, 1, stack({i, 2, 3})));
    }
    for (size_t i = 0; i < 200; ++i) {
      const uint64_t where = (from + 1000 + i) % region_->layout().ring_bytes;
      ring.data()[where] = static_cast<std::byte>(random());
    }
    drain();
  }
  schema::Database db = finish();
  const int64_t events = db.query_int("SELECT count(*) FROM event").value_or(0);
  const int64_t lost = db.query_int("SELECT sum(events_lost) FROM process").value_or(0);
  EXPECT_GE(events, 30 * 14);  // Those before the damage.
  EXPECT_LT(events, 3000);
  // Noise may look like an event here and there.
  EXPECT_NEAR(static_cast<double>(events + lost), 3000, 150);
}

TEST_F(RecorderTest, AProgramBeginsWhenItWasLaunchedNotWhenTheWriterHeardOfIt) {
  // Goal: a short program is over before a busy writer hears of its launch; its times are right all
  // the same. Method: news of a second ago, handled now.
  constexpr pid_t kShort = kPid + 1;
  recorder_->handle(Launched{kShort, "/bin/short", "short", "", origin_ + 100});
  recorder_->handle(ProcessGone{kShort, {true, 0}, origin_ + 3'000'100});
  schema::Database db = finish();
  EXPECT_EQ(db.query_int("SELECT end_ns - start_ns FROM process WHERE exe = '/bin/short'"),
            3'000'000);
}

TEST_F(RecorderTest, WhatAnInterruptLeavesOutIsCounted) {
  // Goal: the trace has what was packed, and says how much it lacks. Method: one ring half decoded
  // and one not at all when the user waits no longer; then the process' end, which is still told.
  RingWriter one(base(), 0);
  one.write(testing::thread_start(at(1), kPid, kPid));
  for (uint64_t id = 1; id <= 10; ++id) {
    one.write(allocation(EventKind::kMalloc, at(10), id, id * 64, 1));
  }
  drain();
  recorder_->interrupt();
  RingWriter two(base(), 1);
  two.write(testing::thread_start(at(20), kPid, kPid + 1));
  for (uint64_t id = 11; id <= 15; ++id) {
    one.write(allocation(EventKind::kMalloc, at(30), id, id * 64, 1));
    two.write(allocation(EventKind::kMalloc, at(30), schema::make_id(1, id), id * 96, 1));
  }
  drain();
  EXPECT_TRUE(recorder_->is_over());
  recorder_->handle(ProcessGone{kPid, {true, 3 << 8}, origin_ + 100});
  schema::Database db = finish();
  EXPECT_EQ(db.query_text("SELECT value FROM meta WHERE key = 'state'"), "stopped");
  EXPECT_EQ(db.query_int("SELECT count(*) FROM event"), 10);
  EXPECT_EQ(db.query_int("SELECT exit_status FROM process"), 3);
  // Five of each ring, and the second one's beginning.
  EXPECT_EQ(db.query_int("SELECT events_lost FROM process"), 11);
  EXPECT_EQ(recorder_->counters().lost.load(), 11U);
}

TEST_F(RecorderTest, FullDiskStopsTheRecordingAndLeavesAReadableFile) {
  // Goal: what was committed stays. Method: a file size limit by SQLite's own page limit.
  RingWriter ring(base(), 0);
  ring.write(testing::thread_start(at(1), kPid, kPid));
  drain();
  writer_->commit();
  ring.write(allocation(EventKind::kMalloc, at(4), 1, 0x10, 1));
  writer_->limit_file_pages(40);
  for (int i = 0; i < 200 && failure_.empty(); ++i) {
    const schema::TextEvent mark{.head = {}, .text_bytes = 8000};
    ring.write(testing::make_event(EventKind::kMark, mark, at(5), {}, std::string(8000, 'x')));
    drain();
  }
  EXPECT_NE(failure_, "");
  EXPECT_TRUE(recorder_->failed());
  writer_.reset();
  schema::Database db = schema::open_trace(path_, schema::OpenMode::kReadOnly);
  EXPECT_EQ(db.query_int("SELECT count(*) FROM process"), 1);
  EXPECT_EQ(db.query_int("SELECT events_lost FROM process"), 1);
  EXPECT_EQ(db.query_text("SELECT value FROM meta WHERE key = 'state'"), "stopped");
}

}  // namespace
}  // namespace heapledger::collector
