// SPDX-License-Identifier: Apache-2.0
#include "tests/interposer/trace/cfi_oracle.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <vector>

namespace heapledger::testing {
namespace {

constexpr int kRbp = 6;
constexpr int kRsp = 7;
constexpr int kRip = 16;

struct FreeFrame {
  void operator()(Dwarf_Frame* frame) const { std::free(frame); }
};

// What an expression leaves: a number, and whether it is the value or where the value lies.
struct Result {
  uint64_t number = 0;
  bool is_value = false;
};

uint64_t binary(uint8_t op, uint64_t a, uint64_t b) {
  switch (op) {
    case DW_OP_plus:
      return a + b;
    case DW_OP_minus:
      return a - b;
    case DW_OP_and:
      return a & b;
    case DW_OP_shl:
      return b < 64 ? a << b : 0;
    default:
      return static_cast<int64_t>(a) >= static_cast<int64_t>(b) ? 1 : 0;  // DW_OP_ge
  }
}

std::optional<Result> evaluate(const Dwarf_Op* ops, size_t count, const MadeUpFrame& frame,
                               uint64_t cfa) {
  std::vector<uint64_t> stack;
  bool is_value = false;
  for (size_t i = 0; i < count; ++i) {
    const Dwarf_Op& op = ops[i];
    if (op.atom >= DW_OP_breg0 && op.atom <= DW_OP_breg31) {
      stack.push_back(frame.reg(op.atom - DW_OP_breg0) + op.number);
    } else if (op.atom >= DW_OP_lit0 && op.atom <= DW_OP_lit31) {
      stack.push_back(op.atom - DW_OP_lit0);
    } else if (op.atom >= DW_OP_reg0 && op.atom <= DW_OP_reg31) {
      stack.push_back(frame.reg(op.atom - DW_OP_reg0));
      is_value = true;
    } else if (op.atom == DW_OP_regx) {
      stack.push_back(frame.reg(op.number));
      is_value = true;
    } else if (op.atom == DW_OP_bregx) {
      stack.push_back(frame.reg(op.number) + op.number2);
    } else if (op.atom == DW_OP_call_frame_cfa) {
      stack.push_back(cfa);
    } else if (op.atom == DW_OP_stack_value) {
      is_value = true;
    } else if (stack.empty()) {
      return std::nullopt;
    } else if (op.atom == DW_OP_plus_uconst) {
      stack.back() += op.number;
    } else if (op.atom == DW_OP_deref) {
      stack.back() = MadeUpFrame::memory(stack.back());
    } else if (op.atom == DW_OP_plus || op.atom == DW_OP_minus || op.atom == DW_OP_and ||
               op.atom == DW_OP_shl || op.atom == DW_OP_ge) {
      if (stack.size() < 2) return std::nullopt;
      const uint64_t b = stack.back();
      stack.pop_back();
      stack.back() = binary(op.atom, stack.back(), b);
    } else {
      return std::nullopt;
    }
  }
  if (stack.empty()) return std::nullopt;
  return Result{stack.back(), is_value};
}

// One register's rule.
struct Column {
  Dwarf_Op memory[3];
  Dwarf_Op* ops = nullptr;
  size_t count = 0;

