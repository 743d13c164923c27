// SPDX-License-Identifier: Apache-2.0
// The collector as a program, with producers of the tests' own.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <fstream>

#include "interposer/collector/unique_fd.h"
#include "schema/trace_db.h"
#include "tests/interposer/collector/collector_process.h"

namespace heapledger::collector::testing {
namespace {

constexpr uid_t kNobody = 65534;
constexpr const char* kProducer = HEAPLEDGER_PRODUCER_FILE;

schema::Database open_result(const std::string& path) {
  return schema::open_trace(path, schema::OpenMode::kReadOnly);
}

// One recording, from start to "finished".
struct Recording {
  explicit Recording(const std::vector<std::string>& command, Environment environment = {},
                     uid_t user = 0)
      : output(folder.file("trace.db")) {
    environment["HEAPLEDGER_OUTPUT"] = output;
    CollectorProcess collector(environment, user);
    const auto ready = collector.wait_for("ready");
    if (ready.is_null()) return;
    std::vector<std::string> whole = command;
    whole[2] = folder.file(whole[2]);
    const pid_t child = collector.run(whole, ready.at("session"), user);
    attached = collector.attached;
    wait_status = collector.report_end(child);
    finished = collector.wait_for("finished");
    collector_status = collector.wait_exit();
  }

