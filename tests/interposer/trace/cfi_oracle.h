// SPDX-License-Identifier: Apache-2.0
// What elfutils' libdw makes of a file's call frame information: the caller of one frame, computed
// from made-up registers and made-up memory, so that two ways of describing the same step compare
// equal whatever they look like.
#pragma once

#include <dwarf.h>
#include <elfutils/libdw.h>

#include <cstdint>
#include <optional>
#include <string>

#include "interposer/trace/recipe.h"

namespace heapledger::testing {

// Registers by their DWARF numbers; memory: each address holds a hash of itself.
struct MadeUpFrame {
  uint64_t rip = 0;
  uint64_t reg(uint64_t number) const;
  static uint64_t memory(uint64_t address);
};

struct Caller {
  bool is_end = false;  // There is none.
  uint64_t rip = 0;
  uint64_t rsp = 0;
  uint64_t rbp = 0;
  bool operator==(const Caller&) const = default;
};

class CfiOracle {
 public:
  explicit CfiOracle(const std::string& path);
  ~CfiOracle();
  CfiOracle(const CfiOracle&) = delete;
  CfiOracle& operator=(const CfiOracle&) = delete;

  struct Answer {
    std::optional<Caller> caller;  // Empty: not computable from what is made up.
    uint64_t row_start = 0;
    uint64_t row_end = 0;
    // Why no recipe can say it; empty: one could.
    std::string beyond_recipes;
  };
  bool opened() const { return cfi_ != nullptr; }
  // Empty: no information covers the address.
  std::optional<Answer> ask(uint64_t address) const;

 private:
  int fd_ = -1;
  Elf* elf_ = nullptr;
  Dwarf_CFI* cfi_ = nullptr;
};

// The caller that a recipe leads to; empty for those that lead nowhere.
std::optional<Caller> follow(const trace::Recipe& recipe, const MadeUpFrame& frame);

}  // namespace heapledger::testing
