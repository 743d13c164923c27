// SPDX-License-Identifier: Apache-2.0
#include "interposer/trace/eh_frame_row.h"

#include <cstring>

namespace heapledger::trace {
namespace {

using Kind = Rule::Kind;

constexpr unsigned kRememberMax = 4;  // gcc and clang never nest; assembler macros hardly do.

// Runs one program after the other on a row.
class RowProgram {
 public:
  RowProgram(const Cie& cie, uintptr_t start, uintptr_t at, Row* row)
      : cie_(cie), location_(start), at_(at), row_(*row) {}

  // False: it made no sense. Stops behind the row for `at`.
  bool run(EhReader program) {
    while (!program.at_end() && !passed_) {
      if (!step(&program) || program.failed()) return false;
    }
    return true;
  }
  void rows_begin() { initial_ = row_; }

 private:
  bool step(EhReader* program) {
    const uint8_t opcode = program->byte();
    const uint64_t low = opcode & 0x3f;
    switch (opcode & 0xc0) {
      case 0x40:
        return advance(low);  // advance_loc
      case 0x80:
        return set_offset(low, scaled(program->unsigned_leb()));  // offset
      case 0xc0:
        return restore(low);  // restore
      default:
        break;
    }
    if (opcode <= 0x0b) return step_common(opcode, program);
    return step_rest(opcode, program);
  }

  bool step_common(uint8_t opcode, EhReader* program) {
    switch (opcode) {
      case 0x00:
        return true;  // nop
      case 0x01: {    // set_loc
        const uint64_t next = program->address(cie_.address_encoding, 0);
        if (next < location_) return false;
        return move_to(next);
      }
      case 0x02:
        return advance(program->byte());
      case 0x03:
        return advance(program->fixed<uint16_t>());
      case 0x04:
        return advance(program->fixed<uint32_t>());
      case 0x05: {  // offset_extended
        const uint64_t reg = program->unsigned_leb();
        return set_offset(reg, scaled(program->unsigned_leb()));
      }
      case 0x06:
        return restore(program->unsigned_leb());  // restore_extended
      case 0x07:
        return set(program->unsigned_leb(), Kind::kUndefined);
      case 0x08:
        return set_unchanged(program->unsigned_leb());  // same_value
      case 0x09: {                                      // register
        const uint64_t reg = program->unsigned_leb();
        program->unsigned_leb();
        return set(reg, Kind::kOther);
      }
      case 0x0a:
        return remember();
      default:
        return recall();  // restore_state
    }
  }

  bool step_rest(uint8_t opcode, EhReader* program) {
    switch (opcode) {
      case 0x0c: {  // def_cfa
        const uint64_t reg = program->unsigned_leb();
        return set_cfa(reg, static_cast<int64_t>(program->unsigned_leb()));
      }
      case 0x0d: {  // def_cfa_register
        const uint64_t reg = program->unsigned_leb();
        return row_.cfa.kind == Kind::kOffset && set_cfa(reg, row_.cfa.value);
      }
      case 0x0e:  // def_cfa_offset
        return set_cfa_offset(static_cast<int64_t>(program->unsigned_leb()));
      case 0x0f: {  // def_cfa_expression
        row_.cfa = expression_rule(program);
        return true;
      }
      case 0x10:
        return set_expression(program->unsigned_leb(), program);
      case 0x11: {  // offset_extended_sf
        const uint64_t reg = program->unsigned_leb();
        return set_offset(reg, scaled(static_cast<uint64_t>(program->signed_leb())));
      }
      case 0x12: {  // def_cfa_sf
        const uint64_t reg = program->unsigned_leb();
        return set_cfa(reg, scaled(static_cast<uint64_t>(program->signed_leb())));
      }
      case 0x13:  // def_cfa_offset_sf
        return set_cfa_offset(scaled(static_cast<uint64_t>(program->signed_leb())));
      case 0x14:    // val_offset
      case 0x15: {  // val_offset_sf: the same two operands, as far as their length goes
        const uint64_t reg = program->unsigned_leb();
        program->unsigned_leb();
        return set(reg, Kind::kOther);
      }
      case 0x16: {  // val_expression
        const uint64_t reg = program->unsigned_leb();
        program->skip(program->unsigned_leb());
        return set(reg, Kind::kOther);
      }
      case 0x2e:
        program->unsigned_leb();
        return true;  // GNU_args_size: for landing pads only
      case 0x2f: {    // GNU_negative_offset_extended
        const uint64_t reg = program->unsigned_leb();
        return set_offset(reg, scaled(-program->unsigned_leb()));
      }
      default:
        return false;
    }
  }

