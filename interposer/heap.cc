// SPDX-License-Identifier: Apache-2.0
#include "interposer/heap.h"

#include "interposer/calls.h"
#include "interposer/heap/allocator_impl.h"

template class heapledger::heap::Allocator<heapledger::heap::Header16, heapledger::TracedOs>;

namespace heapledger {

constinit Heap g_heap;
thread_local constinit Heap::ThreadState t_heap __attribute__((tls_model("initial-exec"))) = {};

// Here, where it can be compiled as one with the allocator.
[[gnu::flatten]] void release_plain_slow(void* block) noexcept {
  if (block != nullptr && !g_heap.release_uncached(t_heap, block)) release_foreign(block);
}

}  // namespace heapledger
