// SPDX-License-Identifier: Apache-2.0
// The replay's parts against simple models, and its rules one by one.
#include "analyzer/replay/replay.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <map>
#include <random>
#include <set>

#include "analyzer/replay/heap_image.h"
#include "analyzer/replay/id_table.h"
#include "tests/analyzer/analyzer_fixture.h"

namespace heapledger::analyzer {
namespace {

constexpr uint32_t kSeed = 20261122;

// Goal: FlatMap is a map. Method: random puts and takes beside std::map, keys in runs as ids are.
TEST(FlatMap, BehavesAsAMap) {
  std::mt19937 random(kSeed);
  FlatMap map;
  std::map<uint64_t, uint32_t> model;
  for (int step = 0; step < 200000; ++step) {
    const uint64_t key = (uint64_t{1 + random() % 3} << 40) + 1 + random() % 5000;
    if (random() % 2 == 0) {
      const auto value = static_cast<uint32_t>(random() % 1000);
      const auto found = model.find(key);
      const uint32_t old = found == model.end() ? FlatMap::kNone : found->second;
      ASSERT_EQ(old, map.put(key, value));
      model[key] = value;
    } else {
      const auto found = model.find(key);
      ASSERT_EQ(found == model.end() ? FlatMap::kNone : found->second, map.take(key));
      if (found != model.end()) model.erase(found);
    }
    ASSERT_EQ(model.size(), map.size());
  }
  for (const auto& [key, value] : model) ASSERT_EQ(value, map.find(key));
}

// Goal: IdTable is a map. Method: ids that count up in three threads, blocks that end at random,
// mostly young ones, beside std::map; a copy is the same map.
TEST(IdTable, BehavesAsAMap) {
  std::mt19937_64 random(kSeed);
  IdTable table;
  std::map<uint64_t, uint32_t> model;
  std::vector<uint64_t> live;
  uint64_t next[] = {1, (uint64_t{1} << 40) + 1000, uint64_t{7} << 40};
  for (int step = 0; step < 200000; ++step) {
    if (random() % 100 < 51 || live.empty()) {
      const uint64_t id = next[random() % 3]++;
      const auto number = static_cast<uint32_t>(random() % 100000);
      table.put(id, number);
      model[id] = number;
      live.push_back(id);
    } else {
      const size_t young = std::min<size_t>(live.size(), random() % 8 == 0 ? live.size() : 20);
      std::swap(live[live.size() - 1 - random() % young], live.back());
      ASSERT_EQ(model[live.back()], table.find(live.back()));
      ASSERT_EQ(model[live.back()], table.take(live.back()));
      ASSERT_EQ(IdTable::kNone, table.take(live.back())) << "it is gone";
      model.erase(live.back());
      live.pop_back();
    }
    ASSERT_EQ(model.size(), table.size());
  }
  IdTable copy(table);
  for (const auto& [id, number] : model) {
    ASSERT_EQ(number, table.find(id));
    ASSERT_EQ(number, copy.take(id));
  }
  EXPECT_EQ(0u, copy.size());
  EXPECT_EQ(model.size(), table.size());
}

// Goal: the block before and after any address is found. Method: beside std::map, addresses near
// each other and far apart, over leaf borders.
TEST(BlockIndex, FindsNeighboursAsAMapDoes) {
  std::mt19937_64 random(kSeed);
  BlockIndex index;
  std::map<uint64_t, uint32_t> model;
  const uint64_t bases[] = {0x1000, 0x3fff000, 0x7f0000000000, 0x7f00fffff000};
  const auto address = [&] { return bases[random() % 4] + random() % 0x4000 / 16 * 16; };
  for (int step = 0; step < 50000; ++step) {
    const uint64_t at = address();
    if (random() % 2 == 0) {
      const auto block = static_cast<uint32_t>(random() % 1000);
      index.put(at, block);
      model[at] = block;
    } else {
      index.erase(at);
      model.erase(at);
    }
    const uint64_t known = address();
    const auto exact = model.find(known);
    ASSERT_EQ(exact == model.end() ? BlockIndex::kNone : exact->second, index.find(known));
    const uint64_t asked = address() + random() % 16;
    const auto after = model.upper_bound(asked);
    const auto before = index.at_or_before(asked);
    ASSERT_EQ(after != model.begin(), before.has_value());
    if (before) {
      ASSERT_EQ(std::prev(after)->first, before->address);
      ASSERT_EQ(std::prev(after)->second, before->block);
    }
    const auto next = model.lower_bound(asked);
    const auto found = index.at_or_after(asked);
    ASSERT_EQ(next != model.end(), found.has_value());
    if (found) {
      ASSERT_EQ(next->first, found->address);
      ASSERT_EQ(next->second, found->block);
    }
  }
}

// Goal: pages and bytes are counted right at the edges. Method: a range that begins and ends inside
// resident pages.
TEST(PageSet, CountsPartsOfPages) {
  PageSet pages;
  EXPECT_TRUE(pages.add(0x1000));
  EXPECT_FALSE(pages.add(0x1fff));
  pages.add(0x3000);
  EXPECT_EQ(0x800u, pages.bytes(0x1800, 0x3000));
  EXPECT_EQ(0x800u + 0x10u, pages.bytes(0x1800, 0x3010));
  EXPECT_EQ(2u, pages.count(0x1800, 0x3010));
  EXPECT_EQ(0u, pages.remove(0x1800, 0x2000)) << "part of a page is not given back";
  EXPECT_EQ(1u, pages.remove(0x1000, 0x2000));
  EXPECT_FALSE(pages.contains(0x1000));
}

class ReplayTest : public AnalyzerTest {
 protected:
  struct Facts : ReplayObserver {
    void on_fault(const FaultFact& fact) override { faults.push_back(fact); }
    std::vector<FaultFact> faults;
  };

