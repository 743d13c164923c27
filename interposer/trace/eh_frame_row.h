// SPDX-License-Identifier: Apache-2.0
// One row of call frame information: the rules that hold at one address, of those registers that
// decide where a caller is, and how a row becomes a recipe.
#pragma once

#include <cstdint>

#include "interposer/trace/eh_frame_reader.h"
#include "interposer/trace/recipe.h"

namespace heapledger::trace {

// The numbers of the x86-64 psABI, figure 3.36.
inline constexpr uint64_t kDwarfRbp = 6;
inline constexpr uint64_t kDwarfRsp = 7;
inline constexpr uint64_t kDwarfRip = 16;  // Also the column of the return address.

struct Rule {
  enum class Kind : uint8_t {
    kDefault,     // Nothing was said: unchanged; rsp: the CFA.
    kOffset,      // Saved at CFA + value. For the CFA itself: reg + value.
    kExpression,  // Saved where an expression says. For the CFA itself: what it yields.
    kUndefined,
    kOther,
  };
  Kind kind = Kind::kDefault;
  uint8_t reg = 0;                // Of the CFA's kOffset.
  uint32_t expression_bytes = 0;  // Of kExpression.
  int64_t value = 0;              // Of kOffset: bytes; of kExpression: where it is.

  EhReader expression() const {
    const auto* start = reinterpret_cast<const std::byte*>(value);
    return {start, start + expression_bytes};
  }
};
static_assert(sizeof(Rule) == 16);  // Rows are on the stack, several of them.

struct Row {
  Rule cfa;  // kDefault: none yet.
  Rule rbp;
  Rule rsp;
  Rule rip;

  Rule* rule(uint64_t reg) {
    if (reg == kDwarfRbp) return &rbp;
    if (reg == kDwarfRsp) return &rsp;
    return reg == kDwarfRip ? &rip : nullptr;
  }
};

// What a CIE says for all its functions.
struct Cie {
  uint64_t code_alignment = 1;
  int64_t data_alignment = 1;
  uint8_t address_encoding = 0;
  bool has_augmentation_data = false;
  bool is_signal_frame = false;
  EhReader program{nullptr, nullptr};
};

// Runs the programs of a CIE and of one of its functions, which begins at `start`, up to the row
// for `at`. False: they make no sense, or use what is not known here.
bool run_rows(const Cie& cie, EhReader program, uintptr_t start, uintptr_t at, Row* row) noexcept;

Recipe recipe_of_row(const Row& row, bool is_signal_frame, uintptr_t at) noexcept;

}  // namespace heapledger::trace
