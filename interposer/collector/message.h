// SPDX-License-Identifier: Apache-2.0
// What the collector's threads tell the writer, and the queue it comes through.
//
// The queue is elastic: the bytes of windows beyond some tens of MiB go to the spool (spool.h), and
// come back from there when their turn is. Only when that is full too has the queue no room: the
// drain thread then leaves the rings alone, they fill, and the program waits. Rare messages pass
// always, and so does what the drain thread has already copied.
//
// Order. A process or image is announced before its first bytes can be in a window (it is pushed
// before the program gets its reply). That a process is gone is pushed behind the window that holds
// its last bytes (Drain::push_after_round).
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "interposer/collector/clock_map.h"
#include "interposer/collector/perf_faults.h"
#include "interposer/collector/region.h"
#include "interposer/collector/ring_reader.h"
#include "interposer/collector/snapshot.h"
#include "interposer/collector/spool.h"

namespace heapledger::collector {

// What one drain round copied.
struct Window {
  RawBytes raw;
  std::vector<RingPiece> rings;
  std::vector<PerfPiece> perf;
  int64_t began_raw_ns = 0;  // Perf records stamped before this are in this window or earlier.
  bool whole = true;         // Nothing that was there then is left in any ring.
  std::optional<ClockPair> pair;
  std::optional<Spool::Extent> spooled;  // `raw` is there. Only inside the queue.
};

// `heapledger record` is about to exec the program.
struct Launched {
  pid_t pid;
  std::string exe;
  std::string command;
  std::string reason;  // Not empty: it cannot be recorded.
  int64_t raw_ns;      // When `record` said so: the writer may hear of it after the program's end.
};

// A new image said Hello.
struct ImageJoined {
  RegionPtr region;
  pid_t pid;         // In our pid namespace.
  uint32_t own_pid;  // As it sees itself.
  pid_t ppid;
  std::string exe;
  std::string command;
  int64_t raw_ns;
};

// An image that called and was not taken in.
struct Unrecorded {
  pid_t pid;
  std::string reason;
  int64_t raw_ns;
};

struct ExitInfo {
  bool known = false;
  int wait_status = 0;
};

// What `record` knows from wait4.
struct Waited {
  pid_t pid;
  int wait_status;
  uint64_t minor, major, max_rss_bytes;
  int64_t raw_ns;
};

// A watched process has ended.
struct ProcessGone {
  pid_t pid;
  ExitInfo exit;
  int64_t raw_ns;
};

struct SnapshotTaken {
  pid_t pid;
  Snapshot snapshot;
};

// A mark from outside.
struct Marked {
  pid_t pid;
  std::string text;
  int64_t raw_ns;
};

struct MetaNote {
  std::string key;
  std::string text;
};

// Comes back through Recorder::Hooks when everything that was pushed before has been handled.
struct Barrier {
  uint64_t number;
};

// Behind everything else.
struct Finish {
  int64_t raw_ns;
  uint64_t perf_lost;          // By the kernel's own count.
  uint64_t syscalls_lost = 0;  // Likewise: records of system calls.
  SpoolUse spool = {};
};

using Message = std::variant<Window, Launched, ImageJoined, Unrecorded, Waited, ProcessGone,
                             SnapshotTaken, Marked, MetaNote, Barrier, Finish>;

class MessageQueue {
 public:
  // Windows may take `memory_bytes_max`, and what the spool takes.
  MessageQueue(size_t memory_bytes_max, Spool& spool)
      : memory_bytes_max_(memory_bytes_max), spool_(spool) {}

  // Windows are pushed by one thread, other messages by any.
  void push(Message message);
  // Room for another window? The drain thread asks before it copies.
  bool has_room() const;
  // Waits until there is a message, or `timeout` is over. One thread. Throws schema::Error where
  // the spool cannot be read.
  std::optional<Message> pop(std::chrono::milliseconds timeout);
  uint64_t backlog_bytes() const;

 private:
  const size_t memory_bytes_max_;
  Spool& spool_;
  mutable std::mutex mutex_;
  std::condition_variable filled_;
  std::deque<Message> messages_;
  size_t memory_bytes_ = 0;  // Of the windows that are not spooled.
  uint64_t spooled_bytes_ = 0;
};

}  // namespace heapledger::collector
