// SPDX-License-Identifier: Apache-2.0
// A shared region as the collector sees it: the memfd it made for one exec image, and its mapping.
//
// The program can write anything into its half, by accident too (a wild store). So the layout is
// kept here and never read back from the control page, and everything that is read from the region
// is checked by the reader.
//
// Thread safety: the accessors may be used by all threads; the fields behind them have the owners
// that schema/shared_region.h names. In the collector these are: drain thread: tail, heartbeat,
// doorbell; writer thread: freeing slots; observer thread: snapshot_done.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "interposer/collector/unique_fd.h"
#include "schema/shared_region.h"

namespace heapledger::collector {

struct RegionLayout {
  uint32_t process_slots = schema::kProcessSlotsDefault;
  uint32_t ring_slots = schema::kRingSlotsDefault;
  uint64_t ring_bytes = schema::kRingBytesDefault;  // A power of two.

  uint64_t process_offset() const { return 4096; }
  uint64_t slot_offset() const;
  uint64_t data_offset() const;
  uint64_t region_bytes() const { return data_offset() + uint64_t{ring_slots} * ring_bytes; }
};

// What the control page tells the program.
struct RegionSettings {
  schema::Clock clock = schema::Clock::kMonotonicRaw;
  uint32_t stack_depth = 128;
  bool free_stacks = false;
  bool verify_stacks = false;
};

class Region {
 public:
  // Makes the memfd, maps and fills it. Throws schema::Error. `image` counts from 1.
  Region(uint32_t image, const RegionLayout& layout, const RegionSettings& settings);
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  uint32_t image() const { return image_; }
  int fd() const { return fd_.get(); }
  uint64_t inode() const { return inode_; }  // Of the memfd, as /proc/PID/smaps names it.
  const RegionLayout& layout() const { return layout_; }

  schema::ControlPage& control() const;
  schema::ProcessSlot& process_slot(uint32_t index) const;
  schema::RingSlot& ring_slot(uint32_t index) const;
  const std::byte* ring_data(uint32_t index) const;

  // High-water marks, cut to what exists.
  uint32_t process_slots_used() const;
  uint32_t ring_slots_used() const;

  // Gives the pages of a ring back to the system. Its contents read as zeros afterwards.
  void drop_ring_pages(uint32_t index) const;

  // Set by the writer when no process of the image is left: the other threads let go of it.
  std::atomic<bool> retired{false};

 private:
  uint32_t image_;
  RegionLayout layout_;
  UniqueFd fd_;
  uint64_t inode_ = 0;
  std::byte* base_ = nullptr;
};

using RegionPtr = std::shared_ptr<Region>;

// A layout that fits into an address space limited to so many bytes (RLIMIT_AS of the program).
RegionLayout layout_within(uint64_t address_space_bytes);

}  // namespace heapledger::collector
