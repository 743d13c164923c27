// SPDX-License-Identifier: Apache-2.0
// The heap's image and its pinners against two judges: sums made cell by cell over random heaps,
// and the allocator itself, which is told to free what the report names.
#include "analyzer/replay/heap_image.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "analyzer/replay/heap_map.h"
#include "interposer/heap/allocator.h"
#include "interposer/simulated/model_os.h"
#include "schema/event.h"
#include "tests/analyzer/analyzer_fixture.h"

namespace heapledger::heap {
extern template class Allocator<Header16, ModelOs>;
}  // namespace heapledger::heap

namespace heapledger::analyzer {
namespace {

constexpr uint64_t kHeapBytes = 0x20000;
constexpr size_t kCells = kHeapBytes / 16;
constexpr uint64_t kPage = 4096;
constexpr TrimSettings brute_trim() { return {4096, 8192, {}}; }

// A heap of cells of 16 bytes, with caches kept as a list of chunks.
struct BruteHeap {
  struct Placed {
    uint64_t address, size;
    uint32_t site;
    int thread;
    bool live;
  };
  std::vector<Placed> blocks;
  std::vector<size_t> cells = std::vector<size_t>(kCells);  // 0: free; else 1 + index of a block.
  std::vector<size_t> cached;                               // Indexes of blocks.
  std::vector<bool> touched = std::vector<bool>(kHeapBytes / kPage);

