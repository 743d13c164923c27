// SPDX-License-Identifier: Apache-2.0
// Compiles recipes from the call frame information of ELF files (.eh_frame_hdr and .eh_frame as in
// the Linux Standard Base; instructions as in DWARF 5, 6.4.2).
//
// The rows of a function's program are run up to the wanted address, and what then holds for the
// CFA, rbp, rsp and the return address is matched against the forms that recipe.h knows. Of
// expressions three are known: the linker's for PLT entries, gcc's for realigned frames, and
// glibc's for the signal trampoline. Everything else is kOther, damage too.
//
// The information comes from the loaded file itself, found by glibc's _dl_find_object (2.35), which
// takes no lock. Every read is checked to lie in one readable segment. Thread safety: any thread,
// any signal handler. Runs inside malloc: no allocation, no locks, errno kept; 1.5 KiB of stack.
#pragma once

#include <cstddef>
#include <cstdint>

#include "interposer/trace/recipe.h"

namespace heapledger::trace {

// False: this glibc has no _dl_find_object, and compile_recipe answers kNoCfi throughout.
bool can_compile() noexcept;

// The recipe for the code at `at` (see RecipeTable::find). Never kNone, never kWide.
Recipe compile_recipe(uintptr_t at) noexcept;

// Where a file's unwind information is.
struct UnwindTable {
  const std::byte* header;  // .eh_frame_hdr
  const std::byte* start;   // Of the bytes that may be read: a segment with both sections in it.
  const std::byte* end;
};

// The same from a given table. `at` counts as code beside it, at the distance the file has it.
Recipe compile_recipe(const UnwindTable& table, uintptr_t at) noexcept;

}  // namespace heapledger::trace
