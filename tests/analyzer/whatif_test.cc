// SPDX-License-Identifier: Apache-2.0
// The model over recordings: the system calls of known call sequences (glibc's, as strace shows
// them on glibc 2.36), forks, the program's own break, mallopt, refusals, and that both layouts
// agree with the table that the final pass writes.
#include <gtest/gtest.h>

#include <random>
#include <span>
#include <vector>

#include "analyzer/whatif/model.h"
#include "tests/analyzer/analyzer_fixture.h"

namespace heapledger::analyzer {
namespace {

class WhatIfTest : public AnalyzerTest {
 protected:
  // The system calls of a process's own part, as text.
  std::string calls(const TraceBuilder& builder, int64_t process = 1,
                    LayoutKind layout = LayoutKind::kGlibc) {
    builder.write("trace.db");
    schema::Database db = schema::open_trace("trace.db", schema::OpenMode::kReadOnly);
    const TraceInfo info = load_trace_info(db);
    ModelOptions options;
    options.layout = layout;
    options.settings = recorded_settings(db, info, process);
    const std::unique_ptr<Model> model = make_model(options);
    RecordedOps reader(db, info, process);
    std::string text;
    model->set_sink([&](const heap::SimulatedCall& call, uint64_t) {
      text += std::string(text.empty() ? "" : "; ") + heap::call_name(call.name) + " ";
      if (call.name == heap::CallName::kMremap) text += std::to_string(call.old_bytes) + " ";
      text +=
          call.address == 0 && call.name == heap::CallName::kBrk ? "?" : std::to_string(call.bytes);
      if (!call.ok) text += " refused";
    });
    std::vector<Op> ops;
    while (reader.next_chunk(ops)) {
      for (const Op& op : ops) {
        if (op.kind == OpKind::kFork) text.clear();
        model->run({&op, 1});
      }
    }
    counts_ = model->counts();
    return text;
  }

  uint64_t count(heap::CallName name) const { return counts_.calls[static_cast<size_t>(name)]; }