  static uint64_t usable(const Placed& block) { return schema::usable_by_rule(block.size); }
  void fill(size_t index, size_t value) {
    const Placed& block = blocks[index];
    const size_t first = (block.address - 16 - kHeap) / 16;
    std::fill_n(cells.begin() + static_cast<ptrdiff_t>(first), usable(block) / 16 + 1, value);
  }
  bool is_cached(size_t index) const {
    return std::find(cached.begin(), cached.end(), index) != cached.end();
  }
  // glibc's rule for the cache, by its own sizes.
  bool goes_to_cache(size_t index, size_t cache_count) const {
    const Placed& block = blocks[index];
    const uint64_t policy = std::max<uint64_t>(32, (block.size + 8 + 15) / 16 * 16);
    const auto alike = std::count_if(cached.begin(), cached.end(), [&](size_t other) {
      return blocks[other].thread == block.thread && usable(blocks[other]) == usable(block);
    });
    return policy <= 1040 && static_cast<size_t>(alike) < cache_count;
  }
  uint64_t returned(uint64_t end) const {
    const TrimSettings trim = brute_trim();
    const uint64_t top = kHeap + kHeapBytes - end;
    if (top < trim.trim_threshold || top < trim.top_pad + 33) return 0;
    return (top - 33 - trim.top_pad) / kPage * kPage;
  }
  // The end of the highest cell in use, without the live blocks of some sites.
  uint64_t end_without(const std::vector<uint32_t>& sites) const {
    for (size_t i = kCells; i-- > 0;) {
      if (cells[i] == 0) continue;
      const Placed& block = blocks[cells[i] - 1];
      if (block.live && std::find(sites.begin(), sites.end(), block.site) != sites.end()) continue;
      return kHeap + (i + 1) * 16;
    }
    return kHeap;
  }
};

// One process of the trace, random.
BruteHeap random_heap(TraceBuilder& trace, std::mt19937& random, size_t cache_count,
                      const std::vector<uint32_t>& sites) {
  BruteHeap heap;
  trace.set("tcache_count", static_cast<int64_t>(cache_count)).policy("setting at start", 1, 0);
  trace.grow(kHeapBytes);
  for (int step = 0; step < 160; ++step) {
    const size_t length = 2 + random() % (step % 10 == 0 ? 200 : step % 2 == 0 ? 12 : 90);
    const size_t at = random() % (kCells - length);
    const auto begin = heap.cells.begin() + static_cast<ptrdiff_t>(at);
    const bool fits = std::all_of(begin, begin + static_cast<ptrdiff_t>(length),
                                  [](size_t cell) { return cell == 0; });
    const int thread = 1 + static_cast<int>(random() % 2);
    trace.thread(thread);
    if (fits && random() % 3 != 0) {
      heap.blocks.push_back({kHeap + at * 16 + 16, (length - 1) * 16 - random() % 16,
                             sites[random() % sites.size()], thread, true});
      heap.fill(heap.blocks.size() - 1, heap.blocks.size());
      trace.alloc(heap.blocks.back().address, heap.blocks.back().size, heap.blocks.back().site);
    } else if (heap.cells[at] != 0 && heap.blocks[heap.cells[at] - 1].live) {
      const size_t victim = heap.cells[at] - 1;
      heap.blocks[victim].live = false;
      heap.blocks[victim].thread = thread;  // Whose cache it goes to.
      trace.free(heap.blocks[victim].address);
      if (heap.goes_to_cache(victim, cache_count)) {
        heap.cached.push_back(victim);
      } else {
        heap.fill(victim, 0);
      }
    }
    if (random() % 4 == 0) {
      const uint64_t page = random() % (kHeapBytes / kPage);
      heap.touched[page] = true;
      trace.fault(kHeap + page * kPage);
    }
  }
  return heap;
}

void expect_figures(const BruteHeap& heap, const HeapImage& image) {
  uint64_t live = 0;
  uint64_t requested = 0;
  for (const auto& block : heap.blocks) {
    if (!block.live) continue;
    live += BruteHeap::usable(block);
    requested += block.size;
  }
  uint64_t cached = 0;
  for (const size_t index : heap.cached) cached += BruteHeap::usable(heap.blocks[index]) + 16;
  std::map<uint64_t, std::pair<uint64_t, uint64_t>> histogram;  // Power -> chunks, bytes.
  uint64_t free_bytes = 0;
  uint64_t largest = 0;
  uint64_t resident = 0;
  const auto add = [&](size_t cell, size_t cells) {
    const uint64_t bytes = cells * 16;
    free_bytes += bytes;
    largest = std::max(largest, bytes);
    uint64_t power = 1;
    while (power * 2 <= bytes) power *= 2;
    ++histogram[power].first;
    histogram[power].second += bytes;
    for (size_t i = cell; i < cell + cells; ++i) resident += heap.touched[i * 16 / kPage] ? 16 : 0;
  };
  for (size_t i = 0; i < kCells;) {
    size_t run = 1;
    while (i + run < kCells && heap.cells[i + run] == heap.cells[i]) ++run;
    const bool is_free = heap.cells[i] == 0 || heap.is_cached(heap.cells[i] - 1);
    if (is_free && run >= 2) add(i, run);
    i += run;
  }
  EXPECT_EQ(kHeapBytes, image.held_bytes);
  EXPECT_EQ(live, image.live_bytes);
  EXPECT_EQ(requested, image.requested_bytes);
  EXPECT_EQ(free_bytes, image.free_bytes);
  EXPECT_EQ(cached, image.cached_bytes);
  EXPECT_EQ(0u, image.fast_bytes);
  EXPECT_EQ(largest, image.largest_free_bytes);
  EXPECT_EQ(resident, image.free_resident_bytes);
  EXPECT_EQ(image.held_bytes, image.live_bytes + image.overhead_bytes + image.free_bytes);
  EXPECT_DOUBLE_EQ(1 - static_cast<double>(live) / kHeapBytes, image.external());
  ASSERT_EQ(histogram.size(), image.free_histogram.size());
  for (const HistogramRow& row : image.free_histogram) {
    EXPECT_EQ(histogram[row.bytes_min].first, row.chunks);
    EXPECT_EQ(histogram[row.bytes_min].second, row.bytes);
  }
}

// What each row holds, the live blocks of the rows above being gone: cells are simply ignored.
void expect_pinners(const BruteHeap& heap, const HeapImage& image) {
  std::vector<uint32_t> gone;
  uint64_t given = heap.returned(heap.end_without({}));
  for (const Pinner& row : image.pinners) {
    if (row.state != ChunkState::kLive) return;  // Freed chunks: the allocator's own test has them.
    gone.push_back(row.stack);
    const uint64_t total = heap.returned(heap.end_without(gone));
    EXPECT_EQ(total - std::min(total, given), row.held_bytes);
    EXPECT_LE(row.bytes_released_if_freed, row.held_bytes);
    uint64_t resident = 0;
    for (uint64_t at = kHeapBytes - total; at < kHeapBytes - std::min(total, given); at += kPage) {
      resident += heap.touched[at / kPage] ? kPage : 0;
    }
    EXPECT_EQ(resident, row.held_resident_bytes);
    given = std::max(given, total);
  }
}

void expect_page_holders(const BruteHeap& heap, const HeapImage& image) {
  uint64_t free_bytes = 0;
  std::map<uint32_t, uint64_t> live_of;
  for (size_t page = 0; page < heap.touched.size(); ++page) {
    if (!heap.touched[page]) continue;
    uint64_t live = 0;
    std::map<uint32_t, uint64_t> here;
    for (size_t cell = page * kPage / 16; cell < (page + 1) * kPage / 16; ++cell) {
      if (heap.cells[cell] == 0 || !heap.blocks[heap.cells[cell] - 1].live) continue;
      live += 16;
      here[heap.blocks[heap.cells[cell] - 1].site] += 16;
    }
    if (live == 0 || live == kPage) continue;
    free_bytes += kPage - live;
    for (const auto& [site, bytes] : here) live_of[site] += bytes;
  }
  uint64_t total = 0;
  ASSERT_EQ(live_of.size(), image.page_holders.size());
  for (const PageHolder& row : image.page_holders) {
    total += row.free_bytes;
    EXPECT_EQ(live_of[row.stack], row.live_bytes);
  }
  EXPECT_EQ(free_bytes, total);
}

// The heap map page by page.
void expect_map(const BruteHeap& heap, const Replay& replay, const HeapImage& image) {
  HeapMap map;
  map.add(replay, image.at_ns, true);
  ASSERT_EQ(kPage, map.cell_bytes());
  const std::vector<MapCell>& cells = map.moments().front().cells;
  ASSERT_EQ(heap.touched.size(), cells.size());
  const uint64_t top = heap.end_without({}) - kHeap;
  for (size_t page = 0; page < heap.touched.size(); ++page) {
    MapCell expected{(kHeap + page * kPage) / kPage};
    for (uint64_t at = page * kPage; at < (page + 1) * kPage; at += 16) {
      const size_t block = heap.cells[at / 16];
      const bool live = block != 0 && heap.blocks[block - 1].live;
      (!heap.touched[page] ? expected.untouched
       : at >= top         ? expected.top
       : live              ? expected.live
                           : expected.free) += 16;
    }
    EXPECT_EQ(expected, cells[page]) << page;
  }
}

class HeapImageTest : public AnalyzerTest {};

// Goal: every figure is what it says. Method: 1,000 random heaps, as processes of one trace; each
// figure also made from one cell per 16 bytes.
TEST_F(HeapImageTest, FiguresEqualBruteForceOnRandomHeaps) {
  constexpr int kRounds = 1000;
  std::mt19937 random(20251123);
  TraceBuilder trace;
  const std::vector<uint32_t> sites = {trace.stack({"a a.cc:1"}), trace.stack({"b b.cc:1"}),
                                       trace.stack({"c c.cc:1"}), trace.stack({"d d.cc:1"})};
  std::vector<BruteHeap> heaps;
  for (int round = 0; round < kRounds; ++round) {
    if (round != 0) trace.process(1000 + round);
    heaps.push_back(random_heap(trace, random, random() % 3 == 0 ? 0 : 1 + random() % 7, sites));
  }
  trace.write("trace.db");
  schema::Database db = schema::open_trace("trace.db", schema::OpenMode::kReadOnly);
  const TraceInfo info = load_trace_info(db);
  for (int round = 0; round < kRounds && !HasFailure(); ++round) {
    SCOPED_TRACE(round);
    Replay replay(db, info, round + 1, {});
    replay.run_to_end();
    const HeapImage image = make_heap_image(replay, trace.now(), brute_trim(), true);
    const BruteHeap& heap = heaps[static_cast<size_t>(round)];
    expect_figures(heap, image);
    expect_pinners(heap, image);
    expect_page_holders(heap, image);
    expect_map(heap, replay, image);
  }
}

// The allocator over a simulated space, its calls and system calls noted in a trace.
class NotedHeap {
 public:
  NotedHeap(TraceBuilder& trace, const heap::Settings& settings) : trace_(trace) {
    machine_.settings = settings;
    machine_.space.set_sink([this](const heap::SimulatedCall& call) {
      if (call.name != heap::CallName::kBrk || call.address == 0) return;
      break_ = call.address;
      const auto before = static_cast<int64_t>(break_) - call.bytes;
      if (!begun_) trace_.set("heap_start", before);
      begun_ = true;
      trace_.syscall(schema::SyscallName::kBrk, heap::cause_name(call.cause),
                     static_cast<int64_t>(break_), {break_}, 0);
    });
    heap_ = std::make_unique<Heap>(heap::ModelOs{&machine_});
  }

