// SPDX-License-Identifier: Apache-2.0
// One call of the malloc family, recorded: shared by entry.cc and operator_new.cc. See the ordering
// rule in entry.cc.
#pragma once

#include "interposer/heap.h"
#include "interposer/lifecycle.h"
#include "interposer/own_heap.h"
#include "interposer/trace/own_calls.h"
#include "interposer/trace/recorder.h"

namespace heapledger {

// One byte says on every call that there is nothing to record and nothing to prepare.
inline bool is_plain() noexcept { return __builtin_expect(trace::t_local.plain, 1); }

// Unrecorded threads have a cache too, which must be given back at their end. From then on the
// thread is plain; what is not recorded once never is.
inline void arm_plain() noexcept {
  if (trace::t_local.armed == 0) arm_thread_end();
  trace::t_local.plain =
      trace::t_local.armed != 0 && !g_other_malloc.load(std::memory_order_relaxed);
}

// `make` allocates, or returns null with errno set.
template <class Make>
inline void* record_allocation(schema::EventKind kind, size_t size, size_t alignment,
                               const void* caller, Make make) noexcept {
  if (!traced()) {
    arm_plain();
    return make();
  }
  if (trace::is_own_call(caller)) {
    return allocate_own(size, alignment, kind == schema::EventKind::kCalloc);
  }
  trace::CallScope scope(caller);
  void* block = make();
  uint64_t id = 0;
  size_t usable = 0;
  if (block != nullptr) {
    id = scope.next_id();
    Heap::set_id(block, id);
    usable = Heap::usable_size(block);
  }
  scope.on_allocation({kind, block, size, usable, alignment, id});
  return block;
}

// For pointers outside our memory: on to the next allocator where one was seen, otherwise glibc's
// message and the end. The latter is all that expect_foreign() does.
void release_foreign(void* block) noexcept;
void* resize_foreign(void* block, size_t size) noexcept;
inline void expect_foreign(heap::Use use) noexcept {
  if (!g_other_allocators.load(std::memory_order_relaxed)) Heap::fatal_foreign(use);
}

// free in a plain thread; the rest is apart, so that this needs no stack frame.
void release_plain_slow(void* block) noexcept;
inline void release_plain(void* block) noexcept {
  switch (g_heap.release_cached(t_heap, block)) {
    case Heap::Cached::kDone:
      return;
    case Heap::Cached::kPast:
      return g_heap.release_past_cache(t_heap, block);
    case Heap::Cached::kUnfit:
      return release_plain_slow(block);
  }
}

inline void record_release(schema::EventKind kind, void* block, const void* caller) noexcept {
  if (block == nullptr) return;
  if (!traced()) {
    arm_plain();
    release_plain(block);
    return;
  }
  if (trace::is_own_call(caller) && is_own_block(block)) return release_own(block);
  trace::CallScope scope(caller);
  scope.announce(kind, block);
  const heap::Checked found = g_heap.check(block, heap::Use::kFree);
  // Its birth was no event, and so is its end.
  if (!found.ours && is_own_block(block)) return release_own(block);
  if (!found.ours) expect_foreign(heap::Use::kFree);
  scope.on_release(kind, block, found.id);
  if (!found.ours) return release_foreign(block);
  g_heap.release_checked(t_heap, block);
  scope.flush();
}

}  // namespace heapledger
