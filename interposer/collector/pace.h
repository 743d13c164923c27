// SPDX-License-Identifier: Apache-2.0
// How the packing thread gives way to the program.
//
// What is drained is safe, so packing can wait: where the program keeps all processors busy, each
// moment that packing takes is one that the program lacks, or waits for. A low priority and a short
// slice alone do not help a program whose threads sleep and wake by turns: each time it sleeps the
// packing thread is next, and whoever wakes finds a processor taken and its caches filled. So the
// thread looks whether it had to wait for a processor itself, and then leaves them alone for a
// while. The queue and its spool take what
// comes meanwhile; where too much lies there, or too long, packing goes on at its low priority, as
// it does once nobody is there to give way to.
//
// SCHED_IDLE would leave this to the kernel, but a thread without privileges cannot leave it again.
//
// Thread safety: hurry() by any thread, the rest by one. Cost: reading a file of /proc for every
// millisecond of packing.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>

#include "interposer/collector/unique_fd.h"

namespace heapledger::collector {

// What a thread has had of processors, since it began.
struct RunTimes {
  uint64_t run_ns = 0;
  uint64_t waited_ns = 0;  // Could have run, and others did.
};

// What is not packed yet.
struct Behind {
  uint64_t bytes = 0;
  uint64_t bytes_max = 0;  // With so many the program waits.
  int64_t age_ns = 0;      // Of the oldest.
};

// When to rest, and for how long.
class Pace {
 public:
  // A killed collector takes with it what is not packed.
  static constexpr int64_t kOldNs = 10'000'000'000;
  // Of what may lie there.
  static constexpr uint64_t kMuchShare = 4;

  // Between two messages. 0: go on.
  std::chrono::nanoseconds rest(const RunTimes& now, const Behind& behind);
  // Is it worth asking for the times? `cpu_ns`: of this thread.
  bool is_due(uint64_t cpu_ns) const { return cpu_ns >= looked_at_.run_ns + kLookEveryNs; }

 private:
  static constexpr uint64_t kLookEveryNs = 1'000'000;

  bool presses(const Behind& behind);

  RunTimes looked_at_;
  bool pressed_ = false;
  std::chrono::nanoseconds next_rest_{0};
};

// The pace of the calling thread.
class Patience {
 public:
  // In the thread that packs: lowers its priority.
  void begin();
  // Between two messages: comes back when it is time to go on.
  void rest(const Behind& behind);
  // From now on there is no rest. Any thread.
  void hurry();

 private:
  std::optional<RunTimes> times() const;

  UniqueFd schedstat_;  // Closed: the system does not say, so there are no rests.
  Pace pace_;
  std::mutex mutex_;  // Guards the next one.
  bool hurries_ = false;
  std::condition_variable hurried_;
};

}  // namespace heapledger::collector