  uint64_t alloc(uint64_t size, uint32_t site) {
    const auto address = reinterpret_cast<uint64_t>(heap_->allocate(thread_, size));
    trace_.alloc(address, size, site, schema::EventKind::kMalloc, Heap::usable_size(at(address)));
    return address;
  }
  void free(uint64_t address) {
    trace_.free(address);
    heap_->release(thread_, at(address));
  }
  // As free(), unnoted.
  void free_afterwards(uint64_t address) { heap_->release(thread_, at(address)); }
  uint64_t break_end() const { return break_; }

 private:
  using Heap = heap::Allocator<heap::Header16, heap::ModelOs>;
  static void* at(uint64_t address) { return reinterpret_cast<void*>(address); }

  TraceBuilder& trace_;
  heap::Machine machine_;
  std::unique_ptr<Heap> heap_;
  Heap::ThreadState thread_;
  uint64_t break_ = 0;
  bool begun_ = false;
};

// Goal: "released if freed" is what the allocator then does. Method: random programs; the blocks of
// the first row are freed for real, in order of address, and the break tells.
TEST_F(HeapImageTest, WhatARowReleasesIsWhatTheAllocatorReleases) {
  constexpr int kRounds = 150;
  std::mt19937 random(7);
  int releasing = 0;
  int keeping = 0;
  for (int round = 0; round < kRounds; ++round) {
    SCOPED_TRACE(round);
    TraceBuilder trace;
    const uint32_t keep = trace.stack({"keep k.cc:1"});
    const uint32_t fill = trace.stack({"fill f.cc:1"});
    heap::Settings settings;
    NotedHeap heap(trace, settings);
    std::vector<uint64_t> fills;
    std::vector<uint64_t> kept;
    // Sizes of the cache, the fastbins and neither; kept blocks mostly near the end.
    const uint64_t keep_size = std::vector<uint64_t>{40, 100, 600, 1100, 2000, 70000}[random() % 6];
    const size_t count = 200 + random() % 400;
    for (size_t i = 0; i < count; ++i) {
      fills.push_back(heap.alloc(2000 + random() % 20000, fill));
      if (random() % 40 == 0 || i + 3 > count) kept.push_back(heap.alloc(keep_size, keep));
    }
    for (const uint64_t block : fills) heap.free(block);
    trace.write("trace.db");
    uint64_t said = 0;
    {
      schema::Database db = schema::open_trace("trace.db", schema::OpenMode::kReadOnly);
      const TraceInfo info = load_trace_info(db);
      Replay replay(db, info, 1, {});
      replay.run_to_end();
      const HeapImage image = make_heap_image(replay, trace.now(), TrimSettings(), true);
      ASSERT_FALSE(image.pinners.empty());
      ASSERT_EQ(keep, image.pinners.front().stack);
      said = image.pinners.front().bytes_released_if_freed;
    }
    std::filesystem::remove("trace.db");
    const uint64_t before = heap.break_end();
    std::sort(kept.begin(), kept.end());
    for (const uint64_t block : kept) heap.free_afterwards(block);
    const uint64_t released = before - heap.break_end();
    EXPECT_LE(said, released + kPage);
    EXPECT_LE(released, said + kPage);
    ++(said != 0 ? releasing : keeping);
  }
  EXPECT_GT(releasing, kRounds / 4) << "the rounds test nothing";
  EXPECT_GT(keeping, kRounds / 8);
}

}  // namespace
}  // namespace heapledger::analyzer