  ModelCounts counts_;
  uint32_t stack_ = 0;
};

// Goal: one block, by the break. The addresses of the recording play no part.
TEST_F(WhatIfTest, TheFirstBlockMakesTheHeap) {
  TraceBuilder trace;
  EXPECT_EQ(calls(trace.alloc(0x7000, 1, stack_)), "brk ?; brk 135168");
  EXPECT_EQ(counts_.held_bytes_peak, 135168U);
  EXPECT_EQ(counts_.operations, 1U);
}

// Goal: a mapped block, the threshold it raises, and mremap.
TEST_F(WhatIfTest, MappedBlocksAreMappedResizedAndRaiseTheThreshold) {
  TraceBuilder trace;
  trace.alloc(0x1000000, 200000, stack_)
      .realloc(0x1000000, 0x1000000, 300000, stack_)
      .free(0x1000000)
      .alloc(0x2000000, 1 << 20, stack_)
      .free(0x2000000)
      .alloc(0x2000000, 1 << 20, stack_);
  EXPECT_EQ(calls(trace),
            "brk ?; brk 135168; mmap 200704; mremap 200704 303104; munmap 303104; mmap 1052672; "
            "munmap 1052672; brk 1048576");
}

// Goal: fixed settings of the recording are the model's.
TEST_F(WhatIfTest, TakesTheSettingsOfTheRecording) {
  TraceBuilder trace;
  trace.set("mmap_threshold", 1 << 30)
      .set("mmap_threshold_dynamic", 0)
      .set("top_pad", 0)
      .alloc(0x7000, 200000, stack_);
  EXPECT_EQ(calls(trace), "brk ?; brk 4096; brk 196608");
}

// Goal: malloc_trim is followed.
TEST_F(WhatIfTest, FollowsMallocTrim) {
  TraceBuilder trace;
  trace.alloc(0x7000, 100000, stack_).free(0x7000).policy("trim called", 0, 0);
  EXPECT_EQ(calls(trace), "brk ?; brk 135168; brk -131072");
}

// Goal: settings that the recording tells only where they are unusual. Method: small blocks freed
// from the last on merge with the top, which is trimmed, unless fastbins keep them.
TEST_F(WhatIfTest, TakesUnusualSettings) {
  for (const bool fastbins : {true, false}) {
    TraceBuilder trace;
    trace.set("tcache_count", 0);
    if (!fastbins) trace.policy("setting at start", 1, 0);
    constexpr uint64_t kBlocks = 9000;
    for (uint64_t i = 0; i < kBlocks; ++i) trace.alloc(0x7000 + i * 32, 24, stack_);
    for (uint64_t i = kBlocks; i-- > 0;) trace.free(0x7000 + i * 32);
    const bool trimmed = calls(trace).find("brk -") != std::string::npos;
    EXPECT_EQ(trimmed, !fastbins);
  }
}

// Goal: mallopt takes effect where it was called.
TEST_F(WhatIfTest, FollowsMallopt) {
  TraceBuilder trace;
  trace.alloc(0x7000, 150000, stack_)
      .policy("setting changed", -3, 1 << 20)  // M_MMAP_THRESHOLD
      .alloc(0x9000, 150000, stack_);
  EXPECT_EQ(calls(trace), "brk ?; brk 135168; mmap 151552; brk 147456");
}

// Goal: a block that got a header of 16 bytes takes 16 more where glibc's overhead of 8 sufficed.
TEST_F(WhatIfTest, LayoutsDifferByTheHeader) {
  TraceBuilder trace;
  for (uint64_t i = 0; i < 8000; ++i) trace.alloc(0x10000 + i * 64, 24, stack_);
  calls(trace);
  const ModelCounts glibc = counts_;
  calls(trace, 1, LayoutKind::kHeader16);
  EXPECT_EQ(glibc.held_bytes_peak, 2 * 135168U) << "8000 chunks of 32 and the cache";
  EXPECT_EQ(counts_.held_bytes_peak, 3 * 135168U) << "of 48";
}

// Goal: a child goes on with its parent's heap, as it was at the fork; only its own calls count.
TEST_F(WhatIfTest, ChildrenInheritTheHeap) {
  TraceBuilder trace;
  trace.alloc(0x7000, 100000, stack_).alloc(0x20000, 100000, stack_).fork(200);
  trace.alloc(0x50000, 50000, stack_).free(0x20000).alloc(0x20000, 90000, stack_);
  EXPECT_EQ(calls(trace, 1), "brk ?; brk 135168; brk 200704");
  // 50000 bytes fit into the inherited top; a freed inherited block serves the last request.
  EXPECT_EQ(calls(trace, 2), "");
  EXPECT_EQ(count(heap::CallName::kBrk), 0U);
  EXPECT_EQ(counts_.operations, 3U);
  EXPECT_EQ(counts_.held_bytes_peak, 135168U + 200704U);
}

// Goal: memory that the program took by sbrk lies in the heap's way: two steps where one would do.
TEST_F(WhatIfTest, TheProgramsOwnBreakIsRespected) {
  TraceBuilder trace;
  trace.grow(135168).alloc(0x7000, 130000, stack_).program_grow(4096);
  EXPECT_EQ(calls(trace), "brk ?; brk 135168");
  trace.alloc(0x40000, 100000, stack_);
  EXPECT_EQ(calls(trace), "brk ?; brk 135168; brk 229376; brk 8192");
}

// Goal: a program that gives its own memory back takes none of the heap's, although the heap has
// grown meanwhile where it had not in the recording.
TEST_F(WhatIfTest, TheProgramTakesNoMemoryOfTheHeap) {
  TraceBuilder trace;
  trace.grow(135168).alloc(0x7000, 130000, stack_).program_grow(4096);
  trace.alloc(0x40000, 100000, stack_).program_grow(-4096).alloc(0x90000, 130000, stack_);
  EXPECT_EQ(calls(trace), "brk ?; brk 135168; brk 229376; brk 8192");
  trace.alloc(0xc0000, 100000, stack_);
  EXPECT_EQ(calls(trace), "brk ?; brk 135168; brk 229376; brk 8192; brk 225280");
}

// Goal: what got no memory gets none in the model: the same refused calls, and no block.
TEST_F(WhatIfTest, FailedCallsFail) {
  TraceBuilder trace;
  trace.alloc(0x7000, 10, stack_).failed_alloc(uint64_t{1} << 40, stack_).alloc(0x8000, 10, stack_);
  EXPECT_EQ(calls(trace),
            "brk ?; brk 135168; mmap 1099511631872 refused; brk 1099511627776 refused; "
            "mmap 1099512676352 refused");
  EXPECT_EQ(counts_.held_bytes_peak, 135168U);
}

// Goal: many models of one reading. Method: chunks handed to both layouts; each is as alone.
TEST_F(WhatIfTest, OneReadingFeedsManyModels) {
  TraceBuilder trace;
  for (uint64_t i = 0; i < 40000; ++i) {
    trace.alloc(0x10000, 1000 + i % 5000, stack_).alloc(0x90000 + i * 4096, 24, stack_);
    trace.free(0x10000);
  }
  std::vector<uint64_t> alone;
  for (const LayoutKind layout : {LayoutKind::kGlibc, LayoutKind::kHeader16}) {
    calls(trace, 1, layout);
    alone.push_back(count(heap::CallName::kBrk));
  }
  schema::Database db = schema::open_trace("trace.db", schema::OpenMode::kReadOnly);
  const TraceInfo info = load_trace_info(db);
  ModelOptions options;
  const auto glibc = make_model(options);
  options.layout = LayoutKind::kHeader16;
  const auto header = make_model(options);
  RecordedOps reader(db, info, 1);
  std::vector<Op> ops;
  size_t chunks = 0;
  for (; reader.next_chunk(ops); ++chunks) {
    glibc->run(ops);
    header->run(ops);
  }
  EXPECT_GT(chunks, 1U);
  EXPECT_EQ(glibc->counts().operations, 120000U);
  EXPECT_EQ(glibc->counts().calls[0], alone[0]);
  EXPECT_EQ(header->counts().calls[0], alone[1]);
  EXPECT_GT(alone[1], alone[0]);
}

// Goal: pages that a program touches, headers, and what calloc clears are resident, and no others.
// Method: a block of 400 KiB in the break, of which 3 pages are written; the same by calloc of
// recycled memory; a mapped block that is never touched.
TEST_F(WhatIfTest, KnowsResidentPages) {
  ModelOptions options;
  options.space.residency = true;
  options.settings.mmap_threshold = 1 << 20;
  options.settings.trim_threshold = SIZE_MAX;
  const auto model = make_model(options);
  constexpr size_t kKiB = 1024;
  constexpr size_t kPage = 4 * kKiB;
  Op op;
  op.block = 0;
  op.size = 400 * kKiB;
  model->run({&op, 1});
  const size_t headers = model->space().resident_bytes();
  EXPECT_LE(headers, 2 * kPage) << "the block's and the top's";
  EXPECT_EQ(model->touch(0, 100 * kKiB, 2 * kPage + 1), 3U);
  EXPECT_EQ(model->touch(0, 100 * kKiB, kPage), 0U);
  EXPECT_EQ(model->space().resident_bytes(), headers + 3 * kPage);
  op.kind = OpKind::kRelease;
  model->run({&op, 1});
  op.kind = OpKind::kZeroed;
  model->run({&op, 1});
  EXPECT_GE(model->space().resident_bytes(), 400 * kKiB);
  EXPECT_LE(model->space().resident_bytes(), 400 * kKiB + 3 * kPage);
  const size_t before = model->space().resident_bytes();
  op = Op{.size = 4 << 20, .block = 1};
  model->run({&op, 1});
  EXPECT_EQ(model->space().resident_bytes(), before + kPage);
}

// Goal: a model put back where it was goes on as if nothing had happened. Method: one goes straight
// through random calls, another is taken back to the middle twice.
TEST_F(WhatIfTest, AModelGoesBackToAnImage) {
  std::mt19937 random(7);
  std::vector<Op> ops;
  std::vector<uint32_t> live;
  uint32_t blocks = 0;
  for (int i = 0; i < 40000; ++i) {
    Op op;
    if (live.size() > 300 || (!live.empty() && random() % 3 == 0)) {
      std::swap(live[random() % live.size()], live.back());
      op.kind = OpKind::kRelease;
      op.block = live.back();
      live.pop_back();
    } else {
      op.size = random() % 50 == 0 ? random() % 300000 : random() % 3000;
      op.block = blocks++;
      live.push_back(op.block);
    }
    ops.push_back(op);
  }
  const std::span<const Op> first(ops.data(), 20000);
  const std::span<const Op> second(ops.data() + 20000, 20000);
  for (const LayoutKind layout : {LayoutKind::kGlibc, LayoutKind::kHeader16}) {
    ModelOptions options;
    options.layout = layout;
    options.space.residency = true;
    const auto straight = make_model(options);
    straight->run(first);
    straight->run(second);
    const auto model = make_model(options);
    model->run(first);
    const auto image = model->save();
    for (int round = 0; round < 3; ++round) {
      model->run(second);
      EXPECT_EQ(model->counts().calls, straight->counts().calls);
      EXPECT_EQ(model->counts().held_bytes_peak, straight->counts().held_bytes_peak);
      EXPECT_EQ(model->space().resident_bytes(), straight->space().resident_bytes());
      EXPECT_EQ(model->counts().operations, 40000U);
      model->restore(*image);
    }
    EXPECT_EQ(model->counts().operations, 20000U);
  }
}

// Goal: forks of forks: the final pass, which plays each process once, has what a model of each
// alone gives.
TEST_F(WhatIfTest, ForksArePlayedInTheMiddleOfTheirParents) {
  std::mt19937 random(3);
  TraceBuilder trace;
  uint64_t address = 0x10000;
  const auto some_calls = [&](int count) {
    std::vector<uint64_t> mine;
    for (int i = 0; i < count; ++i) {
      if (!mine.empty() && random() % 3 == 0) {
        trace.free(mine.back());
        mine.pop_back();
      } else {
        trace.alloc(address += 0x100000, random() % 40 == 0 ? random() % 200000 : random() % 2000,
                    stack_);
        mine.push_back(address);
      }
    }
  };
  some_calls(2000);
  for (int child = 0; child < 4; ++child) {
    trace.fork(200 + child);  // Of the one before: four generations.
    some_calls(1500);
  }
  Trace written = open(trace);
  schema::Statement select =
      written.db.prepare("SELECT process, brk, mmap, munmap, held_bytes_peak FROM fidelity");
  int rows = 0;
  for (; select.step(); ++rows) {
    calls(trace, select.column_int(0));
    EXPECT_EQ(select.column_uint(1), count(heap::CallName::kBrk));
    EXPECT_EQ(select.column_uint(2), count(heap::CallName::kMmap));
    EXPECT_EQ(select.column_uint(3), count(heap::CallName::kMunmap));
    EXPECT_EQ(select.column_uint(4), counts_.held_bytes_peak);
  }
  EXPECT_EQ(rows, 5);
}

// Goal: the table that reports read is what the model gives. Method: a family of processes.
TEST_F(WhatIfTest, TheFinalPassStoresIt) {
  const TraceBuilder family = sample_trace("family");
  Trace trace = open(family);
  const int64_t rows = trace.db.query_int("SELECT count(*) FROM fidelity").value_or(0);
  EXPECT_EQ(rows, trace.db.query_int("SELECT sum(recorded) FROM process").value_or(-1));
  schema::Statement select =
      trace.db.prepare("SELECT process, brk, mmap, held_bytes_peak FROM fidelity");
  while (select.step()) {
    calls(family, select.column_int(0));
    EXPECT_EQ(select.column_uint(1), count(heap::CallName::kBrk));
    EXPECT_EQ(select.column_uint(2), count(heap::CallName::kMmap));
    EXPECT_EQ(select.column_uint(3), counts_.held_bytes_peak);
  }
}

}  // namespace
}  // namespace heapledger::analyzer
