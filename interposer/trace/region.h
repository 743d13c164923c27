// SPDX-License-Identifier: Apache-2.0
// The shared region as this process has it mapped, and the handshake that brings it here.
//
// The region is mapped once, at the first call of the image, and its descriptor closed at once:
// from then on heapledger holds no descriptor in the program. Under an address space limit only the
// first rings are mapped (an eighth of the limit at most). Thread safety: join_session() runs once,
// before the program has threads. No allocation, no locks, errno kept.
#pragma once

#include <cstddef>
#include <cstdint>

#include "schema/shared_region.h"

namespace heapledger::trace {

struct Region {
  schema::ControlPage* control = nullptr;
  schema::ProcessSlot* processes = nullptr;
  schema::RingSlot* rings = nullptr;
  std::byte* data = nullptr;
  uint64_t ring_bytes = 0;
  uint32_t process_slots = 0;
  uint32_t ring_slots = 0;  // Those that are mapped; may be fewer than the region has.
  uint64_t mapped_bytes = 0;
};

// Maps the region behind `fd`. Null on success, else why not, for one line on stderr. Leaves `fd`
// open.
const char* map_region(int fd, uint64_t region_bytes, Region* region) noexcept;

// What join_session() answers where the recording was over before this image began (its collector
// ended, was killed, or could write no more). Whoever recorded has said so; children need not.
inline constexpr char kRecordingEnded[] = "the recording has ended";

// Says Hello to the collector whose abstract socket is called `name`, and maps the region it hands
// out. Null on success, else why not.
const char* join_session(const char* name, Region* region) noexcept;

// The most of `wanted` bytes that this process may map without eating up its address space limit.
uint64_t mapping_allowance(uint64_t wanted) noexcept;

}  // namespace heapledger::trace
