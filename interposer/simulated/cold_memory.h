// SPDX-License-Identifier: Apache-2.0
//
// Memory in which words are few: what has not been touched for long is packed.
//
// A model of an allocator writes the headers of chunks and nothing between them, but a page of real
// memory for each page that it writes to. Of a heap of many small blocks most headers are written
// once and read when the block is freed. So a range of addresses is watched in *clusters* of 64
// KiB. One is without access until it is touched; the fault opens it. When more are open than
// should be, the one opened longest ago is closed again, which costs nothing but a fault if it is
// touched soon; the ones that stay closed are packed (their words that are not zero, each with its
// distance from the last one) and their pages given back.
//
//     unused --touch--> open --too many--> closed --too many--> packed
//                        ^------touch--------'                    |
//                        ^------touch-----------------------------'
//
// How many may be open grows where clusters are touched again soon after they were packed, and not
// for the first few times: memory that is in use as a whole stays open. A heap that grew and is
// freed in the end, from whichever side, does not count, nor that its free lists are walked then.
//
// The fault is a SIGSEGV, which a handler of the process sees; faults at other addresses go on to
// the handler that was there before. Where the kernel allows no more mappings everything is opened,
// and stays.
// Valgrind resumes after the fault with old registers, unless it is told
// --vex-iropt-register-updates=allregs-at-mem-access.
// Invariants. 1. A cluster is in exactly one state, and is in `open_` or `closed_` as it says. 2. A
// packed cluster's pages are not there. 3. What is read is what was written.
// Thread safety: the memory belongs to one thread at a time, and so do its faults.
// Cost: 2 us per cluster opened, some 10 to 20 where it was packed; else nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

namespace heapledger::heap {

class ColdMemory {
 public:
  static constexpr size_t kClusterBytes = size_t{1} << 16;

  // Of [begin, begin + bytes), private memory that is all zeros and may be read and written.
  // `begin` and `bytes` are multiples of the cluster. Up to `hot_bytes` are never packed, and
  // nothing is while no more than `all_hot_bytes` were touched.
  ColdMemory(uintptr_t begin, size_t bytes, size_t hot_bytes, size_t all_hot_bytes = 0);
  // The memory must be unmapped by its owner, before or after.
  ~ColdMemory();
  ColdMemory(const ColdMemory&) = delete;
  ColdMemory& operator=(const ColdMemory&) = delete;

  // Everything is there again and can be touched without a fault; nothing is packed any more.
  void open_all();

  // How many clusters were packed so far, and how many bytes what is packed now takes.
  uint64_t packs() const { return packs_; }
  size_t packed_bytes() const { return packed_bytes_; }

  // For the signal's handler: false if the address is none of this memory's or can be touched.
  bool on_fault(uintptr_t address);

 private:
  enum class State : uint8_t { kOpen, kClosed, kPacked };
  struct Cluster {
    State state = State::kOpen;
    uint8_t unpacked = 0;  // How often; a few times at most.
    uint32_t packed_bytes = 0;
    uint64_t packed_at = 0;            // How many were packed before it.
    std::unique_ptr<uint8_t[]> words;  // Packed.
  };
  using Clusters = std::unordered_map<uint64_t, Cluster>;  // By number; what was touched once.

  uintptr_t address_of(uint64_t number) const { return begin_ + number * kClusterBytes; }
  bool set_access(uint64_t number, int protection);
  void make_room();
  void pack(uint64_t number, Cluster& cluster);
  void unpack(uint64_t number, Cluster& cluster);

  uintptr_t begin_;
  size_t bytes_;
  size_t hot_max_;      // Clusters that may be open,
  size_t all_hot_max_;  // while there are more than this.
  bool is_off_ = false;
  Clusters clusters_;
  std::deque<uint64_t> open_;    // Opened longest ago first.
  std::deque<uint64_t> closed_;  // Likewise; some are open again.
  std::vector<uint8_t> buffer_;
  uint64_t packs_ = 0;
  size_t packed_bytes_ = 0;
  size_t slot_;  // In the handler's list.
};

}  // namespace heapledger::heap
