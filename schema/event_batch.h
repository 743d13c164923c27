// SPDX-License-Identifier: Apache-2.0
// The calls of a process, packed: what the blobs in event_batch.data hold.
//
// A batch is up to some ten thousand rows, stored by column so that a reader unpacks the columns it
// asks for and no others (schema/packed_columns.h has the frame: directory, checksums, zstd).
// What can be told from other rows is not stored: an id that follows the thread's last one, the
// address of a free whose allocation is in the same batch, a usable size by the rule. Which of
// these hold for a row is its *shape*; a batch has few distinct shapes, so a row's shape is one
// byte that compresses to two or three bits. README.md, "Event batches", has the layout and an
// example.
//
// Invariants. 1. decode(encode(rows)) == rows, but for the wire-only flags (see CallRow::flags).
// 2. Rows go in sorted by call_before() and come out in the same order. 3. Any bytes at all may be
// decoded: the result is rows or an Error, never anything else; damage to bytes that were asked for
// is noticed by checksum. 4. A decoded batch has time_ns in non-descending order and call kinds
// only.
// Thread safety: an encoder or decoder belongs to one thread at a time; they share nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "schema/event.h"

namespace heapledger::schema {

inline constexpr size_t kBatchEvents = 65536;          // What a writer should put into a batch.
inline constexpr uint32_t kBatchEventsMax = 1u << 20;  // What a reader accepts.

// One malloc-family call.
struct CallRow {
  int64_t time_ns = 0;
  int64_t ended_ns = 0;  // Realloc: when the old block ended; every other kind: time_ns.
  uint32_t thread = 0;   // Row of table `thread`.
  EventKind kind = EventKind::kMalloc;
  uint8_t flags = 0;         // Of EventFlags those in kStoredFlags; others are not stored.
  uint64_t id = 0;           // The block it began; 0: none.
  uint64_t address = 0;      // Of that block; of a free: what was freed.
  uint64_t size = 0;         // Requested bytes; 0 for frees.
  uint64_t usable = 0;       // What the block can hold; 0 where no block began.
  uint64_t alignment = 0;    // Requested; 0: none.
  uint64_t ended_id = 0;     // The block it ended; 0: none, or from before the recording.
  uint64_t old_address = 0;  // Realloc only: its first argument.
  uint32_t stack = 0;        // Row of table `stack`; 0: none was taken.

  friend bool operator==(const CallRow&, const CallRow&) = default;
};

inline constexpr uint8_t kStoredFlags = kStackIncomplete | kFailed | kNested;

// The order of events: by time; at equal times what ends a block comes first, because its address
// may be the one that another thread got in the same nanosecond. Sort stably with it. Time: O(1).
constexpr int call_rank(EventKind kind) {
  return kind >= EventKind::kRealloc ? 1 : kind >= EventKind::kFree ? 0 : 2;
}
constexpr bool call_before(const CallRow& a, const CallRow& b) {
  return a.time_ns != b.time_ns ? a.time_ns < b.time_ns : call_rank(a.kind) < call_rank(b.kind);
}

// Columns to decode; or them together.
enum CallColumns : uint32_t {
  kColumnTime = 1u << 0,
  kColumnEndedTime = 1u << 1,
  kColumnThread = 1u << 2,
  kColumnKind = 1u << 3,  // With the flags.
  kColumnId = 1u << 4,
  kColumnAddress = 1u << 5,
  kColumnSize = 1u << 6,
  kColumnUsable = 1u << 7,
  kColumnAlignment = 1u << 8,
  kColumnEndedId = 1u << 9,
  kColumnOldAddress = 1u << 10,
  kColumnStack = 1u << 11,
  kColumnsAll = (1u << 12) - 1,
};

// A decoded batch. Columns that were not asked for (nor needed for one that was) are left empty.
struct CallBatch {
  size_t events = 0;
  uint32_t columns = 0;  // What is there.
  std::vector<int64_t> time_ns, ended_ns;
  std::vector<uint32_t> thread;
  std::vector<EventKind> kind;
  std::vector<uint8_t> flags;
  std::vector<uint64_t> id, address, size, usable, alignment, ended_id, old_address;
  std::vector<uint32_t> stack;

  // Empties it, but for columns that a decoder is about to overwrite: to give them their length
  // again would write them twice. Keeps the memory.
  void clear_except(uint32_t kept);
  // Row `index`; columns that are not there keep their default values.
  CallRow row(size_t index) const;
};

struct CallChunk;  // schema/call_chunk.h

// Packs rows. Keep one for many batches: it reuses its memory. Throws Error for rows out of order
// in time and for kinds that are no calls. Some 20 million rows a second.
class CallEncoder {
 public:
  CallEncoder();
  ~CallEncoder();
  CallEncoder(const CallEncoder&) = delete;
  CallEncoder& operator=(const CallEncoder&) = delete;

  // The blob stays valid until the next one is finished.
  std::span<const uint8_t> encode(std::span<const CallRow> rows);

  // The same in pieces: begin(), then add() any number of times, then finish(). After an Error only
  // begin() may follow.
  void begin(size_t rows_max);
  void add(std::span<const CallRow> rows);
  void add(const CallChunk& calls);
  size_t rows() const;  // Added since begin().
  std::span<const uint8_t> finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Unpacks. Keep one for many batches. Throws Error for anything that is not a whole batch.
class CallDecoder {
 public:
  CallDecoder();
  ~CallDecoder();
  CallDecoder(const CallDecoder&) = delete;
  CallDecoder& operator=(const CallDecoder&) = delete;

  void decode(std::span<const uint8_t> blob, uint32_t columns, CallBatch& batch);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The same for a single batch.
std::vector<uint8_t> encode_calls(std::span<const CallRow> rows);
std::vector<CallRow> decode_calls(std::span<const uint8_t> blob);

}  // namespace heapledger::schema
