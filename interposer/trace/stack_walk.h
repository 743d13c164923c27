// SPDX-License-Identifier: Apache-2.0
// The delta walk: the stack of a call as the difference to the stack before, on the same ring.
//
// A walk by call frame information is a function of the registers it begins with, the recipes
// (recipe.h) and the words it reads. So where a walk comes to a frame with the very registers that
// the walk before had there, and every word that walk read from there outwards is still the same,
// the rest of the stack is the same: it is kept without being walked ("join"). Nothing is assumed
// about what returned in between, and nothing is written to the program's stack.
//
// Only words that decide are compared: return addresses, and saved rbp values if a frame further
// out finds its caller by rbp ("live"). They are read in the order in which the walk would read
// them, and a difference ends the comparison, so no address is touched that the walk itself would
// not have touched; it then goes on from where it was.
//
// Invariants. 1. ips_[0 .. count_) is the stack that the reader of the ring knows, outermost first.
// 2. If joinable_, frames_ and reads_ describe the same frames: frames_[i].reads_end words, in
// order from the outermost, decide the callers of frames 0 to i. 3. Only a stack that was walked to
// its root is joinable: not one that was cut at the depth limit, ended early or came from
// libunwind. 4. Joining ends where code was unloaded (code_generation) and, for stacks with a part
// outside the thread's own stack, where memory was unmapped.
//
// Thread safety: belongs to its ring's thread; a signal handler uses another ring's. All zero is
// "detached". Runs inside malloc: no allocation, no locks, errno kept. Cost: about 2 ns per frame
// kept; 12 to 16 ns per frame walked on the way to a join, and 6 where stacks have so little in
// common that none is tried (same-8, tree-32 and random-32 of tools/bench/overhead). In programs
// whose code is much larger than the caches it is twice that: nearly half of a walk
// in cc1plus is waiting for recipes, one after the other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "interposer/trace/recipe.h"
#include "interposer/trace/stack_bounds.h"

namespace heapledger::trace {

struct Registers {
  uintptr_t ip = 0;
  uintptr_t sp = 0;
  uintptr_t bp = 0;
};

// The registers in the caller of the function whose frame pointer this is.
inline Registers registers_above(const void* frame) noexcept {
  const auto* words = static_cast<const uintptr_t*>(frame);
  return {words[1], reinterpret_cast<uintptr_t>(words + 2), words[0]};
}

// More frames than this lie between the walk and the exported function that began it in no build.
inline constexpr size_t kOwnFramesMax = 12;

class StackWalk {
 public:
  // Bytes of memory for stacks of at most `depth` frames.
  static size_t bytes_for(size_t depth) noexcept;
  // `memory`: so many bytes, aligned to 8.
  void attach(void* memory, size_t depth) noexcept;

  enum class Outcome : uint8_t {
    kComplete,    // Walked to the root.
    kIncomplete,  // Ended early: at code without unwind information, or at the depth limit.
    kHelpless,    // A frame that only libunwind may know: take() its result instead.
  };
  struct Result {
    Outcome outcome;
    uint32_t keep;   // Outermost frames that are the same as before.
    uint32_t fresh;  // fresh()[0 .. fresh), innermost first, lie inside them.
  };

  // Walks from `start` outwards. The stack begins at the frame with ip `caller`; frames before it
  // are ours. The result becomes the known stack at once: who cannot tell the reader of it calls
  // forget().
  Result walk(Registers start, uintptr_t caller, StackBounds& bounds) noexcept {
    return result(walk_from(start.ip, start.sp, start.bp, caller, bounds));
  }

  // Takes fresh()[0 .. count), filled by another walk, innermost first, as the stack.
  Result take(size_t count, bool complete) noexcept {
    return result(replace(count, complete, false));
  }
  uintptr_t* fresh() noexcept { return fresh_; }
  const uintptr_t* fresh() const noexcept { return fresh_; }

