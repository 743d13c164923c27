// SPDX-License-Identifier: Apache-2.0
// What the file of a program says of how it is recorded. Why one that was run did not say Hello:
// the dynamic loader ignores LD_PRELOAD for it, or there is no loader. And whether it has
// allocators that nobody can take the place of.
#pragma once

#include <string>

namespace heapledger::collector {

// The allocation function of an allocator that this file has linked in beside malloc, under names
// of its own, as its symbols tell: _rjem_malloc of Rust's jemalloc, for one. Empty: none is known.
std::string allocator_beside_malloc(const std::string& exe);

// Never empty: where the file gives no reason, the environment must be it.
std::string why_not_recorded(const std::string& exe);

}  // namespace heapledger::collector
