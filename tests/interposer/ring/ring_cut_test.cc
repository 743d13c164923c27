// SPDX-License-Identifier: Apache-2.0
// The shared region, cut off or written over at random places in the middle of a stream, and read
// back: the reader neither crashes nor loops, and what lies below the head and before the damage
// arrives.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <filesystem>
#include <memory>
#include <random>
#include <vector>

#include "interposer/collector/recorder.h"
#include "schema/trace_db.h"
#include "tests/interposer/collector/event_builder.h"
#include "tests/interposer/ring/ring_pair.h"

namespace heapledger::testing {
namespace {

using collector::Region;
using collector::RegionLayout;
using collector::RegionPtr;
using collector::RegionSettings;
using schema::EventKind;

using Random = std::mt19937_64;

std::byte* base_of(const Region& region) { return reinterpret_cast<std::byte*>(&region.control()); }

std::vector<std::byte> contents_of(const Region& region) {
  const std::byte* base = base_of(region);
  return {base, base + region.layout().region_bytes()};
}

// A word of the region: of each of its parts as often, because most of its bytes are data.
uint64_t any_place(const RegionLayout& layout, Random& random) {
  const auto within = [&](uint64_t start, uint64_t bytes) {
    return (start + random() % bytes) & ~uint64_t{7};
  };
  switch (random() % 6) {
    case 0:
      return within(0, sizeof(schema::ControlPage));
    case 1:
      return within(layout.process_offset(), layout.process_slots * sizeof(schema::ProcessSlot));
    case 2:
      return within(layout.slot_offset(), layout.ring_slots * sizeof(schema::RingSlot));
    default:
      return within(layout.data_offset(), layout.ring_slots * layout.ring_bytes);
  }
}

// One act of damage.
void damage(const Region& region, Random& random) {
  const uint64_t end = region.layout().region_bytes();
  const uint64_t at = any_place(region.layout(), random);
  std::byte* base = base_of(region);
  switch (random() % 5) {
    case 0:  // The region ends here: the rest reads as zeros.
      std::memset(base + at, 0, end - at);
      break;
    case 1:  // Its pages were given back from here on.
      fallocate(region.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(at),
                static_cast<off_t>(end - at));
      break;
    case 2: {  // A wild memset.
      const uint64_t bytes = std::min<uint64_t>(end - at, 8 + random() % 512);
      std::memset(base + at, static_cast<int>(random() % 256), bytes);
      break;
    }
    case 3:  // Noise in some words.
      for (int i = 0; i < 8; ++i) {
        const uint64_t word = random() >> (random() % 64);
        std::memcpy(base + any_place(region.layout(), random), &word, 8);
      }
      break;
    default:  // One bit.
      base[at + random() % 8] ^= std::byte{1} << random() % 8;
      break;
  }
}

// Senders of this process on some rings of a region, with what they sent.
class Stream {
 public:
  Stream(const trace::Region& mapped, uint32_t slot, uint64_t seed)
      : slot_(&mapped.rings[slot]), sender_(mapped, slot, seed) {}

  void send(uint64_t count) {
    for (uint64_t i = 0; i < count && sender_.send(false); ++i) ends_.push_back(slot_->head.load());
  }
  // Stream positions behind each event.
  const std::vector<uint64_t>& ends() const { return ends_; }

 private:
  const schema::RingSlot* slot_;
  Sender sender_;
  std::vector<uint64_t> ends_;
};

constexpr uint32_t kRings = 3;

// A region in the middle of its life, and its reader.
class CutRegion {
 public:
  CutRegion(uint64_t ring_bytes, Random& random)
      : region_(std::make_shared<Region>(1, RegionLayout{1, kRings, ring_bytes}, RegionSettings{})),
        mapped_(map_as_program(region_->fd(), region_->layout().region_bytes())),
        reader_(region_),
        read_(kRings) {
    for (uint32_t slot = 0; slot < kRings; ++slot) streams_.emplace_back(mapped_, slot, slot);
    const uint64_t rounds = random() % 40;
    for (uint64_t round = 0; round < rounds; ++round) {
      streams_[random() % kRings].send(random() % 60);
      if (random() % 3 == 0) drain();
    }
    before_ = contents_of(*region_);
  }
  ~CutRegion() { munmap(mapped_.control, mapped_.mapped_bytes); }
  CutRegion(const CutRegion&) = delete;
  CutRegion& operator=(const CutRegion&) = delete;

