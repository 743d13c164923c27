// SPDX-License-Identifier: Apache-2.0
#include "interposer/heap/allocator_impl.h"
#include "tests/interposer/heap/simulated_os.h"

template class heapledger::heap::Allocator<heapledger::heap::Header16,
                                           heapledger::heap::SimulatedOs>;

template class heapledger::heap::Allocator<heapledger::heap::Glibc, heapledger::heap::SimulatedOs>;
