// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/snapshot.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>

namespace heapledger::collector {
namespace {

constexpr size_t kPage = 4096;

// An anonymous mapping of so many pages, without huge pages.
struct Mapping {
  explicit Mapping(size_t pages)
      : bytes(pages * kPage),
        start(static_cast<volatile char*>(
            mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
    madvise(const_cast<char*>(start), bytes, MADV_NOHUGEPAGE);
  }
  ~Mapping() { munmap(const_cast<char*>(start), bytes); }
  uint64_t address() const { return reinterpret_cast<uintptr_t>(start); }

  size_t bytes;
  volatile char* start;
};

TEST(PageScanner, RunsSayWhichPagesWereWritten) {
  // Goal: residency to the page, by both ways of asking. Method: write pages 3, 4 and 9 of 12.
  Mapping mapping(12);
  for (const size_t page : {3, 4, 9}) mapping.start[page * kPage] = 1;
  PageScanner scanner(getpid());
  ASSERT_TRUE(scanner.is_open());
  for (const bool by_entries : {false, true}) {
    Residency found;
    const uint64_t end = mapping.address() + mapping.bytes;
    ASSERT_TRUE(by_entries ? scanner.scan_by_entries(mapping.address(), end, found)
                           : scanner.scan(mapping.address(), end, found));
    EXPECT_EQ(found.runs, (std::vector<uint64_t>{3, 2, 4, 1, 2}));
    EXPECT_EQ(found.resident, 3U);
    EXPECT_EQ(found.pages, 12U);
  }
}

TEST(PageScanner, ManyRunsAreReadInSeveralCalls) {
  // Goal: the vector of one call does not bound the answer. Method: every second of 4096 pages.
  Mapping mapping(4096);
  for (size_t page = 0; page < 4096; page += 2) mapping.start[page * kPage] = 1;
  PageScanner scanner(getpid());
  Residency found;
  ASSERT_TRUE(scanner.scan(mapping.address(), mapping.address() + mapping.bytes, found));
  EXPECT_EQ(found.resident, 2048U);
  EXPECT_EQ(found.runs.size(), 4097U);  // A leading absent run of no pages.
  EXPECT_EQ(found.runs.front(), 0U);
}

TEST(Snapshot, OfAnEndingProcessIsWholeOrNone) {
  // Goal: no snapshot of half an address space. Method: children with 4 MiB in mappings of their
  // own end while they are looked at; to read them takes the kernel about 150 pieces.
  constexpr size_t kMappings = 512;
  constexpr size_t kPagesEach = 2;
  for (int i = 0; i < 60; ++i) {
    std::array<int, 2> ready{};
    std::array<int, 2> go{};
    ASSERT_EQ(pipe(ready.data()), 0);
    ASSERT_EQ(pipe(go.data()), 0);
    const pid_t child = fork();
    if (child == 0) {
      for (size_t j = 0; j < kMappings; ++j) {
        // Every second one is read-only in the end, so that none is merged with its neighbour.
        void* at = mmap(nullptr, kPagesEach * kPage, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (size_t page = 0; page < kPagesEach; ++page) {
          static_cast<volatile char*>(at)[page * kPage] = 1;
        }
        if (j % 2 == 0) mprotect(at, kPagesEach * kPage, PROT_READ);
      }
      char byte = 0;
      if (write(ready[1], &byte, 1) != 1 || read(go[0], &byte, 1) != 1) _exit(1);
      timespec nap = {0, i % 10 * 100'000};
      nanosleep(&nap, nullptr);
      _exit(0);
    }
    char byte = 0;
    ASSERT_EQ(read(ready[0], &byte, 1), 1);
    ASSERT_EQ(write(go[1], &byte, 1), 1);
    Snapshot snapshot;
    if (take_snapshot(child, SnapshotReason::kSchedule, snapshot)) {
      EXPECT_GE(snapshot.rss_bytes, kMappings * kPagesEach * kPage);
    }
    waitpid(child, nullptr, 0);
    for (const int fd : {ready[0], ready[1], go[0], go[1]}) close(fd);
  }
}

TEST(MappingsFile, KnowsWhenItsAddressSpaceIsGone) {
  const pid_t child = fork();
  if (child == 0) {
    for (;;) pause();
  }
  const MappingsFile file(child, "smaps");
  ASSERT_TRUE(file.read());
  EXPECT_TRUE(file.is_current());
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_FALSE(file.is_current());
}

TEST(Snapshot, SeesThisProcess) {
  // Goal: sums and lists hang together. Method: take one of ourselves with 1 MiB written.
  Mapping mapping(256);
  for (size_t page = 0; page < 256; ++page) mapping.start[page * kPage] = 1;
  Snapshot snapshot;
  ASSERT_TRUE(take_snapshot(getpid(), SnapshotReason::kMark, snapshot));
  EXPECT_GT(snapshot.rss_bytes, 1U << 20);
  EXPECT_GE(snapshot.rss_peak_bytes, snapshot.rss_bytes / 2);
  EXPECT_GE(snapshot.end_raw_ns, snapshot.raw_ns);
  const bool covered = std::any_of(
      snapshot.residency.begin(), snapshot.residency.end(), [&](const Residency& range) {
        return range.start <= mapping.address() &&
               mapping.address() < range.start + range.pages * kPage && range.resident >= 256;
      });
  EXPECT_TRUE(covered);
  EXPECT_FALSE(snapshot.threads.empty());
}

TEST(SnapshotSchedule, GrowsByHalfUpToAFiftiethOfTheAge) {
  // Goal: DESIGN's thinning out. Method: snapshots that take no time, over 100 simulated seconds.
  SnapshotSchedule schedule(0, {});
  int count = 0;
  int64_t last = 0;
  for (int64_t now = 0; now < 100'000'000'000; now += 1'000'000) {
    if (!schedule.is_due(now)) continue;
    EXPECT_LE(now - last, std::max<int64_t>(16'000'000, now / 40)) << now;
    schedule.taken(now, now);
    last = now;
    ++count;
  }
  EXPECT_GT(count, 150);
  EXPECT_LT(count, 400);
}

TEST(SnapshotSchedule, HasNoBudgetBeyondTwoPercent) {
  // Goal: snapshots nobody asked for stay cheap. Method: each takes 10 ms.
  SnapshotSchedule schedule(0, {});
  int64_t spent = 0;
  for (int64_t now = 0; now < 20'000'000'000; now += 20'000'000) {
    if (!schedule.is_due(now) || !schedule.has_budget(now)) continue;
    schedule.taken(now, now + 10'000'000);
    spent += 10'000'000;
  }
  EXPECT_GT(spent, 300'000'000);
  EXPECT_LE(spent, 20'000'000'000 / 50 + 40'000'000);
}

TEST(SnapshotSchedule, PeakIsNewOnlyFivePercentHigher) {
  // Goal: a slowly growing program is not one snapshot after the other. Method: ask in steps of 1
  // %.
  SnapshotSchedule schedule(0, {});
  int peaks = 0;
  for (uint64_t rss = 1'000'000; rss < 2'000'000; rss += 10'000) peaks += schedule.is_new_peak(rss);
  EXPECT_GT(peaks, 10);
  EXPECT_LT(peaks, 16);
  EXPECT_FALSE(schedule.is_new_peak(500'000));
}

}  // namespace
}  // namespace heapledger::collector
