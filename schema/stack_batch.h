// SPDX-License-Identifier: Apache-2.0
// New stacks of a recording, packed: what the blobs in stack_batch.data hold.
//
// A compiler makes a new stack with every second or third call. As rows of table `stack` each would
// cost half a microsecond and fifteen bytes; packed it is some nanoseconds and one byte. Where a
// trace has few stacks the final pass makes rows of `stack` of them (unpack_stacks), so that any
// sqlite3 reads them; else `stack` is a virtual table (schema/stack_vtab.h).
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
#include <string>
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

// The same for a batch that is said to have `count` rows. One that cannot be decoded is that many
// times "[incomplete]" at the root, so that every stack that an event names exists; `why` then says
// what is wrong with it.
std::vector<StackRow> decode_stacks_or_incomplete(uint32_t first_id, size_t count,
                                                  std::span<const uint8_t> blob, std::string& why);

// More stacks than this stay packed: an ordinary table would be a good part of the trace.
inline constexpr int64_t kPlainStacksMax = 65536;
// Moves what is in stack_batch to `stack` where it is little; else there is no table `stack`, so
// that the virtual one shows. In the caller's transaction. A note in `mark` tells of each damaged
// batch.
void unpack_stacks(Database& db, int64_t plain_max = kPlainStacksMax);

}  // namespace heapledger::schema