  const Region& region() const { return *region_; }
  uint64_t read(uint32_t slot) const { return read_[slot]; }

  // Where the stream of a ring is as it was, and its head says so: up to this position.
  uint64_t intact_end(uint32_t slot) const {
    const Region& region = *region_;
    const uint64_t ring_bytes = region.layout().ring_bytes;
    const auto* now = base_of(region);
    const uint64_t head_at = region.layout().slot_offset() + slot * sizeof(schema::RingSlot);
    uint64_t head_before = 0;
    std::memcpy(&head_before, before_.data() + head_at, 8);
    const uint64_t tail = read_[slot] == 0 ? 0 : streams_[slot].ends()[read_[slot] - 1];
    const uint64_t head = region.ring_slot(slot).head.load();
    if (head - tail > ring_bytes || head % 8 != 0) return tail;  // Rightly given up.
    uint64_t position = tail;
    const uint64_t end = std::min(head, head_before);
    const uint64_t data = region.layout().data_offset() + slot * ring_bytes;
    while (position < end &&
           now[data + position % ring_bytes] == before_[data + position % ring_bytes]) {
      ++position;
    }
    return position;
  }
  // Reads what there is; returns the number of rounds. Counts events as read while they are right.
  int drain() {
    int rounds = 0;
    for (; rounds < 100; ++rounds) {
      collector::RawBytes raw;
      std::vector<collector::RingPiece> pieces;
      if (reader_.drain(raw, pieces, 4096) && pieces.empty()) break;
      for (const collector::RingPiece& piece : pieces) count(piece, raw);
    }
    return rounds;
  }
  uint64_t whole_until(uint32_t slot, uint64_t position) const {
    const auto& ends = streams_[slot].ends();
    return static_cast<uint64_t>(std::upper_bound(ends.begin(), ends.end(), position) -
                                 ends.begin());
  }

 private:
  void count(const collector::RingPiece& piece, const collector::RawBytes& raw) {
    collector::WireReader events({raw.data() + piece.offset, piece.bytes});
    collector::WireEvent event;
    uint64_t& read = read_[piece.slot];
    const uint64_t ring_bytes = region_->layout().ring_bytes;
    while (events.next(event)) {
      const bool next = event.head.tick == read + 1 &&
                        event.head.words == words_of(piece.slot, read + 1, ring_bytes);
      if (next) ++read;
    }
  }

