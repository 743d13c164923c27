// SPDX-License-Identifier: Apache-2.0
#include "analyzer/whatif/sweep_stream.h"

#include <algorithm>
#include <utility>

namespace heapledger::analyzer {

void LiveBytes::fill(Chunk& chunk) {
  chunk.live_bytes.resize(chunk.ops.size());
  for (size_t i = 0; i < chunk.ops.size(); ++i) {
    apply(chunk.ops[i]);
    chunk.live_bytes[i] = live_;
  }
}

void LiveBytes::apply(const Op& op) {
  switch (op.kind) {
    case OpKind::kAllocate:
    case OpKind::kZeroed:
    case OpKind::kAligned:
    case OpKind::kResize:
      if (op.failed) return;
      if (op.old_block != Op::kNoBlock) end(op.old_block);
      if (op.block != Op::kNoBlock) begin(op.block, op.size);
      break;
    case OpKind::kRelease:
      end(op.block);
      break;
    default:
      break;
  }
}

void LiveBytes::begin(uint32_t block, uint64_t bytes) {
  if (block >= sizes_.size()) sizes_.resize(std::max<size_t>(1024, block * size_t{2}));
  sizes_[block] = bytes;
  live_ += bytes;
}

void LiveBytes::end(uint32_t block) {
  if (block < sizes_.size()) live_ -= std::exchange(sizes_[block], 0);
}

void OtherSteps::fill(Chunk& chunk) {
  chunk.other_steps.clear();
  for (size_t i = 0; i < chunk.ops.size() && next_ < steps_.size(); ++i) {
    const size_t before = next_;
    while (next_ < steps_.size() && steps_[next_].time_ns <= chunk.ops[i].time_ns) ++next_;
    if (next_ != before) chunk.other_steps.push_back({i, steps_[next_ - 1].bytes});
  }
}

void SweepStream::fill(size_t number, std::span<const Op> recorded) {
  Chunk& chunk = chunks_[number];
  if (seed_ != 0) interleaving_.reorder(recorded, chunk.ops);
  live_.fill(chunk);
  others_.fill(chunk);
}

}  // namespace heapledger::analyzer
