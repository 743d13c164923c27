// SPDX-License-Identifier: Apache-2.0
// The program's heap: the one instance of the allocator in libheapledger.so, and this thread's part
// of it.
//
// Rule: constant-initialised, trivially destructible. It works before any constructor and after
// every destructor.
#pragma once

#include "interposer/heap/allocator.h"
#include "interposer/traced_os.h"

namespace heapledger {

using Heap = heap::Allocator<heap::Header16, TracedOs>;

extern constinit Heap g_heap;
extern thread_local constinit Heap::ThreadState t_heap __attribute__((tls_model("initial-exec")));

}  // namespace heapledger

extern template class heapledger::heap::Allocator<heapledger::heap::Header16, heapledger::TracedOs>;