  Column(Dwarf_Frame* frame, int reg) { dwarf_frame_register(frame, reg, memory, &ops, &count); }
  bool undefined() const { return count == 0 && ops == memory; }
  bool unchanged() const { return count == 0 && ops == nullptr; }
  // Saved at CFA + *offset.
  bool saved(int64_t* offset) const {
    if (count == 0 || count > 2 || ops[0].atom != DW_OP_call_frame_cfa) return false;
    if (count == 2 && ops[1].atom != DW_OP_plus_uconst) return false;
    *offset = count == 2 ? static_cast<int64_t>(ops[1].number) : 0;
    return true;
  }
  std::optional<uint64_t> value(const MadeUpFrame& frame, uint64_t cfa, int reg) const {
    if (unchanged()) return frame.reg(static_cast<uint64_t>(reg));
    if (undefined()) return std::nullopt;
    const std::optional<Result> result = evaluate(ops, count, frame, cfa);
    if (!result) return std::nullopt;
    return result->is_value ? result->number : MadeUpFrame::memory(result->number);
  }
};

std::string describe(const Dwarf_Op* ops, size_t count) {
  std::string text;
  for (size_t i = 0; i < count; ++i) {
    text += " " + std::to_string(ops[i].atom) + ":" +
            std::to_string(static_cast<int64_t>(ops[i].number));
  }
  return text;
}

// Why this row is beyond what recipe.h can say, by its own words; empty: it is not.
std::string beyond_recipes(const Dwarf_Op* cfa, size_t count, const Column& rbp, const Column& rsp,
                           const Column& rip) {
  int64_t offset = 0;
  if (!rip.saved(&offset) || offset != -8) return "return address elsewhere";
  const bool rsp_is_cfa = rsp.count == 2 && rsp.ops[0].atom == DW_OP_call_frame_cfa &&
                          rsp.ops[1].atom == DW_OP_stack_value;
  if (!rsp_is_cfa) return "rsp elsewhere";
  if (count == 1 && cfa[0].atom == DW_OP_bregx && cfa[0].number != kRsp && cfa[0].number != kRbp) {
    return "CFA from register " + std::to_string(cfa[0].number);
  }
  if (count != 1) return "CFA is an expression:" + describe(cfa, count);
  if (rbp.undefined()) return "rbp undefined";
  if (!rbp.unchanged() && (!rbp.saved(&offset) || offset >= 0)) {
    return "rbp is" + describe(rbp.ops, rbp.count);
  }
  return {};
}

}  // namespace

uint64_t MadeUpFrame::reg(uint64_t number) const {
  return number == kRip ? rip : 0x7f00'0000'0000 + number * 0x10'0000'0000;
}
uint64_t MadeUpFrame::memory(uint64_t address) {
  return (address ^ address >> 29) * 0xbf58476d1ce4e5b9 + 12345;
}

CfiOracle::CfiOracle(const std::string& path) {
  elf_version(EV_CURRENT);
  fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  elf_ = fd_ < 0 ? nullptr : elf_begin(fd_, ELF_C_READ_MMAP, nullptr);
  cfi_ = elf_ == nullptr ? nullptr : dwarf_getcfi_elf(elf_);
}

CfiOracle::~CfiOracle() {
  if (cfi_ != nullptr) dwarf_cfi_end(cfi_);
  if (elf_ != nullptr) elf_end(elf_);
  if (fd_ >= 0) close(fd_);
}

std::optional<CfiOracle::Answer> CfiOracle::ask(uint64_t address) const {
  Dwarf_Frame* raw = nullptr;
  if (dwarf_cfi_addrframe(cfi_, address, &raw) != 0) return std::nullopt;
  const std::unique_ptr<Dwarf_Frame, FreeFrame> frame(raw);
  Answer answer;
  bool is_signal = false;
  dwarf_frame_info(raw, &answer.row_start, &answer.row_end, &is_signal);
  Dwarf_Op* cfa_ops = nullptr;
  size_t cfa_count = 0;
  dwarf_frame_cfa(raw, &cfa_ops, &cfa_count);
  const Column rbp(raw, kRbp);
  const Column rsp(raw, kRsp);
  const Column rip(raw, kRip);
  if (rip.undefined()) {
    answer.caller = Caller{.is_end = true};
    return answer;
  }
  answer.beyond_recipes = is_signal ? "a signal frame of another kind"
                                    : beyond_recipes(cfa_ops, cfa_count, rbp, rsp, rip);
  const MadeUpFrame made_up{address};
  const std::optional<Result> cfa = evaluate(cfa_ops, cfa_count, made_up, 0);
  if (!cfa) return answer;
  const auto to_rip = rip.value(made_up, cfa->number, kRip);
  const auto to_rsp = rsp.value(made_up, cfa->number, kRsp);
  const auto to_rbp = rbp.value(made_up, cfa->number, kRbp);
  if (to_rip && to_rsp && to_rbp) answer.caller = Caller{false, *to_rip, *to_rsp, *to_rbp};
  return answer;
}

std::optional<Caller> follow(const trace::Recipe& recipe, const MadeUpFrame& frame) {
  using trace::RecipeType;
  const uint64_t rsp = frame.reg(kRsp);
  const uint64_t rbp = frame.reg(kRbp);
  const auto memory = [](uint64_t address, int64_t offset) {
    return MadeUpFrame::memory(address + static_cast<uint64_t>(offset));
  };
  uint64_t cfa = 0;
  switch (recipe.type) {
    case RecipeType::kEnd:
      return Caller{.is_end = true};
    case RecipeType::kSignal:
      return Caller{false, memory(rsp, trace::kSignalRip), memory(rsp, trace::kSignalRsp),
                    memory(rsp, trace::kSignalRbp)};
    case RecipeType::kAligned:
      cfa = memory(rbp, recipe.cfa_offset);
      return Caller{false, memory(cfa, -8), cfa, memory(rbp, 0)};
    case RecipeType::kRsp:
    case RecipeType::kRbp:
      cfa = (recipe.type == RecipeType::kRsp ? rsp : rbp) +
            static_cast<uint64_t>(int64_t{recipe.cfa_offset});
      return Caller{false, memory(cfa, -8), cfa,
                    recipe.rbp_offset == 0 ? rbp : memory(cfa, recipe.rbp_offset)};
    default:
      return std::nullopt;
  }
}

}  // namespace heapledger::testing
