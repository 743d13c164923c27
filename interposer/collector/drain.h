// SPDX-License-Identifier: Apache-2.0
// The drain thread: empties rings and perf buffers promptly, and does nothing else, so that the
// program never waits for packing unless the queue and its spool are full.
//
// A round copies everything below the heads into one window and sends it to the writer. Unless that
// was much, the thread then sleeps on the doorbells of all regions, which a ring rings when it is
// half full, for 5 ms at most: perf buffers have no doorbell of ours, and 5 ms is half of what the
// smallest of them holds under a storm of faults. Not for less: each waking takes a processor from
// the program, and wakes the writer too. But where a program fills half a ring in that time, all
// processors are mostly busy, and who is woken by its doorbell may come too late, so that the
// program waits: then for 2 ms.
//
// Thread safety: all public functions may be called from any thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "interposer/collector/futex.h"
#include "interposer/collector/kernel_syscalls.h"
#include "interposer/collector/message.h"

namespace heapledger::collector {

class Drain {
 public:
  // `on_request` is called (in the drain thread) when a process asks for a snapshot or a process
  // slot was taken that was not seen before. The references must outlive this.
  Drain(MessageQueue& queue, PerfFaults& perf, KernelSyscalls& syscalls, schema::Clock clock,
        std::function<void()> on_request);
  ~Drain();

  void add_region(RegionPtr region);
  // Pushes the message behind a whole round that begins after this call.
  void push_after_round(Message message);
  // Stops after a last round; recording is set to 0 in every region.
  void stop();
  // Sets recording to 0 at once and drops all that comes from now on: nothing can be written.
  void give_up();

 private:
  void run();
  // Returns the bytes copied. `whole`: nothing that was there at the start is left.
  size_t round(bool& whole);
  void end_recording();
  void take_posted();
  void sleep();
  void look_for_requests();
  void wake();

  MessageQueue& queue_;
  PerfFaults& perf_;
  KernelSyscalls& syscalls_;
  schema::Clock clock_;
  std::function<void()> on_request_;

  std::mutex mutex_;  // Guards the next two.
  std::vector<RegionPtr> arrived_;
  std::vector<Message> posted_;
  FutexWord bell_{0};  // Rung by the other threads.
  std::atomic<bool> stopping_{false};
  std::atomic<bool> given_up_{false};

  // The drain thread's own.
  std::vector<RingReader> readers_;
  std::vector<Message> due_;          // Posted before the current round began.
  std::vector<uint32_t> slots_seen_;  // Per reader: process slots that were reported.
  size_t last_bytes_ = 0;
  bool full_ = false;  // There was no room in the queue in the last round.
  ClockPair last_pair_;
  std::thread thread_;
};

}  // namespace heapledger::collector
