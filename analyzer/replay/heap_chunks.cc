// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay/heap_chunks.h"

#include <algorithm>
#include <tuple>

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

namespace {

uint32_t narrow(uint64_t bytes) {
  return static_cast<uint32_t>(std::min<uint64_t>(bytes, UINT32_MAX));
}

}  // namespace

std::vector<HeapChunk> chunks_in_use(const HeapState& heap) {
  std::vector<HeapChunk> chunks;
  size_t count = 0;  // To grow would take two times more again.
  heap.each_live([&](const Block&) { ++count; });
  heap.freed_chunks().for_each([&](const FreedChunk&) { ++count; });
  chunks.reserve(count);
  heap.each_live([&](const Block& block) {
    chunks.push_back({block.address, block.address + block.usable, block.time_ns,
                      narrow(policy_bytes_of(block)), block.stack, block.thread,
                      ChunkState::kLive});
  });
  heap.freed_chunks().for_each([&](const FreedChunk& chunk) {
    chunks.push_back({chunk.address, chunk.address - kHeaderBytes + chunk.bytes, 0,
                      narrow(chunk.bytes), chunk.stack, chunk.thread,
                      chunk.in_fastbin ? ChunkState::kFast : ChunkState::kCached});
  });
  // Every tie is broken: a freed chunk may be known twice, and the result must not be chance.
  std::sort(chunks.begin(), chunks.end(), [](const HeapChunk& a, const HeapChunk& b) {
    const auto key = [](const HeapChunk& chunk) {
      return std::tuple(chunk.block, chunk.state, chunk.time_ns, chunk.end, chunk.thread,
                        chunk.stack);
    };
    return key(a) < key(b);
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
