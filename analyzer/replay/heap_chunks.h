// SPDX-License-Identifier: Apache-2.0
// The chunks in use at one moment of a replay, by address: live blocks, and freed ones that rest in
// a thread's cache or a fastbin. Everything between them in a held range is free for any request.
//
// Invariant: chunks do not overlap, live ones win. A freed chunk in the place of a live one is a
// mistake in following the caches (freed_chunks.h) and is left out.
// Thread safety: plain values. Cost: sorts the live blocks; 40 bytes for each.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "analyzer/replay/replay.h"

namespace heapledger::analyzer {

enum class ChunkState : uint8_t { kLive, kCached, kFast };
const char* chunk_state_name(ChunkState state);  // live | cached | fast
ChunkState chunk_state_of(std::string_view name);

struct HeapChunk {
  uint64_t block = 0;  // Address of the block; its header is before it.
  uint64_t end = 0;    // One past the chunk.
  int64_t time_ns = 0;
  uint32_t policy_bytes = 0;  // At most UINT32_MAX: what goes to caches and fastbins is small.
  uint32_t stack = 0;         // That allocated it.
  uint32_t thread = 0;
  ChunkState state = ChunkState::kLive;

  uint64_t start() const { return block - kHeaderBytes; }
  bool is_live() const { return state == ChunkState::kLive; }
};
static_assert(sizeof(HeapChunk) == 40);

std::vector<HeapChunk> chunks_in_use(const HeapState& heap);

}  // namespace heapledger::analyzer