  // ---- Their effects. Arithmetic wraps: nonsense gives a nonsense row, not a trap.

  int64_t scaled(uint64_t factored) const {
    return static_cast<int64_t>(factored * static_cast<uint64_t>(cie_.data_alignment));
  }
  bool advance(uint64_t delta) { return move_to(location_ + delta * cie_.code_alignment); }
  bool move_to(uintptr_t location) {
    if (location > at_) {
      passed_ = true;
    } else {
      location_ = location;
    }
    return true;
  }
  bool set(uint64_t reg, Kind kind) {
    if (Rule* rule = row_.rule(reg)) *rule = {}, rule->kind = kind;
    return true;
  }
  bool set_unchanged(uint64_t reg) {
    return set(reg, reg == kDwarfRbp ? Kind::kDefault : Kind::kOther);
  }
  bool set_offset(uint64_t reg, int64_t offset) {
    set(reg, Kind::kOffset);
    if (Rule* rule = row_.rule(reg)) rule->value = offset;
    return true;
  }
  static Rule expression_rule(EhReader* program) {
    const EhReader expression = program->part(program->unsigned_leb());
    Rule rule;
    rule.kind = Kind::kExpression;
    rule.expression_bytes = static_cast<uint32_t>(expression.left());
    rule.value = reinterpret_cast<int64_t>(expression.position());
    return rule;
  }
  bool set_expression(uint64_t reg, EhReader* program) {
    const Rule read = expression_rule(program);
    if (Rule* rule = row_.rule(reg)) *rule = read;
    return true;
  }
  bool set_cfa(uint64_t reg, int64_t offset) {
    row_.cfa = {};
    row_.cfa.kind = reg < 256 ? Kind::kOffset : Kind::kOther;
    row_.cfa.reg = static_cast<uint8_t>(reg);
    row_.cfa.value = offset;
    return true;
  }
  bool set_cfa_offset(int64_t offset) {
    row_.cfa.value = offset;
    return row_.cfa.kind == Kind::kOffset;
  }
  bool restore(uint64_t reg) {
    if (Rule* rule = row_.rule(reg)) *rule = *initial_.rule(reg);
    return true;
  }
  bool remember() {
    if (remembered_count_ == kRememberMax) return false;
    remembered_[remembered_count_++] = row_;
    return true;
  }
  // Brings back the CFA as well, as gcc means it (libgcc's unwind-dw2.c does the same).
  bool recall() {
    if (remembered_count_ == 0) return false;
    row_ = remembered_[--remembered_count_];
    return true;
  }

