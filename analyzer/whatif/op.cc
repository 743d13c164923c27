// SPDX-License-Identifier: Apache-2.0
#include "analyzer/whatif/op.h"

#include "interposer/base/bits.h"

namespace heapledger::analyzer {

using schema::EventKind;

bool make_call_op(const schema::CallBatch& batch, size_t row, uint32_t ended, uint32_t begun,
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
  switch (op.event) {
    case EventKind::kCalloc:
      op.kind = OpKind::kZeroed;
      break;
    case EventKind::kRealloc:
    case EventKind::kReallocarray:
      op.kind = ended != Op::kNoBlock ? OpKind::kResize : OpKind::kAllocate;
      break;
    case EventKind::kPvalloc:
      op.size = op.size == 0 ? base::kPageBytes : base::align_up(op.size, base::kPageBytes);
      op.kind = OpKind::kAligned;
      break;
    default:
      op.kind = op.alignment != 0 ? OpKind::kAligned : OpKind::kAllocate;
      break;
  }
  return true;
}

}  // namespace heapledger::analyzer
