// SPDX-License-Identifier: Apache-2.0
// A recorded process's calls as a file that heapledger-replayer makes again: the contract between
// the analyzer, which writes it, and the replayer, which knows nothing of traces.
//
// After the header: one ReplayThread per thread, then each thread's operations in its own order.
// Blocks live in slots, which are used again. Between threads only the order of what happens to one
// slot is kept: each operation names how many have happened to its slot before, and waits for them.
// A thread is started by the thread that was at work before its first call.
// Native byte order: a file is read on the machine that made it.
#pragma once

#include <cstdint>

namespace heapledger::schema {

inline constexpr uint64_t kReplayMagic = 0x31504552'4c504148;  // "HAPLREP1"

struct ReplayHeader {
  uint64_t magic = kReplayMagic;
  uint32_t threads = 0;  // The first is the process's own.
  uint32_t slots = 0;
};
static_assert(sizeof(ReplayHeader) == 16);

struct ReplayThread {
  uint64_t offset = 0;  // Of its first operation in the file.
  uint64_t operations = 0;
};

enum class ReplayKind : uint8_t {
  kAllocate,
  kZeroed,
  kAligned,  // To 1 << `shift`.
  kRelease,
  kResize,       // `old_slot` to `slot`.
  kTouch,        // `size` bytes of the block, a byte per page, from page `old_slot` of it on.
  kBreak,        // sbrk(`size`), signed.
  kSetOption,    // mallopt(`slot`, `size`).
  kTrim,         // malloc_trim(`size`).
  kStartThread,  // Number `slot`.
};

struct ReplayOp {
  static constexpr uint32_t kNoSlot = UINT32_MAX;

  uint64_t size = 0;
  uint32_t slot = kNoSlot;
  uint32_t turn = 0;  // How many operations happened to the slot before.
  uint32_t old_slot = kNoSlot;
  uint32_t old_turn = 0;
  ReplayKind kind = ReplayKind::kAllocate;
  uint8_t shift = 0;
  uint16_t fills = 0;  // Not 0: the program writes to all of the new block.
  uint32_t unused = 0;
};
static_assert(sizeof(ReplayOp) == 32);

// What the replayer writes to its standard output.
struct ReplayResult {
  uint64_t wall_ns = 0;  // Of the operations alone, as all that follows.
  uint64_t cpu_ns = 0;
  uint64_t minor_faults = 0;
  uint64_t failed = 0;  // Allocations that got nothing.
  uint64_t rss_start_bytes = 0;
  uint64_t rss_peak_bytes = 0;  // VmHWM: its own memory is in it, as in the figure before.
};

}  // namespace heapledger::schema
