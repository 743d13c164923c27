// SPDX-License-Identifier: Apache-2.0
#include "tests/interposer/heap/differential/recorded_sequence.h"

#include <stdexcept>

#include "analyzer/trace_info.h"
#include "analyzer/whatif/recorded_ops.h"
#include "schema/trace_db.h"

namespace heapledger::heap::differential {

namespace {

using RecordedOp = analyzer::Op;
using analyzer::OpKind;

class Converter {
 public:
  void add(const RecordedOp& op) {
    if (op.thread != 0) throw std::runtime_error("the process has several threads");
    switch (op.kind) {
      case OpKind::kAllocate:
        return push(kOpMalloc, begin(op.block), op.size, 0);
      case OpKind::kZeroed:
        return push(kOpCalloc, begin(op.block), op.size, 1);
      case OpKind::kAligned:
        return push(kOpMemalign, begin(op.block), op.size, op.alignment);
      case OpKind::kRelease:
        return push(kOpFree, end(op.block), 0, 0);
      case OpKind::kResize: {
        const uint32_t slot = end(op.old_block);
        return push(kOpRealloc, begin_at(op.block, slot), op.size, 0);
      }
      case OpKind::kForeignBreak:
        return push(kOpSbrk, 0, op.size, 0);
      case OpKind::kSetOption:
        return push(kOpMallopt, 0, op.block, op.size);
      case OpKind::kTrim:
        return push(kOpTrim, 0, op.size, 0);
      case OpKind::kThreadEnd:
      case OpKind::kTouch:
        return;
      case OpKind::kFork:
        throw std::runtime_error("the process is a fork");
    }
  }

  Sequence take() { return std::move(sequence_); }

 private:
  // Blocks of the trace are small numbers, reused; slot 0 is for what has none.
  uint32_t begin(uint32_t block) {
    return block == RecordedOp::kNoBlock ? 0 : begin_at(block, fresh_slot());
  }
  uint32_t begin_at(uint32_t block, uint32_t slot) {
    if (block == RecordedOp::kNoBlock) return slot;
    if (slot_of_.size() <= block) slot_of_.resize(block + 1);
    slot_of_[block] = slot;
    return slot;
  }
  // A released block's slot is free again, unless a resized one keeps it.
  uint32_t end(uint32_t block) {
    if (block == RecordedOp::kNoBlock || block >= slot_of_.size()) return 0;
    const uint32_t slot = slot_of_[block];
    slot_of_[block] = 0;
    return slot;
  }
  uint32_t fresh_slot() {
    if (!free_.empty()) {
      const uint32_t slot = free_.back();
      free_.pop_back();
      return slot;
    }
    if (sequence_.slot_count == kSlots) throw std::runtime_error("too many live blocks");
    return sequence_.slot_count++;
  }
  void push(uint32_t kind, uint32_t slot, uint64_t a, uint64_t b) {
    if (sequence_.ops.size() == kOpsMax) throw std::runtime_error("too many calls");
    if (kind == kOpFree && slot != 0) free_.push_back(slot);
    sequence_.ops.push_back({static_cast<uint16_t>(kind), 0, slot, a, b});
  }

  Sequence sequence_ = {0, {}, {}, 1, kGlibcDefault};
  std::vector<uint32_t> slot_of_;  // By block.
  std::vector<uint32_t> free_;
};

}  // namespace

Sequence recorded_sequence(const std::string& trace, int64_t process) {
  schema::Database db = schema::open_trace(trace, schema::OpenMode::kReadOnly);
  const analyzer::TraceInfo info = analyzer::load_trace_info(db);
  analyzer::RecordedOps reader(db, info, process);
  Converter converter;
  for (std::vector<RecordedOp> ops; reader.next_chunk(ops);) {
    for (const RecordedOp& op : ops) converter.add(op);
  }
  return converter.take();
}

}  // namespace heapledger::heap::differential
