// SPDX-License-Identifier: Apache-2.0
#include "analyzer/finalize/usage.h"

#include <algorithm>
#include <bit>

namespace heapledger::analyzer {

namespace {

size_t class_of(uint64_t value) { return static_cast<size_t>(std::bit_width(value)); }

}  // namespace

void UsageCounts::make_thread(uint32_t id) {
  threads_.resize(std::max<size_t>(id + 1, threads_.size() * 2));
}

void UsageCounts::on_alloc(const schema::CallRow& row, const Block& block) {
  SizeClass& size = sizes_[class_of(block.size)];
  ++size.blocks;
  size.bytes += block.size;
  size.usable_bytes += block.usable;
  ++size.live_blocks;
  size.live_bytes += block.size;
  ThreadUse& by = thread(row.thread);
  ++by.blocks;
  by.bytes += block.size;
}

void UsageCounts::on_end(const schema::CallRow& row, const Block& block) {
  ThreadUse& by = thread(row.thread);
  ++by.freed;
  by.freed_bytes += block.size;
  if (block.inherited) return;  // Its allocation is its parent's.
  SizeClass& size = sizes_[class_of(block.size)];
  --size.live_blocks;
  size.live_bytes -= block.size;
  LifetimeClass& lifetime = lifetimes_[class_of(
      static_cast<uint64_t>(std::max<int64_t>(0, row.time_ns - block.time_ns)))];
  ++lifetime.blocks;
  lifetime.bytes += block.size;
  if (block.thread == row.thread) return;
  ++by.freed_foreign;
  ++thread(block.thread).freed_by_others;
}

}  // namespace heapledger::analyzer