  Folder folder;
  std::string output;
  nlohmann::json attached, finished;
  int wait_status = -1;
  int collector_status = -1;
};

TEST(Recording, EveryEventOfAProgramIsInTheFile) {
  // Goal: the whole path, counts and exit status. Method: 300,000 numbered events, then SQL.
  const auto start = std::chrono::steady_clock::now();
  Recording recording({kProducer, "events", "none", "300000"});
  const auto seconds =
      std::chrono::ceil<std::chrono::seconds>(std::chrono::steady_clock::now() - start).count();
  ASSERT_FALSE(recording.finished.is_null());
  EXPECT_EQ(recording.collector_status, 0);
  EXPECT_EQ(recording.finished.at("events"), 300000);
  EXPECT_EQ(recording.finished.at("lost"), 0);
  schema::Database db = open_result(recording.output);
  EXPECT_EQ(db.query_int("SELECT count(*) FROM event"), 300000);
  EXPECT_EQ(db.query_int("SELECT count(DISTINCT id) FROM event WHERE id BETWEEN 1 AND 300000"),
            300000);
  EXPECT_EQ(db.query_int("SELECT count(*) FROM (SELECT time_ns - lag(time_ns) OVER (ORDER BY id) "
                         "AS step FROM event) WHERE step < 0"),
            0);
  EXPECT_EQ(db.query_int("SELECT exit_status FROM process WHERE id = 1"), 3);
  EXPECT_EQ(db.query_text("SELECT value FROM meta WHERE key = 'state'"), "complete");
  // Full batches, but for those that were written because they were a second old.
  EXPECT_GE(db.query_int("SELECT count(*) FROM event_batch"), 5);
  EXPECT_LE(db.query_int("SELECT count(*) FROM event_batch"), 5 + seconds);
}

TEST(Recording, FinishedTraceIsNobodysAnyMore) {
  // Goal: the next recording may replace a trace as soon as it is said to be finished. Method: take
  // the collector's lock on hearing so, twenty times, because it may end quickly.
  for (int round = 0; round < 20; ++round) {
    Folder folder;
    const std::string output = folder.file("trace.db");
    CollectorProcess collector(Environment{{"HEAPLEDGER_OUTPUT", output}});
    const auto ready = collector.wait_for("ready");
    ASSERT_FALSE(ready.is_null());
    collector.report_end(collector.run({kProducer, "events", "none", "10"}, ready.at("session")));
    ASSERT_FALSE(collector.wait_for("finished").is_null());
    const UniqueFd file(open(output.c_str(), O_RDONLY | O_CLOEXEC));
    EXPECT_EQ(flock(file.get(), LOCK_EX | LOCK_NB), 0) << round;
    collector.wait_exit();
  }
}

TEST(Recording, KilledProgramLosesNothingThatItPublished) {
  // Goal: SIGKILL mid-stream. Method: the program publishes the last id it wrote in a shared file;
  // the trace must hold all ids up to there, without a gap, and at most the one that was on its
  // way.
  for (int round = 0; round < 5; ++round) {
    Folder folder;
    const std::string progress = folder.file("progress");
    std::ofstream(progress) << std::string(4096, '\0');
    const int fd = open(progress.c_str(), O_RDWR);
    void* mapped = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    auto& published = *static_cast<std::atomic<uint64_t>*>(mapped);
    CollectorProcess collector(Environment{{"HEAPLEDGER_OUTPUT", folder.file("trace.db")}});
    const auto ready = collector.wait_for("ready");
    ASSERT_FALSE(ready.is_null());
    const pid_t child = collector.run({kProducer, "endless", progress}, ready.at("session"));
    while (published.load() < 20000U * static_cast<unsigned>(round + 1)) usleep(500);
    kill(child, SIGKILL);
    const int status = collector.report_end(child);
    EXPECT_TRUE(WIFSIGNALED(status));
    ASSERT_FALSE(collector.wait_for("finished").is_null());
    collector.wait_exit();
    schema::Database db = open_result(folder.file("trace.db"));
    const auto last = static_cast<int64_t>(published.load());
    const int64_t events = db.query_int("SELECT count(DISTINCT id) FROM event").value_or(0);
    EXPECT_GE(events, last);
    EXPECT_LE(events, last + 1);
    EXPECT_EQ(db.query_int("SELECT max(id) FROM event"), events);
    EXPECT_EQ(db.query_int("SELECT signal FROM process WHERE id = 1"), SIGKILL);
    EXPECT_EQ(db.query_int("SELECT events_lost FROM process WHERE id = 1"), 0);
    munmap(mapped, 4096);
    close(fd);
  }
}

TEST(Recording, ForkedChildHasItsOwnRowEventsAndStatus) {
  // Goal: a fork's slot is found, watched and closed. Method: parent and child write 1000 each.
  Recording recording({kProducer, "fork", "none", "1000"});
  ASSERT_FALSE(recording.finished.is_null());
  schema::Database db = open_result(recording.output);
  EXPECT_EQ(db.query_int("SELECT count(*) FROM process"), 2);
  EXPECT_EQ(db.query_text("SELECT group_concat(process || ':' || n) FROM (SELECT process, count(*) "
                          "AS n FROM event GROUP BY process)"),
            "1:1000,2:1000");
  EXPECT_EQ(db.query_text("SELECT forked || ' ' || parent || ' ' || image || ' ' || ended_by FROM "
                          "process WHERE id = 2"),
            "1 1 1 exit");
  EXPECT_EQ(db.query_int("SELECT exit_status FROM process WHERE id = 2"), 7);
}

// Faults on exactly the pages that the program touched, of a program that never says Hello.
void expect_faults(uid_t user, const std::string& source) {
  constexpr int64_t kPages = 3000;
  Recording recording({kProducer, "touch", "address", std::to_string(kPages)}, {}, user);
  ASSERT_FALSE(recording.finished.is_null());
  if (recording.attached.at("fault_source") == "getrusage") {
    GTEST_SKIP() << "perf is refused here: " << recording.attached.at("note");
  }
  EXPECT_EQ(recording.attached.at("fault_source"), source);
  int64_t start = 0;
  std::ifstream(recording.folder.file("address")) >> start;
  schema::Database db = open_result(recording.output);
  const std::string range = " WHERE address BETWEEN " + std::to_string(start) + " AND " +
                            std::to_string(start + kPages * 4096 - 1);
  EXPECT_EQ(db.query_int("SELECT count(*) FROM fault" + range), kPages);
  EXPECT_EQ(db.query_int("SELECT count(DISTINCT address / 4096) FROM fault" + range), kPages);
  EXPECT_EQ(db.query_int("SELECT recorded FROM process WHERE id = 1"), 0);
  EXPECT_GE(db.query_int("SELECT perf_minor FROM process WHERE id = 1"), kPages);
  EXPECT_EQ(db.query_int("SELECT coalesce(perf_lost, 0) FROM process WHERE id = 1"), 0);
}

TEST(Faults, EveryTouchedPageIsOneRow) { expect_faults(0, geteuid() == 0 ? "perf" : "perf-user"); }

TEST(Faults, AlsoForAUserWithoutPrivileges) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can become someone else";
  expect_faults(kNobody, "perf-user");
}

TEST(Faults, GetrusageCountsWherePerfIsNotUsed) {
  // Goal: --fault-source getrusage. Method: the same program; the count comes from its exit.
  Recording recording({kProducer, "touch", "address", "3000"},
                      {{"HEAPLEDGER_FAULT_SOURCE", "getrusage"}});
  ASSERT_FALSE(recording.finished.is_null());
  schema::Database db = open_result(recording.output);
  EXPECT_EQ(db.query_int("SELECT count(*) FROM fault_batch"), 0);
  EXPECT_GE(db.query_int("SELECT rusage_minor FROM process WHERE id = 1"), 3000);
  EXPECT_EQ(db.query_text("SELECT value FROM meta WHERE key = 'fault_source'"), "getrusage");
}

TEST(Recording, SnapshotIsServedWithinASecondOfBeingAskedFor) {
  // Goal: the handshake of marks and exit. Method: the program asks and waits.
  Recording recording({kProducer, "mark", "none"});
  EXPECT_EQ(recording.wait_status, 0);
  schema::Database db = open_result(recording.output);
  EXPECT_EQ(db.query_int("SELECT count(*) FROM snapshot WHERE reason = 'mark'"), 1);
  EXPECT_GE(db.query_int("SELECT count(*) FROM snapshot WHERE reason = 'start'"), 1);
  EXPECT_EQ(db.query_int("SELECT count(*) FROM snapshot WHERE rss_bytes != (SELECT sum(rss_bytes) "
                         "FROM region WHERE snapshot = snapshot.id)"),
            0);
}

TEST(Recording, ProgramThatWritesOverTheRegionDoesNotStopTheCollector) {
  // Goal: nonsense in shared memory is data. Method: random bytes over the region, ten times.
  for (int seed = 1; seed <= 10; ++seed) {
    Recording recording({kProducer, "scribble", "none", std::to_string(seed)});
    ASSERT_FALSE(recording.finished.is_null()) << seed;
    EXPECT_EQ(recording.collector_status, 0) << seed;
    schema::Database db = open_result(recording.output);
    EXPECT_EQ(db.query_text("SELECT value FROM meta WHERE key = 'state'"), "complete");
  }
}

TEST(Recording, TerminatedCollectorClosesTheFileAndReleasesTheProgram) {
  // Goal: SIGTERM. Method: terminate it while a program writes; the file is complete, and the
  // program is not left waiting for room (it goes on publishing).
  Folder folder;
  const std::string progress = folder.file("progress");
  std::ofstream(progress) << std::string(4096, '\0');
  CollectorProcess collector(Environment{{"HEAPLEDGER_OUTPUT", folder.file("trace.db")}});
  const auto ready = collector.wait_for("ready");
  ASSERT_FALSE(ready.is_null());
  const pid_t child = collector.run({kProducer, "endless", progress}, ready.at("session"));
  usleep(200000);
  kill(collector.pid(), SIGTERM);
  EXPECT_FALSE(collector.wait_for("finished").is_null());
  EXPECT_EQ(collector.wait_exit(), 0);
  const int fd = open(progress.c_str(), O_RDONLY);
  uint64_t before = 0;
  uint64_t after = 0;
  EXPECT_EQ(pread(fd, &before, 8, 0), 8);
  usleep(100000);
  EXPECT_EQ(pread(fd, &after, 8, 0), 8);
  EXPECT_GT(after, before);
  close(fd);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  schema::Database db = open_result(folder.file("trace.db"));
  EXPECT_EQ(db.query_text("SELECT value FROM meta WHERE key = 'state'"), "complete");
  EXPECT_GT(db.query_int("SELECT count(*) FROM event"), 0);
}

TEST(Recording, GoesOnAloneWhenRecordDies) {
  // Goal: the control channel's end is not the recording's. Method: hang up, let the program end.
  Folder folder;
  CollectorProcess collector(Environment{{"HEAPLEDGER_OUTPUT", folder.file("trace.db")}});
  const auto ready = collector.wait_for("ready");
  ASSERT_FALSE(ready.is_null());
  const pid_t child = collector.run({kProducer, "events", "none", "100000"}, ready.at("session"));
  collector.hang_up();
  waitpid(child, nullptr, 0);
  EXPECT_EQ(collector.wait_exit(), 0);
  schema::Database db = open_result(folder.file("trace.db"));
  EXPECT_EQ(db.query_int("SELECT count(*) FROM event"), 100000);
}

TEST(Start, ExistingOutputIsRefusedUnlessForced) {
  // Goal: nobody's file is overwritten. Method: an existing file, without and with FORCE.
  Folder folder;
  const std::string output = folder.file("trace.db");
  std::ofstream(output) << "precious";
  {
    CollectorProcess collector(Environment{{"HEAPLEDGER_OUTPUT", output}});
    const auto error = collector.wait_for("error");
    ASSERT_FALSE(error.is_null());
    EXPECT_NE(error.at("why").get<std::string>().find("--force"), std::string::npos);
    EXPECT_NE(collector.wait_exit(), 0);
  }
  std::string content;
  std::ifstream(output) >> content;
  EXPECT_EQ(content, "precious");
  CollectorProcess collector(Environment{{"HEAPLEDGER_OUTPUT", output}, {"HEAPLEDGER_FORCE", "1"}});
  EXPECT_FALSE(collector.wait_for("ready").is_null());
}

TEST(Start, UnwritableFolderIsAnError) {
  // Goal: said before the program starts. Method: a folder that does not exist.
  CollectorProcess collector(Environment{{"HEAPLEDGER_OUTPUT", "/no/such/folder/trace.db"}});
  EXPECT_FALSE(collector.wait_for("error").is_null());
  EXPECT_NE(collector.wait_exit(), 0);
}

}  // namespace
}  // namespace heapledger::collector::testing
