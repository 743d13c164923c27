// SPDX-License-Identifier: Apache-2.0
#include "interposer/trace/stack_walk.h"

#include "interposer/base/bits.h"
#include "interposer/trace/recipe_table.h"
#include "interposer/trace/stack_capture.h"

namespace heapledger::trace {
namespace {

constexpr uintptr_t kFramePair = 2 * sizeof(uintptr_t);  // A saved rbp and the return address.

inline const uintptr_t* word_at(uintptr_t address) {
  return static_cast<const uintptr_t*>(base::pointer_to(address));
}
inline uintptr_t load(uintptr_t address) { return *word_at(address); }

// A frame has at most three, and append() writes one more than it counts.
constexpr size_t reads_for(size_t depth) { return 3 * depth + 1; }

inline bool is_common(RecipeType type) {
  return type == RecipeType::kRsp || type == RecipeType::kRbp;
}

}  // namespace

// ---- Memory: ips, a frame that ends each search, frames, reads, steps, fresh, one behind the
// other.

size_t StackWalk::bytes_for(size_t depth) noexcept {
  const size_t reads = reads_for(depth);
  return depth * (sizeof(uintptr_t) + sizeof(Frame) + sizeof(Step)) + sizeof(Frame) +
         reads * sizeof(Read) + (depth + kOwnFramesMax + 4) * sizeof(uintptr_t);
}

void StackWalk::attach(void* memory, size_t depth) noexcept {
  static_assert(alignof(Frame) == 8 && alignof(Read) == 8 && alignof(Step) == 8);
  depth_ = static_cast<uint32_t>(depth);
  ips_ = static_cast<uintptr_t*>(memory);
  frames_ = reinterpret_cast<Frame*>(ips_ + depth) + 1;
  frames_[-1].sp = UINTPTR_MAX;
  reads_ = reinterpret_cast<Read*>(frames_ + depth);
  steps_ = reinterpret_cast<Step*>(reads_ + reads_for(depth));
  fresh_ = reinterpret_cast<uintptr_t*>(steps_ + depth);
  wasted_ = pause_ = 0;
  forget();
}

// ---- One frame outwards.

// Moves to the caller, whose CFA (its rsp) the recipe gives, if that lies in the stack.
StackWalk::Stepped StackWalk::step_by_recipe(Cursor& cursor, const Recipe& recipe) noexcept {
  Registers& at = cursor.at;
  uintptr_t cfa = 0;
  const auto cfa_offset = static_cast<uintptr_t>(intptr_t{recipe.cfa_offset});
  if (recipe.type == RecipeType::kAligned) {
    const uintptr_t place = at.bp + cfa_offset;
    if (place < at.sp || place > at.bp) return Stepped::kStopped;
    const uintptr_t end = at.bp + sizeof(uintptr_t);
    if (end > cursor.range.high && !cursor.bounds->extend(&cursor.range, end)) {
      return Stepped::kStopped;
    }
    cfa = load(place);
  } else {
    cfa = (recipe.type == RecipeType::kRsp ? at.sp : at.bp) + cfa_offset;
  }
  if (cfa < at.sp + sizeof(uintptr_t)) return Stepped::kStopped;
  if (cfa > cursor.range.high && !cursor.bounds->extend(&cursor.range, cfa)) {
    return Stepped::kStopped;
  }
  const uintptr_t ip = load(cfa - sizeof(uintptr_t));
  if (recipe.type == RecipeType::kAligned) {
    at.bp = load(at.bp);
  } else if (recipe.rbp_offset != 0) {
    at.bp = load(cfa + static_cast<uintptr_t>(intptr_t{recipe.rbp_offset}));
  }
  at.ip = ip;
  at.sp = cfa;
  cursor.exact = false;
  return ip == 0 ? Stepped::kRoot : Stepped::kOn;
}

StackWalk::Stepped StackWalk::step_out_of_signal(Cursor& cursor) noexcept {
  const uintptr_t base = cursor.at.sp;
  const uintptr_t end = base + kSignalRip + sizeof(uintptr_t);
  if (end > cursor.range.high && !cursor.bounds->extend(&cursor.range, end)) {
    return Stepped::kStopped;
  }
  cursor.at = {load(base + kSignalRip), load(base + kSignalRsp), load(base + kSignalRbp)};
  cursor.exact = true;
  cursor.range = cursor.bounds->around(cursor.at.sp);
  cursor.is_foreign |= !cursor.bounds->is_own(cursor.at.sp);
  return cursor.range.high == 0 ? Stepped::kStopped : Stepped::kOn;
}

// Code that came without unwind information: made at run time, or hand-written. Most of it keeps a
// frame pointer; taken for one only where it looks like one and leads to code that is known, or on
// to another one.
StackWalk::Stepped StackWalk::step_without_cfi(Cursor& cursor) noexcept {
  if (is_bare_root(cursor.at.ip)) return Stepped::kRoot;
  const uintptr_t bp = cursor.at.bp;
  const auto fits = [&](uintptr_t frame, uintptr_t above) {
    return frame >= above && base::is_aligned(frame, sizeof(uintptr_t)) &&
           frame <= cursor.range.high - kFramePair;
  };
  if (!fits(bp, cursor.at.sp)) return Stepped::kStopped;
  const uintptr_t ip = load(bp + sizeof(uintptr_t));
  if (ip == 0) return Stepped::kStopped;
  if (recipe_at(ip - 1).type() == RecipeType::kNoCfi && !fits(load(bp), bp + kFramePair)) {
    return Stepped::kStopped;
  }
  cursor.at = {ip, bp + kFramePair, load(bp)};
  cursor.exact = false;
  return Stepped::kOn;
}

// Any frame. go() does without it for nearly all of them.
__attribute__((noinline, cold)) StackWalk::Stepped StackWalk::step(Cursor& cursor,
                                                                   Step* step) noexcept {
  const uintptr_t at = cursor.exact ? cursor.at.ip : cursor.at.ip - 1;
  Recipe recipe = recipe_at(at).unpacked();
  if (recipe.type == RecipeType::kWide) recipe = wide_recipe(at);
  const int32_t saved = recipe.rbp_offset == 0 ? kNotSaved : recipe.rbp_offset;
  *step = {cursor.at.sp, cursor.at.bp,
           recipe.type == RecipeType::kAligned ? recipe.cfa_offset : saved, recipe.type,
           cursor.exact};
  switch (recipe.type) {
    case RecipeType::kRsp:
    case RecipeType::kRbp:
    case RecipeType::kAligned:
      return step_by_recipe(cursor, recipe);
    case RecipeType::kSignal:
      return step_out_of_signal(cursor);
    case RecipeType::kEnd:
      return Stepped::kRoot;
    case RecipeType::kNoCfi:
      step->offset = -static_cast<int32_t>(kFramePair);
      return step_without_cfi(cursor);
    default:
      return Stepped::kHelpless;
  }
}

bool StackWalk::skip_own_frames(Cursor& cursor, uintptr_t caller) noexcept {
  Step step_made;
  for (size_t i = 0; i < kOwnFramesMax; ++i) {
    if (step(cursor, &step_made) != Stepped::kOn) return false;
    if (cursor.at.ip == caller) return true;
  }
  return false;
}

// ---- The walk.

// Walks outwards until the stack ends, or to one of the known frames up to *known that it joins
// (kJoined; *known is that frame). Without kJoins it joins none, and nothing can be joined to what
// it finds: steps_ is not filled.
//
// The registers are in locals, which no function gets the address of, and the two common forms of
// a frame differ in no branch: each step waits for the one before, so what counts is the way from
// one return address to the next.
template <bool kJoins>
inline __attribute__((always_inline)) StackWalk::Stepped StackWalk::go(Cursor& cursor, int* known,
                                                                       size_t* fresh) noexcept {
  uintptr_t ip = cursor.at.ip;
  uintptr_t sp = cursor.at.sp;
  uintptr_t bp = cursor.at.bp;
  uintptr_t high = cursor.range.high;
  bool exact = cursor.exact;
  int candidate = *known;
  const size_t depth = depth_;
  uintptr_t* const ips = fresh_;
  Step* const steps = steps_;
  Stepped stepped = Stepped::kFull;
  size_t count = *fresh;
  for (; count < depth; ++count) {
    if constexpr (kJoins) {
      while (frames_[candidate].sp < sp) --candidate;
      if (frames_[candidate].sp == sp && ips_[candidate] == ip) {
        const Frame& frame = frames_[candidate];
        const bool same = ((frame.flags & kBpLive) == 0 || frame.bp == bp) &&
                          ((frame.flags & kExact) != 0) == exact;
        if (same) {
          const int changed = find_changed(candidate);
          if (changed < 0) {
            stepped = Stepped::kJoined;
            break;
          }
          candidate = changed - 1;  // Up to there the walk repeats itself.
        }
      }
    }
    ips[count] = ip;
    if (__builtin_expect(!exact, 1)) {
      const PackedRecipe recipe = recipe_at(ip - 1);
      const uintptr_t cfa = (recipe.is_by_rbp() ? bp : sp) + recipe.cfa_positive();
      const bool inside = cfa >= sp + sizeof(uintptr_t) && cfa <= high;
      if (__builtin_expect(recipe.is_common() & inside, 1)) {
        const auto below = static_cast<uintptr_t>(recipe.rbp_below());
        if constexpr (kJoins) {
          steps[count] = {sp, bp, -static_cast<int32_t>(below), recipe.type(), false};
        }
        ip = load(cfa - sizeof(uintptr_t));
        // Where rbp is not saved this reads the return address, for nothing.
        uintptr_t word = load(cfa - below);
        asm("" : "+r"(word));  // No branch around it, please.
        bp = recipe.saves_rbp() ? word : bp;
        sp = cfa;
        if (__builtin_expect(ip != 0, 1)) continue;
        ++count;
        stepped = Stepped::kRoot;
        break;
      }
    }
    cursor.at = {ip, sp, bp};
    cursor.exact = exact;
    Step step_made;
    stepped = step(cursor, &step_made);
    if constexpr (kJoins) steps[count] = step_made;
    ip = cursor.at.ip;
    sp = cursor.at.sp;
    bp = cursor.at.bp;
    high = cursor.range.high;
    exact = cursor.exact;
    if (stepped != Stepped::kOn) {
      ++count;
      break;
    }
    stepped = Stepped::kFull;
  }
  cursor.at = {ip, sp, bp};
  *known = candidate;
  *fresh = count;
  return stepped;
}

StackWalk::Outcome StackWalk::walk_from(uintptr_t ip, uintptr_t sp, uintptr_t bp, uintptr_t caller,
                                        StackBounds& bounds) noexcept {
  const uint32_t generation = code_generation();
  const uint32_t unmapped = unmappings();
  Cursor cursor = {{ip, sp, bp}, bounds.around(sp), false, !bounds.is_own(sp), &bounds};
  int known = -1;  // The innermost known frame that this walk may still join.
  const bool tries = pause_ == 0 && joinable_ && generation_ == generation &&
                     (!is_foreign_ || unmappings_ == unmapped);
  if (tries) known = static_cast<int>(count_) - 1;
  generation_ = generation;
  if (__builtin_expect(ip != caller, 0) &&
      (cursor.range.high == 0 || !skip_own_frames(cursor, caller))) {
    fresh_[0] = caller;
    return replace(1, false, false);
  }
  if (__builtin_expect(cursor.range.high == 0, 0)) {
    fresh_[0] = cursor.at.ip;
    return replace(1, false, false);
  }
  size_t fresh = 0;
  const Stepped stepped = __builtin_expect(pause_ == 0, 1) ? go<true>(cursor, &known, &fresh)
                                                           : go<false>(cursor, &known, &fresh);
  if (__builtin_expect(stepped == Stepped::kJoined, 1)) {
    is_foreign_ |= cursor.is_foreign;
    unmappings_ = unmapped;
    judge(static_cast<size_t>(known) + 1, fresh);
    return keep_from(known, fresh);
  }
  if (stepped == Stepped::kFull) return replace(fresh, false, false);
  if (stepped == Stepped::kHelpless) {
    return found(Outcome::kHelpless, 0, fresh);
  }
  is_foreign_ = cursor.is_foreign;
  unmappings_ = unmapped;
  // A walk that stopped early did so for words that are not among the reads.
  const bool rooted = stepped == Stepped::kRoot;
  if (pause_ != 0) {
    --pause_;
    return replace(fresh, rooted, false);
  }
  if (tries) judge(0, fresh);
  zero_sp_ = rooted && cursor.at.ip == 0 ? cursor.at.sp : 0;
  return replace(fresh, rooted, rooted);
}

// What an attempt to join has brought. A frame walked on the way to a join costs as much as two
// that are walked plainly, a frame kept hardly anything.
inline void StackWalk::judge(size_t kept, size_t fresh) noexcept {
  constexpr uint32_t kPatience = 4;
  constexpr uint32_t kPauseBitsMax = 8;
  if (__builtin_expect(fresh <= 4 || kept * 4 >= fresh * 5, 1)) {
    wasted_ = 0;
  } else if (++wasted_ >= kPatience) {
    const uint32_t bits = wasted_ - kPatience + 2;
    pause_ = 1U << (bits < kPauseBitsMax ? bits : kPauseBitsMax);
  }
}

// The outermost of the frames up to `frame` whose caller is another one now, or was found
// otherwise; -1: none. Reads in the walk's order and stops at the first difference.
inline int StackWalk::find_changed(int frame) const noexcept {
  for (uint32_t i = frames_[frame].reads_end; i-- > 0;) {
    if (__builtin_expect(*reads_[i].address != reads_[i].value, 0)) {
      int changed = 0;
      while (frames_[changed].reads_end <= i) ++changed;
      return changed;
    }
  }
  return -1;
}

// The known frames 0 to `joined` stay, the fresh ones lie inside.
inline StackWalk::Outcome StackWalk::keep_from(int joined, size_t fresh) noexcept {
  const auto keep = static_cast<size_t>(joined + 1);
  bool complete = complete_;
  if (__builtin_expect(keep + fresh > depth_, 0)) {
    // The outermost frames do not fit: the same as a walk that was cut.
    const size_t room = depth_ - fresh;
    for (size_t i = 0; i < room; ++i) fresh_[fresh + i] = ips_[keep - 1 - i];
    return replace(depth_, false, false);
  }
  if (fresh != 0 || keep != count_) append(keep, fresh);
  return found(complete ? Outcome::kComplete : Outcome::kIncomplete, keep, fresh);
}

// The fresh frames are the whole stack. What is the same from the outermost frame on still need not
// be told again.
StackWalk::Outcome StackWalk::replace(size_t fresh, bool complete, bool joinable) noexcept {
  const size_t most = fresh < count_ ? fresh : count_;
  size_t keep = 0;
  while (keep < most && ips_[keep] == fresh_[fresh - 1 - keep]) ++keep;
  complete_ = complete;
  joinable_ = joinable;
  if (joinable) {
    append(0, fresh);
  } else {
    count_ = 0;  // For a handler that jumps away from here.
    base::compiler_barrier();
    for (size_t i = keep; i < fresh; ++i) ips_[i] = fresh_[fresh - 1 - i];
    base::compiler_barrier();
    count_ = static_cast<uint32_t>(fresh);
  }
  return found(complete ? Outcome::kComplete : Outcome::kIncomplete, keep, fresh - keep);
}

// Puts the fresh frames inside the first `keep` known ones. What note_reads() does for any frame is
// done here for those of the two common forms, going inwards with the caller's registers in
// locals, and without a branch on whether rbp is saved, wanted or used.
void StackWalk::append(size_t keep, size_t fresh) noexcept {
  count_ = 0;
  base::compiler_barrier();
  const Step* step = steps_ + fresh;
  const uintptr_t* ip = fresh_ + fresh;
  for (size_t i = keep; i < keep + fresh;) {
    if (i == 0 || !is_common((step - 1)->type)) {
      ips_[i] = *--ip;
      note_reads(i++, *--step);
      continue;
    }
    uintptr_t caller_ip = ips_[i - 1];
    Frame caller = frames_[i - 1];
    for (; i < keep + fresh && is_common((step - 1)->type); ++i) {
      --step;
      const bool live = (caller.flags & kBpLive) != 0;
      const bool saved = step->offset != kNotSaved;
      Read* read = reads_ + caller.reads_end;
      read[0] = {word_at(caller.sp - sizeof(uintptr_t)), caller_ip};
      read[1] = {word_at(caller.sp + static_cast<uintptr_t>(intptr_t{step->offset})), caller.bp};
      const bool lives_on = step->type == RecipeType::kRbp || (live && !saved);
      caller = {step->sp, step->bp, caller.reads_end + 1 + (live && saved ? 1U : 0U),
                (lives_on ? uint32_t{kBpLive} : 0U) | (step->exact ? uint32_t{kExact} : 0U)};
      caller_ip = *--ip;
      ips_[i] = caller_ip;
      frames_[i] = caller;
    }
  }
  joinable_ = true;
  base::compiler_barrier();
  count_ = static_cast<uint32_t>(keep + fresh);
}

// Writes down frame `index`, whose caller is the frame before it: its registers and the words that
// led there.
void StackWalk::note_reads(size_t index, const Step& step) noexcept {
  Frame& frame = frames_[index];
  frame.sp = step.sp;
  frame.bp = step.bp;
  frame.flags = step.exact ? uint32_t{kExact} : 0U;
  if (index == 0) {  // The root.
    frame.reads_end = 0;
    if (zero_sp_ != 0) {  // By a return address that is zero: that decides as well.
      if (step.type != RecipeType::kRsp) frame.flags |= kBpLive;
      reads_[0] = {word_at(zero_sp_ - sizeof(uintptr_t)), 0};
      frame.reads_end = 1;
    }
    return;
  }
  const Frame& caller = frames_[index - 1];
  const bool bp_wanted = (caller.flags & kBpLive) != 0;
  uint32_t end = caller.reads_end;
  const auto add = [&](uintptr_t address, uintptr_t value) {
    reads_[end++] = {word_at(address), value};
  };
  if (__builtin_expect(step.type == RecipeType::kSignal, 0)) {
    add(step.sp + kSignalRip, ips_[index - 1]);
    add(step.sp + kSignalRsp, caller.sp);
    if (bp_wanted) add(step.sp + kSignalRbp, caller.bp);
  } else {
    add(caller.sp - sizeof(uintptr_t), ips_[index - 1]);
    if (step.type == RecipeType::kAligned) {
      if (bp_wanted) add(step.bp, caller.bp);
      add(step.bp + static_cast<uintptr_t>(intptr_t{step.offset}), caller.sp);
    } else if (bp_wanted && step.offset != kNotSaved) {
      add(caller.sp + static_cast<uintptr_t>(intptr_t{step.offset}), caller.bp);
    }
    const bool by_bp = step.type != RecipeType::kRsp;
    if (by_bp || (bp_wanted && step.offset == kNotSaved)) frame.flags |= kBpLive;
  }
  frame.reads_end = end;
}

}  // namespace heapledger::trace