  // The ring's reader knows no stack (any more).
  void forget() noexcept {
    count_ = 0;
    joinable_ = false;
  }
  uint32_t count() const noexcept { return count_; }
  // The known stack: count() frames, the outermost first.
  const uintptr_t* frames() const noexcept { return ips_; }

 private:
  enum FrameFlags : uint32_t {
    kBpLive = 1,  // bp decides about a caller, here or further out.
    kExact = 2,   // ip is where a signal interrupted, not a return address.
  };
  struct Frame {
    uintptr_t sp;
    uintptr_t bp;
    uint32_t reads_end;
    uint32_t flags;
  };
  struct Read {
    const uintptr_t* address;
    uintptr_t value;
  };
  // A fresh frame: its registers, and how its caller was found.
  struct Step {
    uintptr_t sp;
    uintptr_t bp;
    int32_t offset;  // Of the place where the caller's rbp is saved, from its CFA, kNotSaved:
                     // nowhere; kAligned: of the place where the CFA is, from rbp.
    RecipeType type;
    bool exact;
  };
  static constexpr int32_t kNotSaved = -8;  // The return address lies there.
  // Where a walk is.
  struct Cursor {
    Registers at;
    StackRange range;  // Around at.sp.
    bool exact;
    bool is_foreign;  // Some of the stack lies outside the thread's own.
    StackBounds* bounds;
  };
  enum class Stepped : uint8_t { kOn, kRoot, kStopped, kHelpless, kJoined, kFull };

  static Stepped step(Cursor& cursor, Step* step) noexcept;
  static Stepped step_by_recipe(Cursor& cursor, const Recipe& recipe) noexcept;
  static Stepped step_out_of_signal(Cursor& cursor) noexcept;
  static Stepped step_without_cfi(Cursor& cursor) noexcept;
  // Arguments and outcome in registers: what goes by memory is waited for.
  Outcome walk_from(uintptr_t ip, uintptr_t sp, uintptr_t bp, uintptr_t caller,
                    StackBounds& bounds) noexcept;
  Result result(Outcome outcome) const noexcept { return {outcome, found_keep_, found_fresh_}; }
  Outcome found(Outcome outcome, size_t keep, size_t fresh) noexcept {
    found_keep_ = static_cast<uint32_t>(keep);
    found_fresh_ = static_cast<uint32_t>(fresh);
    return outcome;
  }
  template <bool kJoins>
  Stepped go(Cursor& cursor, int* known, size_t* fresh) noexcept;
  static bool skip_own_frames(Cursor& cursor, uintptr_t caller) noexcept;
  int find_changed(int frame) const noexcept;
  void judge(size_t kept, size_t fresh) noexcept;
  Outcome keep_from(int joined, size_t fresh) noexcept;
  Outcome replace(size_t fresh, bool complete, bool joinable) noexcept;
  void append(size_t keep, size_t fresh) noexcept;
  void note_reads(size_t frame, const Step& step) noexcept;

  uint32_t count_;
  uint32_t generation_;  // code_generation() of what is known.
  uint32_t unmappings_;  // unmappings() of it; counts where is_foreign_.
  uint32_t depth_;
  uint32_t found_keep_;  // The result of the walk, but for its outcome.
  uint32_t found_fresh_;
  uint32_t wasted_;  // Walks in a row of which joining saved little.
  uint32_t pause_;   // So many walks are made plainly before joining is tried again.
  bool joinable_;
  bool complete_;  // What is known ends at the root.
  bool is_foreign_;
  uintptr_t zero_sp_;  // Not 0: the root was found by the zero below this stack pointer.
  uintptr_t* ips_;
  Frame* frames_;  // frames_[-1] lies outside of any stack.
  Read* reads_;
  Step* steps_;       // steps_[i] belongs to fresh_[i].
  uintptr_t* fresh_;  // With room for kOwnFramesMax more, for libunwind's.
};

}  // namespace heapledger::trace
