// SPDX-License-Identifier: Apache-2.0
// The writing side of one ring (schema/shared_region.h): reserve room, fill it, commit.
//
// Lossless: where the ring is full, reserve() waits while the collector lives (spins, then sleeps
// on tail_futex with time limits) and counts the time. Once the collector is gone, `stopped` is set
// for the whole process and every reserve() fails.
//
// Invariants. 1. One thread uses a producer; a signal handler on that thread uses another ring. 2.
// What reserve() returned is published whole by commit(), or not at all: a signal, a fork or
// SIGKILL in between leaves the ring as it was. 3. An all-zero producer is detached: that is what a
// forked child finds in its wiped copy. Thread safety: none (see 1). Runs inside malloc: no
// allocation, no locks, errno kept. Cost: about 2 ns when there is room.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "interposer/trace/collector_watch.h"
#include "schema/event.h"
#include "schema/shared_region.h"

namespace heapledger::trace {

// The program has gone into a seccomp sandbox, where a system call may end it: the recorder makes
// none. A full ring is waited for by spinning; new threads and children are recorded as far as they
// know who they are (process.h, kept_tid), and the process' end is the kernel's to tell. Never
// reset; children inherit it.
extern constinit std::atomic<bool> g_sandboxed;
inline bool is_sandboxed() noexcept { return g_sandboxed.load(std::memory_order_relaxed); }

class RingProducer {
 public:
  // What all rings of a process share.
  struct Shared {
    schema::ControlPage* control;
    std::atomic<uint32_t>* stopped;  // 1: recording has ended for good in this process.
    schema::ProcessSlot* process;    // Where the recorder's own system calls are counted.
    Patience patience;
  };

  bool attached() const noexcept { return slot_ != nullptr; }

  // Takes over a claimed slot where its last owner left it.
  void attach(const Shared* shared, schema::RingSlot* slot, std::byte* data,
              uint64_t ring_bytes) noexcept;
  void detach() noexcept { slot_ = nullptr; }

  schema::RingSlot* slot() const noexcept { return slot_; }

  // Room for an event of `words`, in one piece; a pad is written first where the ring's end is too
  // near. Null: recording has ended, or the event is larger than half a ring, or `may_wait` is
  // false and there is no room now.
  uint64_t* reserve(size_t words, bool may_wait = true) noexcept {
    const uint64_t bytes = words * 8;
    const uint64_t left = ring_bytes_ - (head_ & (ring_bytes_ - 1));
    const uint64_t needed = left < bytes ? bytes + left : bytes;
    if (__builtin_expect(head_ + needed > limit_, 0)) {
      if (!make_room(bytes, needed, may_wait)) return nullptr;
    }
    if (__builtin_expect(left < bytes, 0)) write_pad(left);
    return reinterpret_cast<uint64_t*>(data_ + (head_ & (ring_bytes_ - 1)));
  }

  // Publishes the event just written into what reserve() gave.
  void commit(size_t words) noexcept {
    if (slot_ == nullptr) return;  // A signal handler forked in between: this is the child.
    head_ += words * 8;
    slot_->events.store(++events_, std::memory_order_relaxed);
    // Release: pairs with the collector's acquire load of head; the event's words are visible to
    // whoever sees it.
    slot_->head.store(head_, std::memory_order_release);
  }

  // The next id's sequence in this slot; each is given out once.
  uint64_t take_sequence() noexcept {
    if (slot_ == nullptr) return 0;
    const uint64_t sequence = next_sequence_++;
    slot_->next_sequence.store(next_sequence_, std::memory_order_relaxed);
    return sequence;
  }
  uint64_t next_sequence() const noexcept { return next_sequence_; }

 private:
  void write_pad(uint64_t bytes) noexcept;
  bool make_room(uint64_t bytes, uint64_t needed, bool may_wait) noexcept;
  bool wait_for_room(uint64_t needed) noexcept;
  bool has_room(uint64_t needed) noexcept;
  void wake_collector() noexcept;

  schema::RingSlot* slot_;  // Null: detached.
  std::byte* data_;
  uint64_t ring_bytes_;
  uint64_t head_;   // Ours alone; slot_->head is its published copy, and behind it while a pad is
                    // not yet committed.
  uint64_t limit_;  // The slow path is taken beyond: half a ring past the known tail, or its end
                    // once the doorbell was seen to.
  uint64_t events_;
  uint64_t next_sequence_;
  const Shared* shared_;
};

}  // namespace heapledger::trace
