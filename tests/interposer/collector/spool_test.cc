// SPDX-License-Identifier: Apache-2.0
// The spool by itself, and the queue that overflows into it.
#include "interposer/collector/spool.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <filesystem>
#include <random>
#include <thread>

#include "interposer/collector/message.h"
#include "schema/error.h"

namespace heapledger::collector {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kPlenty = uint64_t{1} << 40;

std::string folder() { return std::filesystem::temp_directory_path().string(); }

std::vector<std::byte> bytes_of(size_t count, unsigned seed) {
  std::vector<std::byte> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(seed * 31 + i * 7);
  return bytes;
}

// Reads an extent back and compares.
bool holds(Spool& spool, const Spool::Extent& extent, const std::vector<std::byte>& expected) {
  std::vector<std::byte> read(extent.bytes);
  spool.read(extent, read.data());
  return read == expected;
}

TEST(Spool, GivesBackWhatWasPutInOrder) {
  // Goal: bytes survive. Method: random writes and reads, never more than a few unread.
  Spool spool(folder(), kPlenty);
  std::minstd_rand random(1);
  std::deque<std::pair<Spool::Extent, std::vector<std::byte>>> unread;
  for (unsigned i = 0; i < 500; ++i) {
    if (random() % 2 == 0) {
      auto bytes = bytes_of(1 + random() % 50000, i);
      const auto extent = spool.write(bytes);
      ASSERT_TRUE(extent.has_value());
      unread.emplace_back(*extent, std::move(bytes));
    } else if (!unread.empty()) {
      EXPECT_TRUE(holds(spool, unread.front().first, unread.front().second)) << i;
      unread.pop_front();
    }
  }
  while (!unread.empty()) {
    EXPECT_TRUE(holds(spool, unread.front().first, unread.front().second));
    unread.pop_front();
  }
  EXPECT_EQ(spool.used_bytes(), 0U);
  EXPECT_GT(spool.use().peak_bytes, 0U);
  EXPECT_GT(spool.use().total_bytes, spool.use().peak_bytes);
}

TEST(Spool, LeavesNoNameBehind) {
  // Goal: nothing to clean up. Method: the folder is empty while the spool holds bytes.
  const std::string own = folder() + "/spool_names_" + std::to_string(getpid());
  std::filesystem::create_directory(own);
  Spool spool(own, kPlenty);
  ASSERT_TRUE(spool.write(bytes_of(1000, 1)).has_value());
  EXPECT_TRUE(std::filesystem::is_empty(own));
  std::filesystem::remove_all(own);
}

TEST(Spool, RefusesBeyondItsLimitAndTakesAgainWhenThereIsRoom) {
  // Goal: the limit is of what is unread. Method: fill it, read one, write one.
  Spool spool(folder(), 4 * kPage);
  const auto page = bytes_of(kPage, 3);
  std::deque<Spool::Extent> extents;
  for (int i = 0; i < 4; ++i) {
    EXPECT_TRUE(spool.has_room(kPage));
    extents.push_back(spool.write(page).value());
  }
  EXPECT_FALSE(spool.has_room(1));
  EXPECT_FALSE(spool.write(page).has_value());
  EXPECT_TRUE(holds(spool, extents.front(), page));
  extents.pop_front();
  EXPECT_TRUE(spool.has_room(kPage));
  extents.push_back(spool.write(page).value());
  for (const Spool::Extent& extent : extents) EXPECT_TRUE(holds(spool, extent, page));
  EXPECT_EQ(spool.use().peak_bytes, 4 * kPage);
  EXPECT_EQ(spool.use().why_full, "");
}

// What the open file without a name below `folder` takes of the disk.
uint64_t disk_bytes_below(const std::string& folder) {
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code error;
    const std::string target = std::filesystem::read_symlink(entry.path(), error).string();
    struct stat file {};
    if (target.starts_with(folder + "/") && stat(entry.path().c_str(), &file) == 0) {
      return static_cast<uint64_t>(file.st_blocks) * 512;
    }
  }
  return 0;
}

TEST(Spool, GivesItsPagesBackSomeMiBAtATime) {
  // Goal: what was read leaves the disk, in few holes; what was not stays whole. Method: 24 extents
  // of 1 MiB under a limit of which 8 MiB are one hole; the count and the kernel's own of the file.
  constexpr uint64_t kMiB = uint64_t{1} << 20;
  constexpr uint64_t kSlack = 64 << 10;  // A file system's own blocks.
  const std::string own = folder() + "/spool_holes_" + std::to_string(getpid());
  std::filesystem::create_directory(own);
  Spool spool(own, 64 * kMiB);
  std::deque<std::pair<Spool::Extent, std::vector<std::byte>>> unread;
  for (unsigned i = 0; i < 24; ++i) {
    auto bytes = bytes_of(kMiB, i);
    const auto extent = spool.write(bytes);
    ASSERT_TRUE(extent.has_value());
    unread.emplace_back(*extent, std::move(bytes));
  }
  EXPECT_GE(disk_bytes_below(own), 24 * kMiB);
  for (uint64_t read = 1; read <= 23; ++read) {
    EXPECT_TRUE(holds(spool, unread.front().first, unread.front().second)) << read;
    unread.pop_front();
    const uint64_t kept = (24 - read / 8 * 8) * kMiB;  // Whole holes only.
    EXPECT_EQ(spool.used_bytes(), kept) << read;
    EXPECT_GE(disk_bytes_below(own), kept) << read;
    EXPECT_LE(disk_bytes_below(own), kept + kSlack) << read;
  }
  // A new extent finds its place behind, although a hole is still to come.
  const auto late = bytes_of(kMiB, 99);
  const auto extent = spool.write(late);
  ASSERT_TRUE(extent.has_value());
  EXPECT_TRUE(holds(spool, unread.front().first, unread.front().second));
  EXPECT_EQ(spool.used_bytes(), kMiB);
  EXPECT_TRUE(holds(spool, *extent, late));
  EXPECT_EQ(spool.used_bytes(), 0U);
  EXPECT_EQ(disk_bytes_below(own), 0U);
  // Begun anew: the hole counts from the new start.
  for (unsigned i = 0; i < 9; ++i) ASSERT_TRUE(spool.write(late).has_value());
  for (uint64_t i = 0; i < 8; ++i) EXPECT_TRUE(holds(spool, {i * kMiB, kMiB}, late));
  EXPECT_EQ(spool.used_bytes(), kMiB);
  std::filesystem::remove_all(own);
}