  // Plays the process to its end and hands the replay to `look`.
  template <typename Look>
  std::vector<FaultFact> play(const TraceBuilder& builder, int64_t process, Look look) {
    builder.write("trace.db");
    schema::Database db = schema::open_trace("trace.db", schema::OpenMode::kReadOnly);
    const TraceInfo info = load_trace_info(db);
    Facts facts;
    ReplayOptions options;
    options.observer = &facts;
    Replay replay(db, info, process, options);
    replay.run_to_end();
    look(replay);
    return facts.faults;
  }
  std::vector<FaultFact> play(const TraceBuilder& builder, int64_t process = 1) {
    return play(builder, process, [](const Replay&) {});
  }
};

// Goal: a fault inside calloc, before the block's event, is that block's; one of another thread is
// not.
TEST_F(ReplayTest, FaultInsideACallBelongsToTheBlockThatFollows) {
  TraceBuilder trace;
  const uint32_t site = trace.stack({"f f.cc:1"});
  trace.grow(0x10000).fault(kHeap + 0x2000).thread(2).fault(kHeap + 0x3000).thread(1);
  trace.alloc(kHeap + 16, 0x4000, site, schema::EventKind::kCalloc);
  const auto faults = play(trace);
  ASSERT_EQ(2u, faults.size());
  EXPECT_EQ(site, faults[0].site);
  EXPECT_EQ(1u, faults[0].block_id);
  EXPECT_EQ(0u, faults[1].block_id);
}

// Goal: the touch of a block's header is the block's.
TEST_F(ReplayTest, HeaderBelongsToItsBlock) {
  TraceBuilder trace;
  const uint32_t site = trace.stack({"f f.cc:1"});
  trace.grow(0x10000).alloc(kHeap + 0x1000, 64, site).fault(kHeap + 0xff8);
  EXPECT_EQ(site, play(trace).at(0).site);
}

// Goal: each kind of touch is told from the others. Method: first, upgrade, and a repeat after each
// way of giving memory back.
TEST_F(ReplayTest, TouchesAreTold) {
  constexpr uint64_t kMapped = 0x7f0000000000;
  TraceBuilder trace;
  const uint32_t site = trace.stack({"f f.cc:1"});
  trace.grow(0x10000).alloc(kHeap + 16, 0x8000, site);
  trace.fault(kHeap + 0x1000).fault(kHeap + 0x1000);                            // first, upgrade
  trace.drop_pages(kHeap + 0x1000, 0x1000).fault(kHeap + 0x1000);               // repeat
  trace.fault(kHeap + 0xf000).trim(0x1000).grow(0x1000).fault(kHeap + 0xf000);  // first, repeat
  trace.map(kMapped, 0x2000).fault(kMapped).unmap(kMapped, 0x2000);             // first
  trace.map(kMapped, 0x2000).fault(kMapped);                                    // repeat
  trace.remap(kMapped, 0x2000, kMapped + 0x10000, 0x4000);
  trace.fault(kMapped + 0x12000).fault(kMapped + 0x10000);  // first; moved page: upgrade
  std::vector<schema::Touch> touches;
  for (const FaultFact& fact : play(trace)) touches.push_back(fact.touch);
  using enum schema::Touch;
  // Faults in no block are settled late, so they come in another order; counted by kind.
  std::map<schema::Touch, int> counts;
  for (const schema::Touch touch : touches) ++counts[touch];
  EXPECT_EQ(4, counts[kFirst]);
  EXPECT_EQ(2, counts[kZeroUpgrade]);
  EXPECT_EQ(3, counts[kRepeat]);
}

// Goal: where the kernel told of every call, touches outside of the heap are told apart too; where
// it did not, they are not guessed. Method: the same story with and without.
TEST_F(ReplayTest, TouchesOutsideOfTheHeapAreToldWhereEveryCallIsKnown) {
  constexpr uint64_t kStack = 0x7f0000000000;
  constexpr uint64_t kFile = 0x7f0000100000;
  using schema::Origin;
  using schema::SyscallName;
  using enum schema::Touch;
  for (const bool all : {false, true}) {
    TraceBuilder trace;
    if (all) trace.meta("syscall_source", "kernel");
    const auto map = [&](uint64_t address, uint64_t flags, Origin origin) {
      trace.syscall(SyscallName::kMmap, "", static_cast<int64_t>(address),
                    {0, 0x4000, PROT_READ | PROT_WRITE, flags, 0, 0}, 0, origin);
    };
    map(kStack, MAP_PRIVATE | MAP_ANONYMOUS, Origin::kProgram);
    map(kFile, MAP_PRIVATE, Origin::kLoader);
    trace.fault(kStack).fault(kStack).fault(kFile).fault(kFile);  // first, upgrade; first, ?
    trace.syscall(SyscallName::kMadvise, "", 0, {kStack, 0x4000, MADV_DONTNEED}, 0,
                  Origin::kProgram);
    trace.fault(kStack);  // repeat
    trace.syscall(SyscallName::kMremap, "", kStack + 0x10000, {kStack, 0x4000, 0x8000, 1, 0}, 0,
                  Origin::kProgram);
    trace.fault(kStack + 0x10000).fault(kStack + 0x14000);  // upgrade, first
    std::vector<schema::Touch> touches;
    for (const FaultFact& fact : play(trace)) touches.push_back(fact.touch);
    const std::vector<schema::Touch> expected =
        all ? std::vector{kFirst, kZeroUpgrade, kFirst, kUnknown, kRepeat, kZeroUpgrade, kFirst}
            : std::vector{kFirst, kUnknown, kFirst, kUnknown, kUnknown, kFirst, kFirst};
    EXPECT_EQ(touches, expected) << all;
  }
}

// Goal: held memory follows brk, mmap, mremap, munmap and is the allocator's only.
TEST_F(ReplayTest, HeldBytesFollowTheSystemCalls) {
  constexpr uint64_t kMapped = 0x7f0000000000;
  TraceBuilder trace;
  trace.grow(0x10000).map(kMapped, 0x3000).remap(kMapped, 0x3000, kMapped, 0x8000);
  trace.trim(0x4000).program_map(kMapped + 0x100000, 0x9000);
  play(trace, 1,
       [](const Replay& replay) { EXPECT_EQ(0xc000u + 0x8000u, replay.memory().held_bytes()); });
  trace.unmap(kMapped, 0x8000);
  play(trace, 1, [](const Replay& replay) { EXPECT_EQ(0xc000u, replay.memory().held_bytes()); });
}

// Goal: two threads' calls overlap: a munmap that was entered later frees the range that an earlier
// mmap got. Method: mmap of 3 us entered first, munmap of the same range entered inside it.
TEST_F(ReplayTest, MemoryIsGivenAtEntryAndGotAtReturn) {
  constexpr uint64_t kMapped = 0x7f0000000000;
  TraceBuilder trace;
  trace.map(kMapped, 0x2000).at(9000).map(kMapped, 0x2000).unmap(kMapped, 0x2000);
  trace.write("trace.db");
  schema::Database db = schema::open_trace("trace.db", schema::OpenMode::kReadWrite);
  db.exec("UPDATE syscall SET duration_ns = 3000 WHERE name = 'mmap' AND time_ns = 10000");
  const TraceInfo info = load_trace_info(db);
  Replay replay(db, info, 1, {});
  replay.run_to_end();
  EXPECT_EQ(0x2000u, replay.memory().held_bytes());
}

// Goal: a forked child starts with its parent's blocks and pages, not with what came later there.
TEST_F(ReplayTest, ForkedChildInheritsTheHeap) {
  const TraceBuilder trace = sample_trace("family");
  const auto faults = play(trace, 2, [](const Replay& replay) {
    EXPECT_EQ(2u, replay.live().blocks());
    EXPECT_EQ(0x8000u + 128, replay.live().requested_bytes());
    uint64_t inherited = 0;
    replay.live().for_each([&](const Block& block) { inherited += block.inherited ? 1 : 0; });
    EXPECT_EQ(1u, inherited);
    EXPECT_EQ(0u, replay.unmatched_ends());
    EXPECT_EQ(0x40000u, replay.memory().held_bytes());
  });
  ASSERT_EQ(2u, faults.size());
  EXPECT_EQ(schema::Touch::kCow, faults[0].touch) << "a shared page is written";
}

// Goal: a second pass stops where the first one said. Method: the image after the step of the peak
// holds exactly the peak.
TEST_F(ReplayTest, SecondPassStopsAtTheSameStep) {
  sample_trace("pinned").write("trace.db");
  schema::Database db = schema::open_trace("trace.db", schema::OpenMode::kReadOnly);
  const TraceInfo info = load_trace_info(db);
  Replay replay(db, info, 1, {});
  replay.run_to_step(3);
  EXPECT_EQ(3u, replay.step());
  EXPECT_EQ(2u, replay.live().blocks());
  replay.run_to_end();
  EXPECT_EQ(1u, replay.live().blocks());
}

}  // namespace
}  // namespace heapledger::analyzer
