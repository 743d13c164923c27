// SPDX-License-Identifier: Apache-2.0
//
// What glibc's malloc asks /sys and /proc about the machine. No allocation, no locks, errno kept:
// usable inside malloc. Each call opens, reads and closes one file.
#pragma once

#include <cstddef>

namespace heapledger::heap {

// CPUs that are online, at least 1; 2 where /sys does not tell, as in glibc.
size_t online_cpus();

// True where freed pages stay accounted for until their addresses are mapped anew without access:
// vm.overcommit_memory is 2, or the process runs with more rights than its caller (glibc 2.36 then
// trusts no madvise).
bool must_release_by_remap();

}  // namespace heapledger::heap