TEST(Spool, TakesAFailedWriteForItsLimit) {
  // Goal: a full disk loses nothing. Method: a file size limit as the disk's end; what was written
  // before is read back whole, and the limit is from then on what did fit.
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit tight{10 * kPage, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &tight);
  Spool spool(folder(), kPlenty);
  const auto bytes = bytes_of(4 * kPage, 5);
  const auto one = spool.write(bytes);
  const auto two = spool.write(bytes);
  const auto three = spool.write(bytes);
  setrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, handler);
  ASSERT_TRUE(one && two);
  EXPECT_FALSE(three);
  EXPECT_NE(spool.use().why_full, "");
  EXPECT_EQ(spool.use().limit_bytes, 8 * kPage);
  EXPECT_FALSE(spool.has_room(1));
  EXPECT_TRUE(holds(spool, *one, bytes));
  const auto again = spool.write(bytes);
  ASSERT_TRUE(again);
  EXPECT_TRUE(holds(spool, *two, bytes));
  EXPECT_TRUE(holds(spool, *again, bytes));
}

TEST(Spool, FolderThatCannotBeWrittenIsALimitOfNothing) {
  // Goal: no spool is no error. Method: a folder that does not exist.
  Spool spool("/no/such/folder", kPlenty);
  EXPECT_FALSE(spool.write(bytes_of(10, 1)).has_value());
  EXPECT_FALSE(spool.has_room(1));
  EXPECT_EQ(default_spool_limit("/no/such/folder"), 0U);
  EXPECT_GT(default_spool_limit("/"), 0U);
}

Window numbered_window(uint64_t number, size_t bytes) {
  Window window;
  const auto content = bytes_of(bytes, static_cast<unsigned>(number));
  std::copy(content.begin(), content.end(), window.raw.extend(bytes));
  window.began_raw_ns = static_cast<int64_t>(number);
  return window;
}

TEST(MessageQueue, WindowsGoThroughTheSpoolInOrderBetweenTwoThreads) {
  // Goal: nothing is lost or swapped, rare messages among them. Method: one thread pushes 300
  // windows into a queue of little memory, another takes them slowly at first.
  constexpr uint64_t kWindows = 300;
  constexpr size_t kBytes = 20000;
  Spool spool(folder(), kPlenty);
  MessageQueue queue(4 * kBytes, spool);
  std::thread pusher([&] {
    for (uint64_t i = 0; i < kWindows; ++i) {
      queue.push(numbered_window(i, kBytes));
      if (i % 10 == 0) queue.push(Barrier{i});
    }
  });
  uint64_t next = 0;
  uint64_t barriers = 0;
  while (next < kWindows) {
    auto message = queue.pop(std::chrono::milliseconds(1000));
    ASSERT_TRUE(message.has_value());
    if (next == 0) pusher.join();  // By now most of it is in the spool.
    if (const auto* barrier = std::get_if<Barrier>(&*message)) {
      EXPECT_EQ(barrier->number, next - 1);
      ++barriers;
      continue;
    }
    const auto& window = std::get<Window>(*message);
    EXPECT_EQ(window.began_raw_ns, static_cast<int64_t>(next));
    const auto expected = bytes_of(kBytes, static_cast<unsigned>(next));
    ASSERT_EQ(window.raw.size(), kBytes);
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), window.raw.data()));
    ++next;
  }
  EXPECT_EQ(barriers, kWindows / 10);
  EXPECT_EQ(queue.backlog_bytes(), 0U);
  EXPECT_GE(spool.use().peak_bytes, (kWindows - 10) * kBytes);
}

TEST(MessageQueue, HasAlwaysRoomForAFirstWindow) {
  // Goal: no limits are so tight that nothing goes on. Method: no memory, no spool.
  Spool spool(folder(), 0);
  MessageQueue queue(0, spool);
  EXPECT_TRUE(queue.has_room());
  queue.push(numbered_window(1, 100));
  EXPECT_FALSE(queue.has_room());
  EXPECT_TRUE(queue.pop(std::chrono::milliseconds(0)).has_value());
  EXPECT_TRUE(queue.has_room());
}

}  // namespace
}  // namespace heapledger::collector
