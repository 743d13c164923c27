// SPDX-License-Identifier: Apache-2.0
#include "analyzer/whatif/op.h"

#include "interposer/base/bits.h"

namespace heapledger::analyzer {

using schema::EventKind;

void set_allocating_kind(Op& op) {
  switch (op.event) {
    case EventKind::kCalloc:
      op.kind = OpKind::kZeroed;
      break;
    case EventKind::kRealloc:
    case EventKind::kReallocarray:
      op.kind = op.old_block != Op::kNoBlock ? OpKind::kResize : OpKind::kAllocate;
      break;
    case EventKind::kPvalloc:
      op.size = op.size == 0 ? base::kPageBytes : base::align_up(op.size, base::kPageBytes);
      op.kind = OpKind::kAligned;
      break;
    default:
      op.kind = op.alignment != 0 ? OpKind::kAligned : OpKind::kAllocate;
      break;
  }
}

}  // namespace heapledger::analyzer
