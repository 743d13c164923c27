// SPDX-License-Identifier: Apache-2.0
// New stacks of a recording, packed: what the blobs in stack_batch.data hold.
//
// A compiler makes a new stack with every second or third call. As rows of table `stack` each would
// cost the recording half a microsecond and fifteen bytes; packed it is some nanoseconds and two
// bytes. The final pass writes the rows (unpack_stacks), so that whoever asks the trace finds an
// ordinary table.
//
// A batch is a run of nodes with consecutive ids; README.md, "Stack batches", has the layout.
// Invariants. 1. decode_stacks(first, encode_stacks(first, rows)) == rows. 2. A decoded parent is
// smaller than its node's id, so walking towards the root ends. 3. Any bytes may be decoded: the
// result is rows or an Error.
// Thread safety: none needed; no state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace heapledger::schema {

class Database;

inline constexpr size_t kBatchStacks = 65536;          // What a writer should put into a batch.
inline constexpr uint32_t kBatchStacksMax = 1u << 20;  // What a reader accepts.

struct StackRow {
  uint32_t parent = 0;  // Id of the node it was called from; 0: none.
  uint32_t frame = 0;

  friend bool operator==(const StackRow&, const StackRow&) = default;
};

// `first_id`: of the first row. Throws Error for a parent that is not before its node.
std::vector<uint8_t> encode_stacks(uint32_t first_id, std::span<const StackRow> rows);
std::vector<StackRow> decode_stacks(uint32_t first_id, std::span<const uint8_t> blob);

// Moves what is in stack_batch to `stack`, in the caller's transaction. Where a batch is damaged
// its nodes become "[incomplete]" at the root, and a note in `mark` says so.
void unpack_stacks(Database& db);

}  // namespace heapledger::schema
