// SPDX-License-Identifier: Apache-2.0
#include "interposer/heap.h"

#include "interposer/heap/allocator_impl.h"

template class heapledger::heap::Allocator<heapledger::heap::Header16, heapledger::TracedOs>;

namespace heapledger {

constinit Heap g_heap;
thread_local constinit Heap::ThreadState t_heap __attribute__((tls_model("initial-exec"))) = {};

}  // namespace heapledger
