// SPDX-License-Identifier: Apache-2.0
// Takes libunwind's pipe away.
//
// libunwind asks whether an address is readable by writing a byte from it to a pipe of its own,
// made at its first use and kept (src/x86_64/Ginit.c, write_validate). In a program that is
// recorded that pipe would be two descriptors that are not the program's; worse, where the program
// closes all descriptors, its own next ones get those numbers, and libunwind reads from them. So
// its calls of pipe2, read and write (and of syscall, by which later versions write) are bound to
// functions here, which ask the kernel the same without a descriptor.
//
// Runs once, at load, before libunwind's first use, while the program has one thread. The functions
// put in place run inside malloc, on behalf of libunwind: no allocation, no locks.
#pragma once

#include <link.h>

#include "interposer/trace/recorder.h"

namespace heapledger {

// Rebinds them in this loaded library. False where its tables are not as expected: then libunwind
// must not be called.
bool replace_unwinder_io(const link_map* library, trace::CallScope& scope) noexcept;

}  // namespace heapledger
