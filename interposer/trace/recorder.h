// SPDX-License-Identifier: Apache-2.0
// Writes the events of one call of the program: its own, and those of the system calls it caused.
//
// A CallScope lives from the entry of an exported function to its return. While it lives, a signal
// handler on the same thread that calls in again uses the ring of the next level, so each ring has
// one writer and its stamps rise. The allocator's system calls are only noted down while it holds
// its locks (note_os_call, note_policy), and written by flush(), after the locks.
//
// What may fail: where no ring can be had, or the collector is gone, events are counted as lost and
// the program goes on. Thread safety: a scope belongs to its thread. Runs inside malloc: no
// allocation, no locks held by heap, errno kept. Cost: scope 2 ns, event 5 ns, stack see
// stack_capture.h, stamp see tick.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "interposer/base/bits.h"
#include "interposer/trace/process.h"
#include "interposer/trace/thread_local.h"
#include "interposer/trace/thread_ring.h"
#include "schema/event.h"

namespace heapledger::trace {

class CallScope;

// The ring of this thread at `level`, claimed if need be; null: events are lost. Slow. Where a
// handler has jumped out of the calls that `level` counts (longjmp), they are over: t_local.level
// is put right, and the ring is that of the level that `scope` really has.
ThreadRing* claim_ring(unsigned level, CallScope* scope) noexcept;

class CallScope {
 public:
  // `caller`: the return address of the exported function. Inlined, so that the frame is that of
  // the function where the scope lives: there the walk begins.
  [[gnu::always_inline]] explicit CallScope(const void* caller) noexcept
      : caller_(base::address_of(caller)), frame_(__builtin_frame_address(0)) {
    const unsigned level = t_local.level++;
    base::compiler_barrier();  // From here on a signal handler uses the next level.
    ThreadRing* ring = t_local.ring;
    const bool ready = level == 0 && ring != nullptr && ring->producer.attached();
    ring_ = __builtin_expect(ready, 1) ? ring : claim_ring(level, this);
    if (ring_ != nullptr) ring_->scope = this;
  }
  ~CallScope() {
    base::compiler_barrier();
    --t_local.level;
  }
  CallScope(const CallScope&) = delete;
  CallScope& operator=(const CallScope&) = delete;

  bool recording() const noexcept { return ring_ != nullptr; }

  // The id for a block that this call has made; 0 while not recording.
  uint64_t next_id() noexcept {
    if (ring_ == nullptr) return 0;
    const uint64_t sequence = ring_->producer.take_sequence();
    return sequence == 0 ? 0 : schema::make_id(ring_->slot, sequence);
  }

  struct Allocation {
    schema::EventKind kind;
    const void* address;  // Null: the call failed.
    uint64_t size;
    uint64_t usable;     // Ignored where it failed.
    uint64_t alignment;  // 0: the natural one.
    uint64_t id;
  };
  // After the block exists. Writes what flush() would, first.
  void on_allocation(const Allocation& allocation) noexcept;

  // Before validation, which may end the program: this call is about to end or move `block`.
  // on_fatal() records it if it comes to nothing else. Size: what realloc was asked for.
  void announce(schema::EventKind kind, const void* block, uint64_t size = 0) noexcept {
    announced_ = {kind, block, size};
  }
  // The program is about to be aborted inside this call: what the call did so far, the announced
  // call as a failed one, and a note; all with the stack, whatever the options say.
  void on_fatal(const char* message) noexcept;

  // After validation, before the block can be handed out again.
  void on_release(schema::EventKind kind, const void* address, uint64_t ended_id) noexcept;

  struct Reallocation {
    schema::EventKind kind;
    uint64_t ended_tick;
    const void* old_address;
    uint64_t ended_id;
    const void* address;
    uint64_t size;
    uint64_t usable;
    uint64_t id;
    bool failed;
  };
  void on_reallocation(const Reallocation& reallocation) noexcept;

  // A memory system call that is not the allocator's, after it returned.
  void on_syscall(schema::SyscallName name, schema::Origin origin, uint64_t entered,
                  uint64_t duration_ticks, const uint64_t (&args)[6], int64_t result) noexcept;
  // Walks the stack now, before what is to be stamped: stamps in a ring must rise.
  void take_stack() noexcept {
    if (ring_ != nullptr) need_stack();
  }

  // kMark, kNote.
  void on_text(schema::EventKind kind, const char* text, bool with_stack) noexcept;
  void on_module(schema::ModuleEvent event, schema::EventKind kind, const char* path) noexcept;
  // kExec; kExecFailed where `path` is null.
  void on_exec(uint32_t pid, const char* path, const char* const* argv) noexcept;
  void on_plain(schema::EventKind kind) noexcept;

  // kPathBytes of this thread's own; null while not recording.
  char* path_buffer() noexcept { return ring_ == nullptr ? nullptr : ring_->path; }

  // Writes the system calls and decisions of the allocator during this call, with this call's
  // stack.
  void flush() noexcept {
    if (ring_ != nullptr && ring_->pending_count != 0) flush_pending();
  }

 private:
  // A run of bytes behind an event's fixed part.
  struct Part {
    const void* bytes;
    size_t size;
  };
  // The stack as the ring's next event has to name it.
  void need_stack() noexcept;
  void flush_pending() noexcept;
  void walk() noexcept;
  StackWalk::Result unwind(StackWalk::Result walked) noexcept;

  template <size_t kBody, class Fill>
  void put(schema::EventKind kind, uint64_t flags, uint64_t at_tick, size_t optional_words,
           Fill fill) noexcept;
  void put_release(schema::EventKind kind, uint64_t flags, uint64_t address,
                   uint64_t ended_id) noexcept;
  template <class Event>
  void write(Event& event, schema::EventKind kind, uint8_t flags, uint64_t at_tick) noexcept;
  template <class Event>
  void write_text(Event& event, schema::EventKind kind, const Part* parts, size_t count,
                  size_t bytes) noexcept;
  uint64_t head_word(schema::EventKind kind, uint64_t flags, size_t words) const noexcept;
  void stack_written() noexcept;
  void stack_lost() noexcept;

  struct Announced {
    schema::EventKind kind = schema::EventKind::kPad;  // kPad: nothing is announced.
    const void* block;  // Like `size` not set where nothing is: scopes are made for every call.
    uint64_t size;
  };

  ThreadRing* ring_;
  uintptr_t caller_;
  const void* frame_;
  Announced announced_;
  bool has_stack_ = false;  // The fields below are set: events carry a stack from now on.
  bool incomplete_ = false;
  bool fresh_is_new_ = false;  // No event has carried the fresh frames yet.
  uint16_t keep_ = 0;
  uint16_t fresh_ = 0;
};

// The allocator's system calls and decisions, noted while it may hold its locks.
void note_os_call(schema::SyscallName name, uint8_t cause, uint64_t entered,
                  const uint64_t (&args)[6], int64_t result) noexcept;
void note_policy(uint8_t policy, uint64_t old_value, uint64_t new_value) noexcept;

// The program is about to be aborted with `message`, perhaps inside a call: see on_fatal().
void note_fatal(const char* message) noexcept;

// The thread ends: its rings are given back. Calls it makes later claim new ones.
void end_thread() noexcept;

}  // namespace heapledger::trace