  const Cie& cie_;
  uintptr_t location_;
  const uintptr_t at_;
  Row& row_;
  bool passed_ = false;
  Row initial_;  // After the CIE's program.
  Row remembered_[kRememberMax];
  unsigned remembered_count_ = 0;
};

// ---- Expressions.

// DW_OP_bregN <offset>; false: not that.
bool takes_register(EhReader* expression, uint64_t reg, int64_t* offset) {
  if (expression->byte() != 0x70 + reg) return false;
  *offset = expression->signed_leb();
  return !expression->failed();
}

// *(reg + offset) as a CFA, or the place reg + offset as a register's.
bool is_register_and(EhReader expression, uint64_t reg, bool dereferenced, int64_t* offset) {
  if (!takes_register(&expression, reg, offset)) return false;
  if (dereferenced && expression.byte() != 0x06) return false;  // DW_OP_deref
  return expression.at_end() && !expression.failed();
}

bool is_at(const Rule& rule, uint64_t reg, size_t wanted) {
  int64_t offset = 0;
  return rule.kind == Kind::kExpression &&
         is_register_and(rule.expression(), reg, false, &offset) &&
         offset == static_cast<int64_t>(wanted);
}

// The linkers' expression for a section of 16-byte PLT entries: rsp + 8, and 8 more from the
// entry's N-th byte on, where it has pushed its number: breg7 8, breg16 0, lit15, and, litN, ge,
// lit3, shl, plus.
bool is_plt(EhReader expression, uintptr_t at, int64_t* offset) {
  constexpr uint8_t kUntilN[] = {0x77, 0x08, 0x80, 0x00, 0x3f, 0x1a};
  constexpr uint8_t kAfterN[] = {0x2a, 0x33, 0x24, 0x22};
  if (expression.left() != sizeof(kUntilN) + 1 + sizeof(kAfterN)) return false;
  const std::byte* bytes = expression.position();
  if (memcmp(bytes, kUntilN, sizeof(kUntilN)) != 0) return false;
  if (memcmp(bytes + sizeof(kUntilN) + 1, kAfterN, sizeof(kAfterN)) != 0) return false;
  const unsigned literal = static_cast<unsigned>(bytes[sizeof(kUntilN)]) - 0x30;  // DW_OP_lit0
  if (literal > 31) return false;
  *offset = (at & 15) >= literal ? 16 : 8;
  return true;
}

bool is_signal_trampoline(const Row& row) {
  int64_t rsp = 0;
  return row.cfa.kind == Kind::kExpression &&
         is_register_and(row.cfa.expression(), kDwarfRsp, true, &rsp) &&
         rsp == static_cast<int64_t>(kSignalRsp) && is_at(row.rip, kDwarfRsp, kSignalRip) &&
         is_at(row.rbp, kDwarfRsp, kSignalRbp) && is_at(row.rsp, kDwarfRsp, kSignalRsp);
}

}  // namespace

bool run_rows(const Cie& cie, EhReader program, uintptr_t start, uintptr_t at, Row* row) noexcept {
  RowProgram rows(cie, start, at, row);
  if (!rows.run(cie.program)) return false;
  rows.rows_begin();
  return rows.run(program);
}

Recipe recipe_of_row(const Row& row, bool is_signal_frame, uintptr_t at) noexcept {
  constexpr Recipe kOther = {RecipeType::kOther, 0, 0};
  if (row.rip.kind == Kind::kUndefined) return {RecipeType::kEnd, 0, 0};
  if (is_signal_frame) {
    return is_signal_trampoline(row) ? Recipe{RecipeType::kSignal, 0, 0} : kOther;
  }
  if (row.rip.kind != Kind::kOffset || row.rip.value != -8) return kOther;
  if (row.rsp.kind != Kind::kDefault) return kOther;

  RecipeType type = RecipeType::kOther;
  int64_t cfa = row.cfa.value;
  if (row.cfa.kind == Kind::kOffset) {
    if (row.cfa.reg == kDwarfRsp) type = RecipeType::kRsp;
    if (row.cfa.reg == kDwarfRbp) type = RecipeType::kRbp;
  } else if (row.cfa.kind == Kind::kExpression) {
    if (is_plt(row.cfa.expression(), at, &cfa)) {
      type = RecipeType::kRsp;
    } else if (is_register_and(row.cfa.expression(), kDwarfRbp, true, &cfa)) {
      if (is_at(row.rbp, kDwarfRbp, 0) && static_cast<int32_t>(cfa) == cfa) {
        return {RecipeType::kAligned, static_cast<int32_t>(cfa), 0};
      }
    }
  }
  // Saved below the CFA, in the frame itself: what lies further out need not be there. (0 in a
  // recipe means that rbp is unchanged.)
  const bool rbp_fits =
      row.rbp.kind == Kind::kDefault || (row.rbp.kind == Kind::kOffset && row.rbp.value < 0);
  const int64_t rbp = row.rbp.value;
  if (type == RecipeType::kOther || !rbp_fits) return kOther;
  if (static_cast<int32_t>(cfa) != cfa || static_cast<int32_t>(rbp) != rbp) return kOther;
  return {type, static_cast<int32_t>(cfa), static_cast<int32_t>(rbp)};
}

}  // namespace heapledger::trace
