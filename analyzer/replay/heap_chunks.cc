// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay/heap_chunks.h"

#include <algorithm>

namespace heapledger::analyzer {

const char* chunk_state_name(ChunkState state) {
  switch (state) {
    case ChunkState::kLive:
      return "live";
    case ChunkState::kCached:
      return "cached";
    case ChunkState::kFast:
      break;
  }
  return "fast";
}

ChunkState chunk_state_of(std::string_view name) {
  return name == "live"     ? ChunkState::kLive
         : name == "cached" ? ChunkState::kCached
                            : ChunkState::kFast;
}

std::vector<HeapChunk> chunks_in_use(const Replay& replay) {
  std::vector<HeapChunk> chunks;
  chunks.reserve(replay.live().blocks());
  replay.live().for_each([&](const Block& block) {
    chunks.push_back({block.address, block.address + block.usable, block.time_ns,
                      policy_bytes_of(block), block.stack, block.thread, ChunkState::kLive});
  });
  replay.freed_chunks().for_each([&](const FreedChunk& chunk) {
    chunks.push_back({chunk.address, chunk.address - kHeaderBytes + chunk.bytes, 0, chunk.bytes,
                      chunk.stack, chunk.thread,
                      chunk.in_fastbin ? ChunkState::kFast : ChunkState::kCached});
  });
  std::sort(chunks.begin(), chunks.end(), [](const HeapChunk& a, const HeapChunk& b) {
    if (a.block != b.block) return a.block < b.block;
    return a.state != b.state ? a.state < b.state : a.time_ns < b.time_ns;
  });
  size_t kept = 0;
  uint64_t live_end = 0;
  for (size_t i = 0; i < chunks.size(); ++i) {
    const HeapChunk& chunk = chunks[i];
    if (chunk.is_live()) {
      live_end = std::max(live_end, chunk.end);
      // A freed chunk before it that reaches into it.
      while (kept > 0 && !chunks[kept - 1].is_live() && chunks[kept - 1].end > chunk.start()) {
        --kept;
      }
    } else if (chunk.start() < live_end ||
               (kept > 0 && !chunks[kept - 1].is_live() && chunks[kept - 1].end > chunk.start())) {
      continue;
    }
    chunks[kept++] = chunk;
  }
  chunks.resize(kept);
  return chunks;
}

}  // namespace heapledger::analyzer
