// SPDX-License-Identifier: Apache-2.0
// How to get from one frame to its caller: what the call frame information (.eh_frame) says about
// one code address, cut down to the few forms that compilers really emit.
//
// The CFA (canonical frame address) is the caller's rsp. The return address always lies at cfa - 8:
// where the information says something else, the recipe is kOther. Only rsp and rbp are followed;
// no other register ever decides where a caller is, or the recipe is kOther.
#pragma once

#include <cstddef>
#include <cstdint>

namespace heapledger::trace {

enum class RecipeType : uint8_t {
  kNone = 0,     // An empty place of the table; never an answer.
  kRsp = 1,      // cfa = rsp + cfa_offset. PLT entries too: their address decides the offset.
  kRbp = 2,      // cfa = rbp + cfa_offset
  kAligned = 3,  // cfa = *(rbp + cfa_offset), caller's rbp = *rbp: gcc's realigned frames.
  kSignal = 4,   // The signal trampoline: the interrupted registers are in memory (below).
  kEnd = 5,      // The return address is undefined: the outermost frame, the only root.
  kOther = 6,    // There is information, but it says something that no recipe can.
  kNoCfi = 7,    // No unwind information covers this address.
  kWide = 8,     // Of a packed recipe only: its numbers do not fit, ask wide_recipe().
};

struct Recipe {
  RecipeType type = RecipeType::kNone;
  int32_t cfa_offset = 0;  // Bytes.
  int32_t rbp_offset = 0;  // The caller's rbp is saved at cfa + rbp_offset; 0: it is in rbp still.
                           // (kAligned: at rbp itself, see there.)
};

// kSignal: the interrupted registers, in bytes from rsp in the trampoline, which points at the
// kernel's ucontext (struct rt_sigframe of arch/x86/include/asm/sigframe.h without its first word).
// The frame that was interrupted is looked up by its rip itself, not by rip - 1.
inline constexpr size_t kSignalRbp = 0x78;
inline constexpr size_t kSignalRsp = 0xa0;
inline constexpr size_t kSignalRip = 0xa8;

// A recipe in 27 bits, from the lowest: type 3 (0: kWide), cfa_offset / 8 13 (signed, but negative
// for kAligned only), -rbp_offset / 8 11 (1: it is in rbp still; nothing is ever saved there, that
// is where the return address lies). Each step of a walk waits for them, so both offsets come in
// bytes by one operation.
class PackedRecipe {
 public:
  static constexpr unsigned kBits = 27;

  constexpr explicit PackedRecipe(uint64_t bits) : bits_(bits) {}
  // kWide where the numbers do not fit.
  static constexpr PackedRecipe pack(const Recipe& recipe) {
    const int32_t cfa = recipe.cfa_offset / 8;
    const int32_t rbp = recipe.rbp_offset == 0 ? kNotSaved : -recipe.rbp_offset / 8;
    const int32_t least = recipe.type == RecipeType::kAligned ? -(1 << 12) : 0;
    const bool fits = cfa * 8 == recipe.cfa_offset && cfa >= least && cfa < 1 << 12 &&
                      recipe.rbp_offset % 8 == 0 && recipe.rbp_offset != -8 && rbp >= 1 &&
                      rbp < 1 << 11;
    if (!fits) return PackedRecipe(0);
    return PackedRecipe(static_cast<uint64_t>(recipe.type) |
                        uint64_t{static_cast<uint32_t>(cfa) & 0x1fffU} << 3 |
                        static_cast<uint64_t>(rbp) << 16);
  }

  constexpr RecipeType type() const {
    return (bits_ & 7) == 0 ? RecipeType::kWide : static_cast<RecipeType>(bits_ & 7);
  }
  // kRsp or kRbp: one of nearly all frames. Then the following three hold.
  constexpr bool is_common() const { return (bits_ & 7) - 1 < 2; }
  constexpr bool is_by_rbp() const { return (bits_ & 2) != 0; }
  constexpr uint64_t cfa_positive() const { return bits_ & 0xfff8; }
  // From the CFA down to the saved rbp; where it is not saved, to the return address.
  constexpr uint64_t rbp_below() const { return bits_ >> 13 & ~uint64_t{7}; }
  constexpr bool saves_rbp() const { return bits_ >> 16 != kNotSaved; }

  constexpr Recipe unpacked() const {
    const int32_t cfa = (static_cast<int32_t>(static_cast<uint32_t>(bits_) << 16) >> 19) * 8;
    return {type(), cfa, saves_rbp() ? -static_cast<int32_t>(rbp_below()) : 0};
  }
  constexpr uint64_t bits() const { return bits_; }

 private:
  static constexpr int32_t kNotSaved = 1;

  uint64_t bits_;
};

}  // namespace heapledger::trace
