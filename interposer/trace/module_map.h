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

// While one exists, files are being unloaded, nobody knows which: the recipes of all that came
// after the start are forgotten first, and none are kept until the scan at the end has seen what
// went. Else another thread could load a file where one just went, and walk its code by the old
// recipes.
class UnloadScope {
 public:
  UnloadScope() noexcept;
  ~UnloadScope();
  UnloadScope(const UnloadScope&) = delete;
  UnloadScope& operator=(const UnloadScope&) = delete;
};

// Where the module that contains `address` is mapped; empty: none does.
CodeRange module_around(IterateModules iterate, uintptr_t address) noexcept;

// In a forked child: threads that may have held the lock, or an UnloadScope, do not exist.
void reset_module_lock() noexcept;

}  // namespace heapledger::trace
