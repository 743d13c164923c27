// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/drain.h"

#include <algorithm>

namespace heapledger::collector {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

constexpr size_t kWindowBytesMax = 4U << 20;
constexpr nanoseconds kSleep = milliseconds(5);
// After a round that brought so much, an eighth of a ring or more.
constexpr nanoseconds kSleepWhenMuch = milliseconds(2);
constexpr size_t kMuchBytes = 128U << 10;
constexpr nanoseconds kSleepWhenFull = milliseconds(1);
constexpr size_t kBusyBytes = 1U << 20;  // A round that brought this much is followed at once.
constexpr int64_t kPairEveryNs = 100'000'000;

}  // namespace

Drain::Drain(MessageQueue& queue, PerfFaults& perf, KernelSyscalls& syscalls, schema::Clock clock,
             std::function<void()> on_request)
    : queue_(queue),
      perf_(perf),
      syscalls_(syscalls),
      clock_(clock),
      on_request_(std::move(on_request)),
      last_pair_(read_clock_pair(clock)),
      thread_([this] { run(); }) {}

Drain::~Drain() { stop(); }

void Drain::add_region(RegionPtr region) {
  {
    const std::lock_guard lock(mutex_);
    arrived_.push_back(std::move(region));
  }
  wake();
}

void Drain::push_after_round(Message message) {
  {
    const std::lock_guard lock(mutex_);
    posted_.push_back(std::move(message));
  }
  wake();
}

void Drain::stop() {
  if (!thread_.joinable()) return;
  stopping_.store(true);
  wake();
  thread_.join();
}

void Drain::give_up() {
  given_up_.store(true);
  wake();
}

void Drain::wake() {
  bell_.fetch_add(1);
  futex_wake(bell_);
}

void Drain::run() {
  for (;;) {
    const bool last = stopping_.load();
    if (last)
      end_recording();  // Before the last round: what is written after it is not waited for.
    take_posted();
    bool whole = true;
    const size_t bytes = round(whole);
    if (whole) {
      for (Message& message : due_) queue_.push(std::move(message));
      due_.clear();
    }
    look_for_requests();
    if (last && whole) break;
    if (bytes < kBusyBytes) sleep();
  }
}

void Drain::end_recording() {
  for (const RingReader& reader : readers_) {
    reader.region()->control().recording.store(0, std::memory_order_release);
  }
}

void Drain::take_posted() {
  const std::lock_guard lock(mutex_);
  for (RegionPtr& region : arrived_) {
    readers_.emplace_back(std::move(region));
    slots_seen_.push_back(0);
  }
  arrived_.clear();
  std::move(posted_.begin(), posted_.end(), std::back_inserter(due_));
  posted_.clear();
}

size_t Drain::round(bool& whole) {
  Window window;
  window.began_raw_ns = raw_now_ns();
  window.raw.reserve(last_bytes_);  // The next round is like the last.
  // Perf buffers cannot make anyone wait, so they are emptied even when the queue is full.
  perf_.drain(window.raw, window.perf);
  syscalls_.drain(window.raw, window.perf);
  const bool room = given_up_ || queue_.has_room();
  whole = room;
  for (size_t i = 0; i < readers_.size();) {
    RingReader& reader = readers_[i];
    schema::ControlPage& control = reader.region()->control();
    control.heartbeat.fetch_add(1, std::memory_order_relaxed);
    if (given_up_) control.recording.store(0, std::memory_order_release);
    if (room && !reader.drain(window.raw, window.rings, kWindowBytesMax)) whole = false;
    if (reader.region()->retired.load(std::memory_order_acquire)) {
      readers_.erase(readers_.begin() + static_cast<std::ptrdiff_t>(i));
      slots_seen_.erase(slots_seen_.begin() + static_cast<std::ptrdiff_t>(i));
    } else {
      ++i;
    }
  }
  window.whole = whole;
  full_ = !room;
  const size_t bytes = window.raw.size();
  last_bytes_ = bytes;
  if (given_up_) return bytes;
  const ClockPair pair = read_clock_pair(clock_);
  const bool due = pair.raw_ns - last_pair_.raw_ns >= kPairEveryNs;
  if (due) {
    last_pair_ = pair;
    window.pair = pair;
  }
  if (due || !window.rings.empty() || bytes != 0) queue_.push(std::move(window));
  return bytes;
}

void Drain::look_for_requests() {
  bool requested = false;
  for (size_t i = 0; i < readers_.size(); ++i) {
    const Region& region = *readers_[i].region();
    const uint32_t used = region.process_slots_used();
    requested |= used != slots_seen_[i];
    slots_seen_[i] = used;
    for (uint32_t slot = 0; slot < used; ++slot) {
      const schema::ProcessSlot& process = region.process_slot(slot);
      // Acquire: pairs with the program's release when it asks.
      requested |= process.snapshot_wanted.load(std::memory_order_acquire) !=
                   process.snapshot_done.load(std::memory_order_relaxed);
    }
  }
  if (requested) on_request_();
}

void Drain::sleep() {
  std::vector<FutexWait> waits;
  waits.push_back({&bell_, bell_.load()});
  bool pressing = false;
  for (const RingReader& reader : readers_) {
    if (full_) break;
    schema::ControlPage& control = reader.region()->control();
    waits.push_back({&control.doorbell, control.doorbell.load(std::memory_order_acquire)});
    // seq_cst: a producer that does not see this has already moved its head, which we see.
    control.collector_sleeps.store(1, std::memory_order_seq_cst);
    pressing |= reader.is_pressing();
  }
  bool posted = false;
  {
    const std::lock_guard lock(mutex_);
    posted = !posted_.empty() || !arrived_.empty();
  }
  // Full rings are no reason to hurry where there is nowhere to put them.
  if (full_ || (!pressing && !posted && !stopping_)) {
    const nanoseconds sleep = last_bytes_ < kMuchBytes ? kSleep : kSleepWhenMuch;
    futex_wait_any(waits, full_ ? kSleepWhenFull : sleep);
  }
  for (const RingReader& reader : readers_) {
    reader.region()->control().collector_sleeps.store(0, std::memory_order_relaxed);
  }
}

}  // namespace heapledger::collector
