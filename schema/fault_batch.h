// SPDX-License-Identifier: Apache-2.0
// The page faults of a process, packed: what fault_batch.data and fault_batch.attribution hold.
//
// The same frame and the same promises as schema/event_batch.h. The attribution is a blob of its
// own because it is written later, by the final pass, when replaying the calls has shown which
// block owned each address; a batch without one has rows with touch kUnknown.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace heapledger::schema {

inline constexpr size_t kBatchFaults = 65536;
inline constexpr uint32_t kBatchFaultsMax = 1u << 20;

struct FaultRow {
  int64_t time_ns = 0;
  uint32_t thread = 0;   // Row of table `thread`.
  uint64_t address = 0;  // That was touched.
  uint64_t ip = 0;       // The touching instruction.
  bool major = false;    // Needed I/O.
  bool kernel = false;   // Touched by the kernel on the program's behalf (a read() into the page).

  friend bool operator==(const FaultRow&, const FaultRow&) = default;
};

// What a touch did to its page.
enum class Touch : uint8_t {
  kUnknown = 0,
  kFirst = 1,        // The page had never been there.
  kZeroUpgrade = 2,  // It was the shared zero page, read before, and is written now.
  kCow = 3,          // It was shared with another process since a fork.
  kRepeat = 4,       // It had been there, and was given back to the system.
};
inline constexpr uint8_t kTouchCount = 5;
// The text of a touch in table `fault`; nullptr (NULL) for kUnknown and numbers that are none.
const char* touch_name(Touch touch);

struct FaultAttribution {
  uint64_t block_id = 0;  // event.id of the live block at the address; 0: in no block.
  uint32_t site = 0;      // Stack that allocated it; 0: in no block.
  Touch touch = Touch::kUnknown;

  friend bool operator==(const FaultAttribution&, const FaultAttribution&) = default;
};

enum FaultColumns : uint32_t {
  kFaultTime = 1u << 0,
  kFaultThread = 1u << 1,
  kFaultAddress = 1u << 2,
  kFaultIp = 1u << 3,
  kFaultFlags = 1u << 4,  // major and kernel
  kFaultColumnsAll = (1u << 5) - 1,
};

struct FaultBatch {
  size_t faults = 0;
  uint32_t columns = 0;
  std::vector<int64_t> time_ns;
  std::vector<uint32_t> thread;
  std::vector<uint64_t> address, ip;
  std::vector<uint8_t> major, kernel;  // 0 or 1.

  FaultRow row(size_t index) const;
};

// Rows must be sorted by time. Any bytes may be given to the decoders: rows or Error.
std::vector<uint8_t> encode_faults(std::span<const FaultRow> rows);
void decode_faults(std::span<const uint8_t> blob, uint32_t columns, FaultBatch& batch);
std::vector<FaultRow> decode_faults(std::span<const uint8_t> blob);

// One per row of the batch, in its order.
std::vector<uint8_t> encode_attribution(std::span<const FaultAttribution> rows);
std::vector<FaultAttribution> decode_attribution(std::span<const uint8_t> blob);

}  // namespace heapledger::schema
