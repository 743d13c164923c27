// SPDX-License-Identifier: Apache-2.0
#include "analyzer/finalize/heap_growth.h"

#include <algorithm>

namespace heapledger::analyzer {

namespace {

constexpr uint64_t kArenaTableBytes = 4096;

bool grows_a_heap(const SyscallRow& call) {
  if (call.failed()) return false;
  if (call.name == schema::SyscallName::kBrk) return call.cause == "grow top";
  return call.name == schema::SyscallName::kMprotect &&
         (call.cause == "grow heap" || call.cause == "new heap");
}

}  // namespace

void HeapGrowth::on_syscall(const SyscallRow& call, ArenaUse& arenas) {
  if (!grows_a_heap(call)) return;
  const bool is_break = call.name == schema::SyscallName::kBrk;
  const uint32_t arena = is_break ? kMainArena : arenas.arena_of(call.args[0], call.time_ns);
  const uint64_t held = arenas.held_bytes(arena);
  const uint64_t used = live_in(arena) + (arena == kMainArena ? 0 : kArenaTableBytes);
  pending_[call.thread] = {arena, held, held - std::min(held, used)};
}

void HeapGrowth::end_growth(uint32_t thread, uint32_t stack, uint64_t bytes, uint32_t arena,
                            const ArenaUse& arenas) {
  const auto found = pending_.find(thread);
  if (found == pending_.end()) return;
  const Pending before = found->second;
  pending_.erase(found);
  if (before.arena != arena) return;
  const uint64_t held = arenas.held_bytes(arena);
  const uint64_t grown = held - std::min(held, before.held_bytes);
  StackGrowth& row = stacks_[stack];
  row.stack = stack;
  ++row.growths;
  row.bytes += grown;
  if (before.free_bytes < bytes) return;
  ++row.failed_reuses;
  row.failed_bytes += grown;
  row.free_bytes_max = std::max(row.free_bytes_max, before.free_bytes);
}

std::vector<StackGrowth> HeapGrowth::rows() const {
  std::vector<StackGrowth> rows;
  rows.reserve(stacks_.size());
  for (const auto& [stack, row] : stacks_) rows.push_back(row);
  std::sort(rows.begin(), rows.end(),
            [](const StackGrowth& a, const StackGrowth& b) { return a.stack < b.stack; });
  return rows;
}

}  // namespace heapledger::analyzer
