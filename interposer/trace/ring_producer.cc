// SPDX-License-Identifier: Apache-2.0
#include "interposer/trace/ring_producer.h"

#include <errno.h>

#include "interposer/base/sys.h"
#include "interposer/trace/tick.h"

namespace heapledger::trace {
constinit std::atomic<bool> g_sandboxed{false};

namespace {

namespace sys = base::sys;
using schema::ControlPage;

constexpr int kSpins = 100;
constexpr timespec kNap = {0, 20'000'000};  // Between two looks at the collector's heartbeat.

}  // namespace

void RingProducer::attach(const Shared* shared, schema::RingSlot* slot, std::byte* data,
                          uint64_t ring_bytes) noexcept {
  shared_ = shared;
  data_ = data;
  ring_bytes_ = ring_bytes;
  // Relaxed: the claim of the slot (acquire) made its last owner's stores visible.
  head_ = slot->head.load(std::memory_order_relaxed);
  events_ = slot->events.load(std::memory_order_relaxed);
  next_sequence_ = slot->next_sequence.load(std::memory_order_relaxed);
  if (next_sequence_ == 0) next_sequence_ = 1;
  limit_ = slot->tail.load(std::memory_order_acquire) + ring_bytes / 2;
  slot_ = slot;  // Last: an attached producer is complete.
}

void RingProducer::write_pad(uint64_t bytes) noexcept {
  const uint64_t pad = static_cast<uint64_t>(schema::EventKind::kPad) | (bytes / 8) << 16;
  *reinterpret_cast<uint64_t*>(data_ + (head_ & (ring_bytes_ - 1))) = pad;
  head_ += bytes;  // Published together with the event that follows it.
}

bool RingProducer::has_room(uint64_t needed) noexcept {
  // Acquire: pairs with the collector's release store of tail, after it has read the bytes below.
  const uint64_t tail = slot_->tail.load(std::memory_order_acquire);
  if (head_ + needed > tail + ring_bytes_) return false;
  const uint64_t half = tail + ring_bytes_ / 2;
  // Below the half nothing has to be looked at until it is reached; above it, look again every
  // eighth of a ring.
  limit_ = head_ + needed <= half ? half : head_ + needed + ring_bytes_ / 8;
  if (limit_ > tail + ring_bytes_) limit_ = tail + ring_bytes_;
  return true;
}

void RingProducer::wake_collector() noexcept {
  ControlPage& control = *shared_->control;
  if (control.collector_sleeps.load(std::memory_order_seq_cst) == 0 || is_sandboxed()) return;
  control.doorbell.fetch_add(1, std::memory_order_seq_cst);
  sys::futex_wake(reinterpret_cast<volatile uint32_t*>(&control.doorbell), 1, true);
  shared_->process->recorder_syscalls.fetch_add(1, std::memory_order_relaxed);
}

bool RingProducer::make_room(uint64_t bytes, uint64_t needed, bool may_wait) noexcept {
  if (bytes > ring_bytes_ / 2) return false;
  if (shared_->stopped->load(std::memory_order_relaxed) != 0) return false;
  if (has_room(needed)) {
    if (head_ + needed > slot_->tail.load(std::memory_order_relaxed) + ring_bytes_ / 2) {
      wake_collector();
    }
    return true;
  }
  return may_wait && wait_for_room(needed);
}

bool RingProducer::wait_for_room(uint64_t needed) noexcept {
  const uint64_t start = tick_now(shared_->control->clock);
  bool room = false;
  for (int i = 0; i < kSpins && !room; ++i) {
    __builtin_ia32_pause();
    room = has_room(needed);
  }
  if (!room) {
    CollectorWatch watch(*shared_->control, shared_->patience);
    auto* futex = reinterpret_cast<volatile uint32_t*>(&slot_->tail_futex);
    while (!room) {
      // Seq_cst, with the collector's store of tail and load of `waiting`: one of the two sees the
      // other.
      slot_->waiting.store(1, std::memory_order_seq_cst);
      const uint32_t seen = slot_->tail_futex.load(std::memory_order_seq_cst);
      if ((room = has_room(needed))) break;
      wake_collector();
      const bool sandboxed = is_sandboxed();
      const long result = sandboxed ? -EPERM : sys::futex_wait(futex, seen, &kNap, true);
      if (!sandboxed) {
        shared_->process->recorder_syscalls.fetch_add(1, std::memory_order_relaxed);
      }
      if (result != 0 && result != -EAGAIN && result != -ETIMEDOUT && result != -EINTR) {
        for (int i = 0; i < 1000; ++i) __builtin_ia32_pause();  // A filter refuses futex.
      }
      if ((room = has_room(needed))) break;
      if (shared_->stopped->load(std::memory_order_relaxed) != 0) break;
      if (watch.gone()) {
        shared_->stopped->store(1, std::memory_order_relaxed);
        break;
      }
    }
    slot_->waiting.store(0, std::memory_order_relaxed);
  }
  slot_->stalls.fetch_add(1, std::memory_order_relaxed);
  slot_->stall_ticks.fetch_add(tick_now(shared_->control->clock) - start,
                               std::memory_order_relaxed);
  return room;
}

}  // namespace heapledger::trace
