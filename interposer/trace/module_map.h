// SPDX-License-Identifier: Apache-2.0
// Which ELF files are mapped where: events at start and whenever dlopen, dlmopen or dlclose changed
// it.
//
// The list comes from dl_iterate_phdr, called at start (one thread) and from our wrappers of those
// functions, never from malloc. Copies of what was reported are kept, since an unload must be told
// after the fact. Thread safety: one lock, taken around a scan; its holder may wait for room in its
// ring, never for the heap or the loader of another thread. No allocation: the table is one
// reserved mapping.
#pragma once

#include <link.h>

#include "interposer/trace/own_calls.h"
#include "interposer/trace/recorder.h"

namespace heapledger::trace {

using IterateModules = int (*)(int (*)(dl_phdr_info*, size_t, void*), void*);

// Compares the loader's list with what is known, and writes a kModuleLoad or kModuleUnload for each
// difference.
void scan_modules(IterateModules iterate, CallScope& scope) noexcept;

// Where the module that contains `address` is mapped; empty: none does.
CodeRange module_around(IterateModules iterate, uintptr_t address) noexcept;

// In a forked child: the thread that may have held the lock does not exist.
void reset_module_lock() noexcept;

}  // namespace heapledger::trace
