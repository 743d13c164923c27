// SPDX-License-Identifier: Apache-2.0
// The recorder's own allocations, off the program's heap.
//
// libunwind, its thread-local storage, an environment entry: what this library causes is served
// from a second instance of the allocator, whose break is a small reserved mapping of its own. So
// the program's recorded calls alone decide what its heap looks like, and a model that is given
// these calls can make the very same system calls. Its blocks carry trace::kOwnBlock as id and make
// no event. A block that is neither freed nor resized by us but by the program (an environment
// entry) is recognised in the slow path, after the program's heap has said that it is not its own.
//
// Rule: constant-initialised; before reserve_own_heap() or without room it maps what it needs.
// Thread safety and signal handlers: as the allocator's. Threads have no cache here, nothing is to
// be given back at their end.
#pragma once

#include <cstddef>
#include <cstdint>

#include "interposer/heap/allocator.h"
#include "interposer/trace/own_calls.h"

namespace heapledger {

class OwnOs {
 public:
  heap::Settings initial_settings();
  uintptr_t brk(uintptr_t address, heap::Cause cause);
  void* mmap(void* hint, size_t length, int protection, int flags, heap::Cause cause);
  bool munmap(void* address, size_t length, heap::Cause cause);
  void* mremap(void* address, size_t old_length, size_t new_length, int flags, heap::Cause cause);
  bool madvise(void* address, size_t length, int advice, heap::Cause cause);
  bool mprotect(void* address, size_t length, int protection, heap::Cause cause);
  void on_policy(heap::PolicyKind, uint64_t, uint64_t) {}
  bool is_single_threaded();
};

using OwnHeap = heap::Allocator<heap::Header16, OwnOs>;

extern constinit OwnHeap g_own_heap;
extern thread_local constinit OwnHeap::ThreadState t_own_heap
    __attribute__((tls_model("initial-exec")));

// Maps the heap's break area: one system call, at start.
void reserve_own_heap() noexcept;

// malloc, calloc (`zeroed`), memalign (`alignment` not 0) of the recorder.
void* allocate_own(size_t size, size_t alignment, bool zeroed) noexcept;
// free and realloc of one of its blocks by the recorder.
void release_own(void* block) noexcept;
void* resize_own(void* block, size_t size) noexcept;

// Whether a pointer, which need not be a block's, lies in this heap.
inline bool is_own_block(const void* block) noexcept {
  return !g_own_heap.is_untouched() && g_own_heap.owns(block);
}

}  // namespace heapledger

extern template class heapledger::heap::Allocator<heapledger::heap::Header16, heapledger::OwnOs>;
