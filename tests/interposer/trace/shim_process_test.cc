// SPDX-License-Identifier: Apache-2.0
// The shim in processes, threads and unfriendly circumstances: forks, signals, ends, a collector
// that dies; and what the library itself exports and needs.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <chrono>
#include <fstream>
#include <set>
#include <sstream>

#include "tests/interposer/trace/fake_collector.h"

namespace heapledger::testing {
namespace {

using schema::EventKind;

std::string victim(const std::string& name) {
  return std::string(HEAPLEDGER_VICTIMS) + "/victim_" + name;
}

std::string joined(const std::vector<std::string>& lines) {
  std::string result;
  for (const std::string& line : lines) result += line + "\n";
  return result;
}

uint64_t size_of(const Event& event) { return event.as<schema::AllocEvent>().size; }

int count_size(const FakeCollector& collector, EventKind kind, uint64_t size) {
  int count = 0;
  for (const Event& event : collector.of(kind)) count += size_of(event) == size;
  return count;
}

// Every id that ends was born, and nothing ends twice, over all processes of the image. What a
// child inherited may end in each of them once.
void expect_ids_unique(const FakeCollector& collector) {
  std::set<uint64_t> born;
  for (const Event& event : collector.of(EventKind::kMalloc)) {
    const uint64_t id = event.as<schema::AllocEvent>().id;
    if (id != 0) {
      EXPECT_TRUE(born.insert(id).second) << std::hex << id;
    }
  }
  std::set<std::pair<uint32_t, uint64_t>> ended;
  for (const Event& event : collector.of(EventKind::kFree)) {
    const uint64_t id = event.as<schema::FreeEvent>().ended_id;
    if (id != 0) {
      EXPECT_TRUE(ended.emplace(event.pid, id).second) << std::hex << id;
    }
  }
}

// One run of victim_manners.
struct Manners {
  explicit Manners(std::vector<std::string> arguments, const RegionOptions& options = {},
                   const Environment& extra = {})
      : collector(options) {
    arguments.insert(arguments.begin(), victim("manners"));
    result = run_recorded(collector, arguments, extra);
    collector.finish();
  }
  FakeCollector collector;
  RunResult result;
};

// Goal: threads come and go by the thousand; each gives its ring back and none is taken for
// another.
TEST(Shim, TenThousandThreadsFitIntoAFewRings) {
  FakeCollector collector({.ring_slots = 64});
  const RunResult result = run_recorded(collector, {victim("threads"), "10000"});
  collector.finish();
  EXPECT_EQ(result.status, 0);
  EXPECT_EQ(joined(collector.damage()), "");
  EXPECT_EQ(count_size(collector, EventKind::kMalloc, 100), 10000);
  EXPECT_EQ(collector.of(EventKind::kThreadEnd).size(), 10000U);
  EXPECT_EQ(collector.region().process(0).events_lost.load(), 0U);
  expect_ids_unique(collector);
}

TEST(Shim, TheSmallestStacksAreEnough) {
  FakeCollector collector;
  const RunResult result = run_recorded(collector, {victim("threads"), "20", "tiny"});
  collector.finish();
  EXPECT_EQ(result.status, 0);
  EXPECT_EQ(count_size(collector, EventKind::kMalloc, 100), 20);
}

// Goal: fork under load. Each child's calls are its own, ids never meet, and no fork hangs.
TEST(Shim, ForksOfAMultithreadedProgramAreProcessesOfTheirOwn) {
  FakeCollector collector({.process_slots = 64, .ring_slots = 256});
  const RunResult result = run_recorded(collector, {victim("forks")});
  collector.finish();
  EXPECT_EQ(result.status, 0);
  EXPECT_EQ(result.err, "");
  EXPECT_EQ(joined(collector.damage()), "");
  EXPECT_EQ(count_size(collector, EventKind::kMalloc, 77), 300);
  std::set<uint32_t> pids;
  for (const Event& event : collector.of(EventKind::kMalloc)) {
    if (size_of(event) == 77) pids.insert(event.pid);
  }
  EXPECT_EQ(pids.size(), 30U);
  EXPECT_EQ(collector.region().control().process_slots_used.load(), 31U);
  EXPECT_EQ(collector.hellos(), 1) << "children of fork need no handshake";
  for (uint32_t i = 1; i <= 30; ++i) {
    const schema::ProcessSlot& process = collector.region().process(i);
    EXPECT_EQ(process.exit_status.load(), 1U);
    EXPECT_EQ(process.events_lost.load(), 0U);
    EXPECT_LE(process.parent_fork_tick, process.start_tick);
  }
  expect_ids_unique(collector);
}

// Goal: calls made in signal handlers are recorded too, whatever they interrupt, in rings of their
// own level.
TEST(Shim, SignalHandlersAreRecorded) {
  FakeCollector collector;
  const RunResult result = run_recorded(collector, {victim("handlers")});
  collector.finish();
  EXPECT_EQ(result.status, 0);
  EXPECT_EQ(joined(collector.damage()), "");
  int rounds = 0, signals = 0;
  std::istringstream(result.out) >> rounds >> signals;
  EXPECT_GE(signals, 200);
  EXPECT_EQ(count_size(collector, EventKind::kMalloc, 64), rounds);
  EXPECT_EQ(count_size(collector, EventKind::kMalloc, 48), signals);
  int nested = 0;
  for (const Event& event : collector.events()) nested += event.has(schema::kNested);
  EXPECT_GT(nested, 0);
  EXPECT_EQ(collector.region().process(0).events_lost.load(), 0U);
}

TEST(Shim, KeepsErrno) { EXPECT_EQ(WEXITSTATUS(Manners({"errno"}).result.status), 0); }
TEST(Shim, KeepsNoDescriptor) {
  const RunResult without = run({victim("manners"), "descriptors"}, {});
  EXPECT_GT(WEXITSTATUS(without.status), 5);
  EXPECT_EQ(Manners({"descriptors"}).result.status, without.status);
}
TEST(Shim, HasNoChildren) { EXPECT_EQ(WEXITSTATUS(Manners({"wait"}).result.status), 0); }
TEST(Shim, SharesTheBreak) { EXPECT_EQ(WEXITSTATUS(Manners({"foreign_break"}).result.status), 0); }
// Goal: the program's heap is what its own calls make of it. Method: a program without any call has
// no heap, although libunwind was loaded and warmed up in it.
TEST(Shim, TakesNothingFromTheProgramsHeap) {
  FakeCollector collector;
  const RunResult result = run_recorded(collector, {"/bin/true"});
  collector.finish();
  EXPECT_EQ(result.status, 0);
  EXPECT_EQ(joined(collector.damage()), "");
  int recorder_calls = 0;
  for (const Event& event : collector.of(EventKind::kSyscall)) {
    const auto call = event.as<schema::SyscallEvent>();
    EXPECT_NE(call.origin, schema::Origin::kAllocator)
        << schema::kSyscallNames[static_cast<size_t>(call.name)];
    recorder_calls += call.origin == schema::Origin::kRecorder;
  }
  EXPECT_GT(recorder_calls, 0);
}
TEST(Shim, SurvivesMlockall) { EXPECT_EQ(WEXITSTATUS(Manners({"mlockall"}).result.status), 0); }
TEST(Shim, LeavesRoomUnderAnAddressSpaceLimit) {
  EXPECT_EQ(WEXITSTATUS(Manners({"address_space"}, {.ring_slots = 4096}).result.status), 0);
}

TEST(Shim, StatisticsHaveGlibcsForm) {
  const Manners run({"statistics"});
  EXPECT_EQ(WEXITSTATUS(run.result.status), 0);
  EXPECT_NE(run.result.err.find("Arena 0:\nsystem bytes     = "), std::string::npos);
  EXPECT_NE(run.result.err.find("Total (incl. mmap):\n"), std::string::npos);
}

TEST(Shim, RecordsMarks) {
  Manners run({"mark"});
  EXPECT_EQ(WEXITSTATUS(run.result.status), 0);
  const auto marks = run.collector.of(EventKind::kMark);
  ASSERT_EQ(marks.size(), 1U);
  EXPECT_EQ(marks[0].text(), "half way");
  EXPECT_FALSE(marks[0].stack.empty());
  EXPECT_GE(run.collector.region().process(0).snapshot_done.load(), 2U)
      << "the mark's and the exit's";
}

TEST(Shim, AnnouncesWhatIsExecuted) {
  Manners run({"spawn"});
  EXPECT_EQ(WEXITSTATUS(run.result.status), 0);
  std::vector<std::string> texts;
  for (const Event& event : run.collector.of(EventKind::kExec)) {
    std::string text = event.text();
    text.insert(event.as<schema::ExecEvent>().path_bytes, "|");
    for (char& c : text) c = c == 0 ? ' ' : c;
    texts.push_back(text.substr(text.rfind('/') + 1));
    EXPECT_NE(event.as<schema::ExecEvent>().pid, 0U);
  }
  ASSERT_EQ(texts.size(), 3U);
  EXPECT_EQ(texts[0], "true|true argument ");
  EXPECT_EQ(texts[1], "true|true vforked ");
  EXPECT_EQ(texts[2], "program|true argument ");
  EXPECT_EQ(run.collector.of(EventKind::kExecFailed).size(), 1U);
  EXPECT_EQ(run.collector.hellos(), 3) << "the two that ran say Hello themselves";
}

TEST(Shim, NoFollowLeavesChildrenAlone) {
  Manners run({"spawn"}, {}, {{"HEAPLEDGER_NO_FOLLOW", "1"}});
  EXPECT_EQ(WEXITSTATUS(run.result.status), 0);
  EXPECT_EQ(run.collector.hellos(), 1);
  EXPECT_EQ(run.collector.region().control().process_slots_used.load(), 1U);
}

// Goal: dlopen works as without us (DT_RUNPATH of the caller), and modules come and go in the
// trace.
TEST(Shim, DlopenIsTransparentAndRecorded) {
  Manners run({"dlopen"});
  EXPECT_EQ(WEXITSTATUS(run.result.status), 0);
  int loads = 0, unloads = 0;
  for (const Event& event : run.collector.events()) {
    if (event.kind != EventKind::kModuleLoad && event.kind != EventKind::kModuleUnload) continue;
    if (!event.text().ends_with("libplugin.so")) continue;
    (event.kind == EventKind::kModuleLoad ? loads : unloads) += 1;
    EXPECT_EQ(event.as<schema::ModuleEvent>().build_id_bytes, 20U);
  }
  EXPECT_EQ(loads, 1);
  EXPECT_EQ(unloads, 1);
  const auto notes = run.collector.of(EventKind::kNote);
  ASSERT_EQ(notes.size(), 1U);
  EXPECT_NE(notes[0].text().find("RTLD_DEEPBIND"), std::string::npos);
  EXPECT_EQ(count_size(run.collector, EventKind::kMalloc, 333), 1);
  EXPECT_EQ(count_size(run.collector, EventKind::kMalloc, 222), 1);
}

// Goal: the status is the program's own, and is known to the trace where the program said it.
TEST(Shim, EndsAsTheProgramEnds) {
  Manners by_exit({"_exit"});
  EXPECT_EQ(WEXITSTATUS(by_exit.result.status), 5);
  EXPECT_EQ(by_exit.collector.region().process(0).exit_status.load(), 6U);
  Manners quick({"quick_exit"});
  EXPECT_EQ(WEXITSTATUS(quick.result.status), 6);
  EXPECT_EQ(quick.collector.region().process(0).exit_status.load(), 7U);
  Manners late({"atexit"});
  EXPECT_EQ(late.result.status, 0);
  EXPECT_EQ(count_size(late.collector, EventKind::kMalloc, 10), 1);
  Manners aborted({"abort"});
  EXPECT_TRUE(WIFSIGNALED(aborted.result.status));
  EXPECT_EQ(WTERMSIG(aborted.result.status), SIGABRT);
  EXPECT_EQ(aborted.collector.region().process(0).exit_status.load(), 0U);
}

TEST(Shim, ADoubleFreeIsGlibcsMessageAndANote) {
  Manners run({"double_free"});
  EXPECT_EQ(WTERMSIG(run.result.status), SIGABRT);
  EXPECT_EQ(run.result.err, "free(): double free detected in tcache 2\n");
  const auto notes = run.collector.of(EventKind::kNote);
  ASSERT_EQ(notes.size(), 1U);
  EXPECT_EQ(notes[0].text(), "free(): double free detected in tcache 2");
  EXPECT_FALSE(notes[0].stack.empty());
}

// Goal: a full ring waits: nothing is lost although the reader is slow.
TEST(Shim, AFloodIsWaitedForNotLost) {
  Manners run({"flood", "100000"}, {.ring_bytes = 65536});
  EXPECT_EQ(run.result.status, 0);
  EXPECT_EQ(count_size(run.collector, EventKind::kMalloc, 100), 100000);
  EXPECT_GT(run.collector.region().ring(0).stalls.load(), 0U);
  EXPECT_EQ(run.collector.region().process(0).events_lost.load(), 0U);
}

// Goal: a collector that ends, or is gone without a word, does not keep the program.
TEST(Shim, AnEndedCollectorReleasesTheProgram) {
  FakeCollector collector({.ring_bytes = 65536});
  collector.pause();
  collector.region().control().recording.store(0);
  EXPECT_EQ(run_recorded(collector, {victim("manners"), "flood", "100000"}).status, 0);
  collector.finish();
  EXPECT_GT(collector.region().process(0).events_lost.load(), 100000U);
}

TEST(Shim, ADeadCollectorReleasesTheProgram) {
  FakeCollector collector({.ring_bytes = 65536});
  collector.pause();
  collector.stop_heart();
  const pid_t gone = fork();
  if (gone == 0) _exit(0);
  waitpid(gone, nullptr, 0);
  collector.region().control().collector_pid = static_cast<uint32_t>(gone);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(run_recorded(collector, {victim("manners"), "flood", "100000"}).status, 0);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(8));
  collector.finish();
  EXPECT_GT(collector.region().process(0).events_lost.load(), 100000U);
}

// Goal: a child that begins after the recording has ended runs as without us: `record` has told of
// that once. Method: a collector that refuses, and one that is gone.
TEST(Shim, ChildrenOfARecordingThatEndedSayNothing) {
  FakeCollector collector;
  collector.refuse();
  const RunResult refused = run_recorded(collector, {victim("manners"), "errno"});
  EXPECT_EQ(refused.status, 0);
  EXPECT_EQ(refused.err, "");
  const RunResult alone =
      run({victim("manners"), "errno"},
          {{"LD_PRELOAD", HEAPLEDGER_SHIM}, {schema::kSessionVariable, "heapledger-nobody"}});
  EXPECT_EQ(alone.status, 0);
  EXPECT_EQ(alone.err, "");
}

// Goal: two halves that are not of one build never misread each other: one line says so. Method: a
// collector that answers in another version.
TEST(Shim, ACollectorOfAnotherVersionIsOneLine) {
  FakeCollector collector;
  collector.speak_version(schema::kWireVersion + 1);
  const RunResult result = run_recorded(collector, {victim("manners"), "errno"});
  EXPECT_EQ(result.status, 0);
  EXPECT_EQ(result.err,
            "heapledger: not recorded: heapledger-collector and libheapledger.so are of different "
            "versions, and must be of one build\n");
  collector.finish();
  EXPECT_TRUE(collector.events().empty());
}

// Goal: where recording is not possible the program runs, with one line on stderr, or none if
// quiet. Method: a session that no socket can have.
TEST(Shim, ASessionThatCannotBeIsOneLine) {
  const std::string name(200, 'x');
  Environment environment = {{"LD_PRELOAD", HEAPLEDGER_SHIM}, {schema::kSessionVariable, name}};
  const RunResult loud = run({victim("manners"), "errno"}, environment);
  EXPECT_EQ(loud.status, 0);
  EXPECT_EQ(loud.err, "heapledger: not recorded: HEAPLEDGER_SESSION is not a name\n");
  environment["HEAPLEDGER_QUIET"] = "1";
  const RunResult quiet = run({victim("manners"), "errno"}, environment);
  EXPECT_EQ(quiet.status, 0);
  EXPECT_EQ(quiet.err, "");
}

TEST(Shim, RecordOffIsTheAllocatorAlone) {
  FakeCollector collector;
  const RunResult result =
      run_recorded(collector, {victim("manners"), "errno"}, {{"HEAPLEDGER_RECORD", "off"}});
  EXPECT_EQ(result.status, 0);
  EXPECT_EQ(collector.hellos(), 0);
}

// Goal: all forms of new and delete are calls of their own kinds; failures throw, return null and
// call the handler as C++ says.
TEST(Shim, OperatorsOfCxxKeepTheirPromises) {
  FakeCollector collector;
  const RunResult result = run_recorded(collector, {victim("operators")});
  collector.finish();
  EXPECT_EQ(WEXITSTATUS(result.status), 0) << result.err;
  std::set<uint64_t> sizes;
  int of_new = 0, of_array = 0, failed = 0;
  for (const Event& event : collector.events()) {
    if (event.kind != EventKind::kNew && event.kind != EventKind::kNewArray) continue;
    if (event.has(schema::kFailed)) ++failed;
    if (size_of(event) < 1001 || size_of(event) > 1012) continue;
    sizes.insert(size_of(event));
    (event.kind == EventKind::kNew ? of_new : of_array) += 1;
    EXPECT_EQ(event.kind == EventKind::kNewArray, size_of(event) % 2 == 0);
    const bool aligned = (size_of(event) - 1001) % 8 >= 4 || size_of(event) > 1010;
    EXPECT_EQ(event.alignment(), aligned ? 64U : 0U) << size_of(event);
  }
  EXPECT_EQ(sizes.size(), 12U);
  EXPECT_EQ(of_new, 6);
  EXPECT_EQ(of_array, 6);
  EXPECT_GE(failed, 4);
  EXPECT_EQ(collector.of(EventKind::kDeleteArray).size(), 6U);
}

// ---- The library itself.

std::vector<std::string> output_lines(const std::vector<std::string>& command) {
  const RunResult result = run(command, {});
  EXPECT_EQ(result.status, 0) << result.err;
  std::vector<std::string> lines;
  std::istringstream stream(result.out);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

// Goal: it exports what exports.map says, unversioned, and nothing else.
TEST(ShimLibrary, ExportsWhatTheMapSays) {
  std::set<std::string> wanted, found;
  std::ifstream map(HEAPLEDGER_EXPORTS);
  bool global = false;
  for (std::string line; std::getline(map, line);) {
    line = line.substr(0, line.find('#'));
    if (line.find("local:") != std::string::npos) global = false;
    std::istringstream words(line);
    for (std::string word; global && words >> word;) {
      EXPECT_EQ(word.back(), ';');
      wanted.insert(word.substr(0, word.size() - 1));
    }
    if (line.find("global:") != std::string::npos) global = true;
  }
  for (const std::string& line : output_lines({"nm", "-D", "--defined-only", HEAPLEDGER_SHIM})) {
    found.insert(line.substr(line.rfind(' ') + 1));
  }
  EXPECT_EQ(found, wanted);
  EXPECT_GT(wanted.size(), 70U);
}

// Goal: it needs libc and the dynamic linker, and no C++ run time; nor does it bind lazily.
TEST(ShimLibrary, NeedsLibcAndTheLinkerOnly) {
  std::set<std::string> needed;
  bool now = false;
  for (const std::string& line : output_lines({"readelf", "-dW", HEAPLEDGER_SHIM})) {
    now |= line.find("NOW") != std::string::npos;
    if (line.find("(NEEDED)") == std::string::npos) continue;
    const size_t start = line.find('[') + 1;
    needed.insert(line.substr(start, line.find(']') - start));
  }
  EXPECT_EQ(needed, (std::set<std::string>{"libc.so.6", "ld-linux-x86-64.so.2"}));
  EXPECT_TRUE(now);
  for (const std::string& line : output_lines({"nm", "-D", "--undefined-only", HEAPLEDGER_SHIM})) {
    const std::string name = line.substr(line.rfind(' ') + 1);
    EXPECT_FALSE(name.starts_with("_Z") || name.starts_with("__cxa_th") ||
                 name.starts_with("__gxx") || name.starts_with("_Unwind"))
        << name;
  }
}

// Goal: thread-local storage that never allocates: initial-exec, and little of it.
TEST(ShimLibrary, UsesLittleStaticThreadLocalStorage) {
  bool is_static = false;
  for (const std::string& line : output_lines({"readelf", "-dW", HEAPLEDGER_SHIM})) {
    is_static |= line.find("STATIC_TLS") != std::string::npos;
  }
  EXPECT_TRUE(is_static);
  for (const std::string& line : output_lines({"readelf", "-lW", HEAPLEDGER_SHIM})) {
    std::istringstream words(line);
    std::string type, offset, address, physical, file_bytes, memory_bytes;
    words >> type >> offset >> address >> physical >> file_bytes >> memory_bytes;
    if (type == "TLS") {
      EXPECT_LE(std::stoul(memory_bytes, nullptr, 16), 128U);
    }
  }
}

}  // namespace
}  // namespace heapledger::testing
