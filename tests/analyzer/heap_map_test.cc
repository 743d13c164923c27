// SPDX-License-Identifier: Apache-2.0
// The heap map: what was given back, cells that grow, how it is stored, how it is drawn. Live, free
// and top page by page: heap_image_test.cc.
#include "analyzer/replay/heap_map.h"

#include <sys/mman.h>

#include <random>

#include "analyzer/finalize/heap_map_pass.h"
#include "analyzer/render/render.h"
#include "analyzer/reports/map_picture.h"
#include "schema/error.h"
#include "tests/analyzer/analyzer_fixture.h"

namespace heapledger::analyzer {
namespace {

constexpr uint32_t kSeed = 20261123;

MapMoment random_moment(std::mt19937_64& random, const MapMoment* before) {
  MapMoment moment;
  uint64_t index = 0x7f00'0000'0000 / kPageBytes;
  for (int i = 0; i < 300; ++i) {
    index += random() % 5 == 0 ? random() % 100000 : 1;
    MapCell cell{index};
    // Most cells stay as they were, or are like their neighbours.
    if (before != nullptr && static_cast<size_t>(i) < before->cells.size() && random() % 3 != 0) {
      cell = before->cells[static_cast<size_t>(i)];
      if (!moment.cells.empty() && cell.index <= moment.cells.back().index) continue;
      index = cell.index;
    } else if (random() % 2 == 0) {
      cell.untouched = kPageBytes;
    } else {
      cell.live = random() % 3000;
      cell.free = random() % 1000;
      cell.top = kPageBytes - cell.live - cell.free;
    }
    moment.cells.push_back(cell);
  }
  return moment;
}

// Goal: a map is read as it was written. Method: random moments, each after the one before; and
// the bytes cut at every length, which must say so or give fewer cells.
TEST(HeapMapCells, AreReadAsTheyWereWritten) {
  std::mt19937_64 random(kSeed);
  MapMoment before;
  for (int round = 0; round < 50; ++round) {
    const MapMoment* last = round == 0 ? nullptr : &before;
    MapMoment moment = random_moment(random, last);
    const std::vector<uint8_t> bytes = encode_map_cells(moment, last);
    ASSERT_EQ(moment.cells, decode_map_cells(bytes, last)) << round;
    for (size_t length = 0; length < bytes.size(); length += 1 + round) {
      try {
        EXPECT_LE(decode_map_cells(std::span(bytes).first(length), last).size(),
                  moment.cells.size());
      } catch (const schema::Error&) {
      }
    }
    before = std::move(moment);
  }
  EXPECT_TRUE(encode_map_cells({}, nullptr).empty());
  const std::vector<uint8_t> same = encode_map_cells(before, &before);
  EXPECT_LT(same.size(), encode_map_cells(before, nullptr).size() / 2);
  EXPECT_THROW(decode_map_cells(same, nullptr), schema::Error) << "nothing to be the same as";
  const std::vector<uint8_t> endless = {0, 0xfe, 0xff, 0xff, 0xff, 0x7f, 1, 1, 1, 1, 1};
  EXPECT_THROW(decode_map_cells(endless, nullptr), schema::Error);
}

class HeapMapTest : public AnalyzerTest {
 protected:
  // The map of process 1 at its end.
  static HeapMap map_of(const TraceBuilder& builder) {
    builder.write("trace.db");
    schema::Database db = schema::open_trace("trace.db", schema::OpenMode::kReadOnly);
    const TraceInfo info = load_trace_info(db);
    Replay replay(db, info, 1, {});
    replay.run_to_end();
    HeapMap map;
    map.add(replay, builder.now(), true);
    return map;
  }
};

// Goal: pages that went back are told from those never touched, held or not. Method: a heap that is
// trimmed, dropped and touched anew; a mapping that comes and goes.
TEST_F(HeapMapTest, ReleasedPagesAreThoseThatWereThere) {
  constexpr uint64_t kMapping = 0x1000'0000;
  TraceBuilder trace;
  const uint32_t stack = trace.stack({"fill fill.cc:1", "main"});
  trace.grow(8 * kPageBytes).touch(kHeap, 4 * kPageBytes);
  trace.fault(kHeap + 7 * kPageBytes).trim(2 * kPageBytes);
  trace.drop_pages(kHeap + kPageBytes, 2 * kPageBytes).fault(kHeap + 2 * kPageBytes);
  trace.alloc(kHeap + 16, 4096 + 2048 - 16, stack);
  trace.map(kMapping, 4 * kPageBytes).alloc(kMapping + 16, 3 * kPageBytes, stack);
  trace.touch(kMapping, 2 * kPageBytes).free(kMapping + 16).unmap(kMapping, 4 * kPageBytes);
  const HeapMap map = map_of(trace);
  const uint64_t first = kHeap / kPageBytes;
  const uint64_t mapped = kMapping / kPageBytes;
  const std::vector<MapCell> expected = {
      {first, 4096, 0, 0, 0, 0},     {first + 1, 0, 0, 0, 0, 4096}, {first + 2, 0, 0, 4096, 0, 0},
      {first + 3, 0, 0, 4096, 0, 0}, {first + 4, 0, 0, 0, 4096, 0}, {first + 5, 0, 0, 0, 4096, 0},
      {first + 7, 0, 0, 0, 0, 4096}, {mapped, 0, 0, 0, 0, 4096},    {mapped + 1, 0, 0, 0, 0, 4096}};
  EXPECT_EQ(expected, map.moments().front().cells);
}

// Goal: a large heap has longer cells and loses no byte. Method: 2 GiB held, 100 pages of it
// touched, after a moment of single pages.
TEST_F(HeapMapTest, CellsGrowWithTheHeap) {
  constexpr uint64_t kBytes = uint64_t{2} << 30;
  TraceBuilder small;
  const uint32_t stack = small.stack({"fill fill.cc:1", "main"});
  small.grow(64 * kPageBytes).alloc(kHeap + 16, 40000, stack).touch(kHeap, 10 * kPageBytes);
  HeapMap map = map_of(small);
  ASSERT_EQ(kPageBytes, map.cell_bytes());
  const auto sum_of = [](const MapMoment& moment) {
    MapCell sum;
    for (const MapCell& cell : moment.cells) sum.add(cell);
    return sum;
  };
  const MapCell before = sum_of(map.moments()[0]);
  std::filesystem::remove("trace.db");
  TraceBuilder large;
  large.grow(kBytes).alloc(kHeap + 16, kBytes / 2, large.stack({"fill fill.cc:1", "main"}));
  for (uint64_t page = 0; page < 100; ++page) large.fault(kHeap + page * (kBytes / 100));
  large.write("trace.db");
  schema::Database db = schema::open_trace("trace.db", schema::OpenMode::kReadOnly);
  const TraceInfo info = load_trace_info(db);
  Replay replay(db, info, 1, {});
  replay.run_to_end();
  map.add(replay, large.now(), true);
  EXPECT_EQ(kBytes / HeapMap::kCellsMax, map.cell_bytes());
  EXPECT_EQ(before, sum_of(map.moments()[0]));
  const MapCell after = sum_of(map.moments()[1]);
  EXPECT_EQ(100 * kPageBytes, after.live + after.free + after.top);
  EXPECT_EQ(kBytes, after.bytes());
  EXPECT_LE(map.moments()[1].cells.size(), HeapMap::kCellsMax);
}

// Goal: what a character says. Method: cells of every kind.
TEST(HeapMapPicture, CharactersSayWhatMostIs) {
  EXPECT_EQ(' ', map_character({}));
  EXPECT_EQ('#', map_character({0, 4096, 0, 0, 0, 0}));
  EXPECT_EQ('-', map_character({0, 0, 4096, 0, 0, 0}));
  EXPECT_EQ('9', map_character({0, 4000, 96, 0, 0, 0}));
  EXPECT_EQ('0', map_character({0, 96, 4000, 0, 0, 0}));
  EXPECT_EQ('5', map_character({0, 2048, 2048, 0, 0, 0}));
  EXPECT_EQ('t', map_character({0, 100, 100, 3896, 0, 0}));
  EXPECT_EQ('.', map_character({0, 0, 0, 0, 4096, 0}));
  EXPECT_EQ('x', map_character({0, 0, 0, 96, 0, 4000}));
}

// Goal: the picture fits a terminal. Method: maps of one cell, of as many as there may be, in one
// stretch and in many.
TEST(HeapMapPicture, FitsATerminal) {
  std::mt19937_64 random(kSeed);
  for (const uint64_t distance : {uint64_t{1}, uint64_t{7}, uint64_t{1} << 30}) {
    for (const size_t count : {size_t{1}, size_t{5}, HeapMap::kCellsMax}) {
      HeapMap map;
      for (int i = 0; i < 70; ++i) {
        MapMoment moment{i * 1'000'000'000LL * 100'000, {}};
        for (size_t cell = 0; cell < count; ++cell) {
          moment.cells.push_back({0x7fff'0000'0000 / kPageBytes + cell * distance, random() % 4096,
                                  random() % 4096, 0, 0, 0});
        }
        map.add_stored(std::move(moment), uint64_t{1} << 40);
      }
      const std::vector<std::string> lines = draw_heap_map(map);
      EXPECT_GT(lines.size(), 32u);
      EXPECT_LT(lines.size(), 45u);
      for (const std::string& line : lines) EXPECT_LE(line.size(), kTextWidth) << line;
    }
  }
  EXPECT_TRUE(draw_heap_map({}).empty());
}

}  // namespace
}  // namespace heapledger::analyzer
