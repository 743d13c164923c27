// SPDX-License-Identifier: Apache-2.0
// An operation for a model of an allocator: a call of the program, or one of the rare things beside
// them that decide what an allocator does.
#pragma once

#include <cstdint>

#include "schema/event_batch.h"

namespace heapledger::analyzer {

enum class OpKind : uint8_t {
  kAllocate,      // malloc, new
  kZeroed,        // calloc
  kAligned,       // memalign and its kin
  kRelease,       // free, delete, realloc(p, 0)
  kResize,        // realloc of a block
  kThreadEnd,     // Its cache goes back.
  kForeignBreak,  // The program moved the break by `size` (signed), or asked where it is (0).
  kSetOption,     // mallopt(`block`, `size`), both as ints.
  kTrim,          // malloc_trim(`size`)
  kFork,          // From here on: the child's own. `thread` is the one that goes on.
  kTouch,         // The program touched `size` bytes of `block`, from `alignment` on.
};

struct Op {
  static constexpr uint32_t kNoBlock = UINT32_MAX;

  int64_t time_ns = 0;
  uint64_t size = 0;  // Requested bytes, or as the kind says.
  uint64_t alignment = 0;
  uint32_t block = kNoBlock;      // That begins; of kRelease: that ends.
  uint32_t old_block = kNoBlock;  // kResize only: that ends.
  uint32_t thread = 0;            // Small numbers, in order of appearance.
  OpKind kind = OpKind::kAllocate;
  schema::EventKind event = schema::EventKind::kPad;  // The function called; kPad: none.
  bool failed = false;                                // It got nothing: the system refused.
};
static_assert(sizeof(Op) == 40);

// Of a call that is no release; all else is set.
void set_allocating_kind(Op& op);

// Makes the operation of a call that ended and began these blocks (kNoBlock: none) in `op`, which
// is as made anew. False where a model has nothing to do: the end of a block from before the
// recording. Needs the columns time, kind, id, size and alignment.
inline bool make_call_op(const schema::CallBatch& batch, size_t row, uint32_t ended, uint32_t begun,
                         uint32_t thread, Op& op) {
  op.time_ns = batch.time_ns[row];
  op.event = batch.kind[row];
  op.failed = (batch.flags[row] & schema::kFailed) != 0;
  op.thread = thread;
  op.size = batch.size[row];
  op.alignment = batch.alignment[row];
  if (batch.id[row] == 0 && !op.failed) {
    op.kind = OpKind::kRelease;
    op.block = ended;
    return ended != Op::kNoBlock;
  }
  op.block = begun;
  op.old_block = ended;
  if (op.event != schema::EventKind::kMalloc || op.alignment != 0) set_allocating_kind(op);
  return true;
}

}  // namespace heapledger::analyzer
