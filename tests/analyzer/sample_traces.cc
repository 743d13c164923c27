// SPDX-License-Identifier: Apache-2.0
#include "tests/analyzer/sample_traces.h"

#include <stdexcept>
#include <string>

namespace heapledger::analyzer {

namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kMapped = 0x7f0000000000;

TraceBuilder only_start() { return {}; }

// Four blocks of 1 MiB, a small one above them; the four are freed, the small one holds the break.
TraceBuilder pinned() {
  TraceBuilder trace;
  const uint32_t load = trace.stack({"load_table load.cc:31", "main main.cc:10"});
  const uint32_t name = trace.stack({"remember_name name.cc:7", "main main.cc:12"});
  trace.grow(4 * kMiB + 0x21000, load);
  for (uint64_t i = 0; i < 4; ++i) {
    trace.alloc(kHeap + i * kMiB + 16, kMiB - 16, load).touch(kHeap + i * kMiB, kMiB);
  }
  trace.alloc(kHeap + 4 * kMiB + 16, 32, name).fault(kHeap + 4 * kMiB);
  for (uint64_t i = 0; i < 4; ++i) trace.free(kHeap + i * kMiB + 16);
  return trace.snapshot("exit");
}

// One stack maps, touches and unmaps a block 200 times under a fixed threshold.
TraceBuilder churn() {
  TraceBuilder trace;
  trace.set("mmap_threshold_dynamic", 0);
  const uint32_t frame = trace.stack({"decode_frame video.cc:120", "play video.cc:200", "main"});
  for (int i = 0; i < 200; ++i) {
    trace.map(kMapped, 0x40000, frame).alloc(kMapped + 16, 0x40000 - 32, frame);
    trace.touch(kMapped, 0x10000).free(kMapped + 16).unmap(kMapped, 0x40000, frame);
  }
  return trace;
}

// The top is trimmed and touched again, three times.
TraceBuilder refault() {
  TraceBuilder trace;
  const uint32_t phase = trace.stack({"run_phase phase.cc:9", "main"});
  for (int i = 0; i < 3; ++i) {
    trace.grow(4 * kMiB, phase).alloc(kHeap + 16, 4 * kMiB - 64, phase);
    trace.touch(kHeap, 4 * kMiB).free(kHeap + 16).trim(4 * kMiB, phase);
  }
  return trace;
}

// 400 blocks of 1 KiB never freed, among others that are; two threads; a failed call; realloc.
TraceBuilder leak() {
  TraceBuilder trace;
  const uint32_t leaking = trace.stack({"intern_name names.cc:55", "parse parse.cc:80", "main"});
  const uint32_t clean = trace.stack({"parse_line parse.cc:41", "parse parse.cc:78", "main"});
  trace.grow(kMiB, clean);
  for (uint64_t i = 0; i < 400; ++i) {
    const uint64_t block = kHeap + i * 2048 + 16;
    trace.thread(1).alloc(block, 1000, leaking);
    trace.alloc(block + 1040, 300, clean, schema::EventKind::kCalloc);
    if (i % 3 == 0) trace.realloc(block + 1040, block + 1040, 400, clean);
    if (i % 4 == 0) trace.fault(block);
    trace.thread(i % 2 == 0 ? 1 : 2).free(block + 1040);
  }
  trace.thread(1).failed_alloc(uint64_t{1} << 60, clean).program_map(kMapped, 0x5000, clean);
  return trace.snapshot("exit", kHeap, 100);
}

// A shell: a recorded parent, a forked child that writes to inherited memory, a static program.
TraceBuilder family() {
  TraceBuilder trace;
  const uint32_t table = trace.stack({"make_table sh.cc:3", "main"});
  const uint32_t job = trace.stack({"run_job sh.cc:30", "main"});
  trace.grow(0x40000, table).alloc(kHeap + 16, 0x8000, table).touch(kHeap, 0x9000);
  trace.alloc(kHeap + 0x9010, 64, table).fork(101);
  trace.alloc(kHeap + 0xa010, 128, job).fault(kHeap).fault(kHeap + 0xb000);
  trace.free(kHeap + 0x9010);
  return trace.not_recorded(102, "statically linked");
}

// No perf: two snapshots say which pages came.
TraceBuilder by_snapshot() {
  TraceBuilder trace;
  trace.meta("fault_source", "getrusage");
  const uint32_t fill = trace.stack({"fill fill.cc:5", "main"});
  trace.grow(0x40000, fill).alloc(kHeap + 16, 0x10000 - 32, fill);
  trace.snapshot("schedule", kHeap, 4).snapshot("exit", kHeap, 16);
  trace.set("rusage_minor", 26).set("rusage_start_minor", 8);
  return trace.set("perf_minor", 0);
}

// Two threads allocate in arenas of their own, the main one frees all but the last of each.
TraceBuilder arenas() {
  constexpr uint64_t kArenas[] = {0x7000'0000'0000, 0x7000'0000'0000 + (64 << 20)};
  TraceBuilder trace;
  const uint32_t send = trace.stack({"send_message send.cc:14", "serve serve.cc:70", "main"});
  const uint32_t settle = trace.stack({"settle main.cc:3", "main main.cc:9"});
  trace.grow(0x21000, settle).alloc(kHeap + 16, 4000, settle).fault(kHeap);
  for (int i = 0; i < 2; ++i) {
    trace.thread(2 + i).syscall(schema::SyscallName::kMprotect, "new heap", 0,
                                {kArenas[i], 4 * kMiB, 3}, send);
    for (uint64_t block = 0; block < 1500; ++block) {
      trace.alloc(kArenas[i] + 2064 + block * 2048, 2032, send);
    }
    trace.touch(kArenas[i], 3 * kMiB);
  }
  trace.thread(1);
  for (const uint64_t arena : kArenas) {
    for (uint64_t block = 0; block < 1499; ++block) trace.free(arena + 2064 + block * 2048);
  }
  return trace.snapshot("exit", {kArenas[0], kArenas[1]});
}

// Nothing in it is short: names, sizes, numbers of rows.
TraceBuilder wide() {
  static const std::string kName(230, 'n');
  static const std::string kAllocate = "std::vector<" + kName + ",std::allocator<" + kName +
                                       ">>::reserve /" + kName + "/" + kName +
                                       "/vector.tcc:1234567";
  static const std::string kRun = kName + "::operator() /" + kName + ".cc:7654321";
  TraceBuilder trace;
  trace.set("events_lost", 123'456'789'012).set("perf_lost", 987'654'321'098);
  constexpr uint64_t kLarge = uint64_t{1} << 33;
  uint32_t stacks[40];
  for (int i = 0; i < 40; ++i) {
    const std::string own = kName + std::to_string(i) + " /" + kName + ".cc:" + std::to_string(i);
    stacks[i] = trace.stack({kAllocate.c_str(), own.c_str(), kRun.c_str(), "main"});
  }
  trace.grow(2 * kLarge, stacks[0]).alloc(kHeap + 16, kLarge, stacks[0]);
  trace.touch(kHeap, 10 * kPageBytes).alloc(kHeap + kLarge + kMiB, kLarge / 2, stacks[1]);
  for (uint64_t i = 0; i < 40; ++i) {
    const uint64_t address = kMapped + i * kLarge / 8;
    trace.thread(1 + static_cast<int>(i % 5)).map(address, kLarge / 16, stacks[i]);
    trace.alloc(address + 16, kLarge / 16 - 100, stacks[i]);
    if (i % 3 == 0) trace.thread(1).free(address + 16).unmap(address, kLarge / 16, stacks[i]);
    trace.program_map(kMapped + (100 + i) * kLarge / 8, kLarge / 16, stacks[i]);
  }
  trace.free(kHeap + 16).snapshot("exit");
  for (int64_t pid = 4'194'300; pid < 4'194'304; ++pid) {
    trace.fork(pid).alloc(kHeap + 16, kLarge / 4, stacks[3]).fault(kHeap);
  }
  return trace;
}

// Losses of every kind.
TraceBuilder lossy() {
  TraceBuilder trace = pinned();
  trace.set("events_lost", 7).set("perf_lost", 3).set("incomplete_stacks", 2);
  trace.set("stacks_compared", 1990).set("stacks_mismatched", 4).set("stacks_incomparable", 10);
  return trace.meta("state", "recording");
}

}  // namespace

const std::vector<SampleTrace>& sample_traces() {
  static const std::vector<SampleTrace> kTraces = {{"only_start", &only_start},
                                                   {"pinned", &pinned},
                                                   {"churn", &churn},
                                                   {"refault", &refault},
                                                   {"leak", &leak},
                                                   {"family", &family},
                                                   {"by_snapshot", &by_snapshot},
                                                   {"lossy", &lossy},
                                                   {"arenas", &arenas},
                                                   {"wide", &wide}};
  return kTraces;
}

TraceBuilder sample_trace(const std::string& name) {
  for (const SampleTrace& trace : sample_traces()) {
    if (name == trace.name) return trace.make();
  }
  throw std::logic_error("no sample trace " + name);
}

}  // namespace heapledger::analyzer