  RegionPtr region_;
  trace::Region mapped_;
  collector::RingReader reader_;
  std::deque<Stream> streams_;  // They do not move.
  std::vector<uint64_t> read_;  // Events, by ring.
  std::vector<std::byte> before_;
};

// Goal: everything below head that is intact is delivered, whatever else was done to the region.
// Method: random streams, random damage (slots and control page too), and for each ring the events
// that end before its first changed byte.
TEST(RingCut, WhatLiesBeforeTheDamageIsDelivered) {
  Random random(42);
  uint64_t delivered = 0;
  for (int trial = 0; trial < 1500; ++trial) {
    CutRegion cut(uint64_t{4096} << random() % 4, random);
    const int acts = 1 + static_cast<int>(random() % 3);
    for (int i = 0; i < acts; ++i) damage(cut.region(), random);
    uint64_t due[kRings];
    for (uint32_t slot = 0; slot < kRings; ++slot) {
      due[slot] = cut.whole_until(slot, cut.intact_end(slot));
    }
    const std::vector<uint64_t> before = {cut.read(0), cut.read(1), cut.read(2)};
    ASSERT_LT(cut.drain(), 100) << "trial " << trial << " does not end";
    for (uint32_t slot = 0; slot < kRings; ++slot) {
      ASSERT_GE(cut.read(slot), due[slot]) << "trial " << trial << " ring " << slot;
      delivered += due[slot] - std::min(due[slot], before[slot]);
    }
  }
  EXPECT_GT(delivered, 10'000U) << "the test has nothing left to look at";
}

constexpr pid_t kPid = 5'000'000;  // Of no process of this machine.

// A region with all kinds of events in its rings, on its way into a trace.
class CutRecording {
 public:
  explicit CutRecording(const std::string& path)
      : writer_(path, true),
        origin_(collector::raw_now_ns() - 1'000'000'000),
        recorder_(writer_, perf_,
                  collector::ClockMap(schema::Clock::kMonotonicRaw, {tick(0), origin_, 0},
                                      {tick(1), origin_ + 1, 0}),
                  origin_,
                  collector::Recorder::Hooks{[](pid_t) {}, [](uint64_t) {},
                                             [this](const std::string& why) { failure = why; }}),
        region_(std::make_shared<Region>(1, RegionLayout{2, kRings, 1U << 15}, RegionSettings{})),
        reader_(region_) {
    recorder_.handle(collector::ImageJoined{region_, kPid, kPid, 1, "/bin/prog", "prog", origin_});
    collector::testing::claim_process(base_of(*region_), 0, kPid, UINT32_MAX, tick(0));
  }

  const Region& region() const { return *region_; }

  void write(Random& random) {
    namespace made = collector::testing;
    for (uint32_t slot = 0; slot < kRings; ++slot) {
      made::RingWriter ring(base_of(*region_), slot);
      ring.write(made::thread_start(tick(1), kPid, kPid + slot));
      const uint64_t count = random() % 250;
      for (uint64_t i = 1; i <= count; ++i) {
        const auto at = tick(static_cast<int64_t>(i) * 100 + slot);
        const uint64_t id = schema::make_id(slot, i);
        ring.write(made::allocation(EventKind::kMalloc, at, id, id * 64, random() % 5000,
                                    made::stack({random() % 99, 7}, static_cast<uint16_t>(i % 3))));
        if (i % 3 == 0) ring.write(made::release(at + 1, id, id * 64));
        if (i % 50 == 0) {
          const uint64_t start = 0x10000 * (1 + random() % 9);
          ring.write(made::module(i % 100 == 0 ? EventKind::kModuleUnload : EventKind::kModuleLoad,
                                  at + 2, start, start + 0x8000, "/lib/some.so"));
        }
      }
    }
  }
  void drain() {
    collector::Window window;
    reader_.drain(window.raw, window.rings, 1U << 24);
    window.began_raw_ns = collector::raw_now_ns();
    recorder_.handle(std::move(window));
  }
  void finish() {
    recorder_.handle(collector::ProcessGone{kPid, {true, 9}, collector::raw_now_ns()});
    drain();
    recorder_.handle(collector::Finish{collector::raw_now_ns(), 0});
  }
  std::string failure;

 private:
  uint64_t tick(int64_t ns) const { return static_cast<uint64_t>(origin_ + ns); }

  collector::TraceWriter writer_;
  const int64_t origin_;
  collector::PerfFaults perf_;
  collector::Recorder recorder_;
  RegionPtr region_;
  collector::RingReader reader_;
};

// Goal: a damaged region costs events, never the trace. Method: all kinds of events, half of them
// drained, then damage everywhere, also to what was drained; the file must be sound, complete, and
// every batch in it readable.
TEST(RingCut, ATraceOfADamagedRegionIsSound) {
  const std::string path = std::filesystem::temp_directory_path() /
                           ("heapledger-cut-" + std::to_string(getpid()) + ".db");
  Random random(43);
  for (int trial = 0; trial < 60; ++trial) {
    {
      CutRecording recording(path);
      recording.write(random);
      if (random() % 2 == 0) {
        recording.drain();
        recording.write(random);
      }
      for (int i = 0; i < 4; ++i) damage(recording.region(), random);
      recording.finish();
      ASSERT_EQ(recording.failure, "") << trial;
    }
    schema::Database db = schema::open_trace(path, schema::OpenMode::kReadOnly);
    ASSERT_EQ(db.query_text("PRAGMA integrity_check"), "ok") << trial;
    ASSERT_EQ(db.query_text("SELECT value FROM meta WHERE key = 'state'"), "complete") << trial;
    ASSERT_EQ(db.query_int("SELECT count(*) FROM event"),
              db.query_int("SELECT coalesce(sum(events), 0) FROM event_batch"))
        << trial;
  }
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace heapledger::testing
