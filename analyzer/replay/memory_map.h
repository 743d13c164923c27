// SPDX-License-Identifier: Apache-2.0
// What system calls and page faults did to a process's heap memory: held ranges and their pages.
//
// The allocator's brk, mmap, mremap, munmap and mprotect say which ranges it holds; faults make
// pages resident; munmap, a falling break, madvise(MADV_DONTNEED) and moves take them away. The
// program's own calls never add to what is held, but they do release pages. Where every call is
// known, touches outside of the heap are told apart too: the loader's mappings, thread stacks.
//
// A call has two moments. What it gives back is gone from its entry on; what it gets is there from
// its return on. Between two threads only this order is certain: the kernel cannot hand out a range
// before the call that frees it was entered.
//
// Snapshots correct it. A page that pagemap shows and no fault brought (mlock, MAP_POPULATE, a huge
// page) becomes resident; one that a fault touched and pagemap does not show (the zero page, after
// a read; reclaimed memory) is not. Pages that came or went while the snapshot was taken are left
// alone: what it says of them may be older than the last event.
// Thread safety: none.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "analyzer/replay/page_set.h"
#include "analyzer/replay/range_map.h"
#include "analyzer/replay/used_ends.h"
#include "schema/event.h"
#include "schema/fault_batch.h"

namespace heapledger::analyzer {

struct SyscallRow {
  int64_t time_ns = 0;  // Entry.
  int64_t duration_ns = 0;
  uint32_t thread = 0;
  uint32_t stack = 0;
  schema::SyscallName name = schema::SyscallName::kBrk;
  schema::Origin origin = schema::Origin::kAllocator;
  int64_t result = 0;
  uint64_t args[6] = {};
  std::string cause;

  bool failed() const { return result < 0 && result >= -4095; }
};

// kHeap: the brk heap; kArena: memory in chunks that did not come from the break.
enum class Region : uint8_t { kHeap, kArena, kBlock, kOther };
const char* region_name(Region region);

// What took a page away, so that touching it again is paid a second time.
enum class Release : uint8_t { kNone, kMunmap, kTrim, kMallocTrim, kMadvise, kOther };
inline constexpr size_t kReleaseKinds = 6;
const char* release_name(Release release);

// What the heap's residency was while a snapshot was taken, from its begin to its end. The kernel
// looks at each page at a moment of its own, so what it counts lies between the pages that were
// there all the time and those that were there at some time.
struct ResidencyWindow {
  uint64_t held_resident_min = 0, held_resident_max = 0;  // Bytes; corrections are in both.
  // Ranges that were held at some moment of it; sorted, without overlaps.
  std::vector<std::pair<uint64_t, uint64_t>> held;
};

class MemoryMap {
 public:
  // `all_calls`: enter() is told of every call of the process, not only of the allocator's and of
  // those that went through libc's wrappers.
  explicit MemoryMap(std::optional<int64_t> heap_start, bool all_calls = false)
      : all_calls_(all_calls), break_end_(static_cast<uint64_t>(heap_start.value_or(0))) {}

  // The part of a call that gives memory back; what it gets is queued until acquire_due().
  void enter(const SyscallRow& call);
  // Time of the next queued acquisition, INT64_MAX if there is none.
  int64_t next_acquisition() const;
  void acquire_next();

  // A fault: makes its page resident and says what kind of touch it was.
  schema::Touch fault(uint64_t address);
  // A page that a snapshot showed; false if it was known to be resident.
  bool seen_resident(uint64_t address);
  void seen_absent(uint64_t start, uint64_t end);

  // Around a snapshot: the map from begin to end_window(). Between the last event and end_window(),
  // correct() says what the snapshot showed: all of [start, end) or none.
  void begin_window(int64_t now_ns);
  bool window_is_open() const { return window_open_; }
  void correct(uint64_t start, uint64_t end, bool resident);
  ResidencyWindow end_window();
  // Held pages that are resident though no fault brought them, and those that a fault touched but
  // that take no memory: as far as snapshots have shown.
  const PageSet& unfaulted() const { return unfaulted_; }
  const PageSet& touched_absent() const { return touched_absent_; }

  // A live block is in [start, end).
  void note_used(uint64_t start, uint64_t end) { used_.note(start, end); }
  const UsedEnds& used() const { return used_; }

  // The call that released the page last; kNone where none did.
  Release last_release(uint64_t address) const;
  bool was_ever_resident(uint64_t address) const { return ever_.contains(address); }
  // Pages that were resident while the allocator held them.
  const PageSet& ever_held_resident() const { return ever_held_; }
  // A fork: from here on both sides share what is resident, until they write to it.
  void share_pages() { shared_ = resident_; }

  // Where an address is; ranges that are being acquired count.
  Region region(uint64_t address) const;
  uint64_t held_bytes() const { return held_.bytes(); }
  uint64_t held_resident_bytes() const { return held_resident_pages_ * kPageBytes; }
  // Wherever it is: what faults brought, not what they brought along (a file's neighbouring pages),
  // and less what calls that the wrappers do not see took away. Right in its changes over a while.
  uint64_t resident_bytes() const { return resident_pages_ * kPageBytes; }
  const RangeMap& held() const { return held_; }
  const PageSet& resident() const { return resident_; }
  uint64_t break_end() const { return break_end_; }

 private:
  struct Acquisition {
    int64_t time_ns;
    uint64_t start, end;
    RangeKind kind;
    uint32_t stack;
    std::vector<uint64_t> moved_pages;  // Offsets of pages that come along (mremap).
  };

  // A release that may still have been under way when a snapshot began.
  struct Releasing {
    int64_t return_ns;
    uint64_t start, end;
  };

  void release_by(const SyscallRow& call, uint64_t start, uint64_t end, bool keep_range,
                  Release by);
  void move_break(const SyscallRow& call);
  void remap(const SyscallRow& call);
  void protect(const SyscallRow& call);
  // Takes the pages away, and the range too unless it is kept.
  void release(uint64_t start, uint64_t end, bool keep_range, Release by);
  void forget(uint64_t start, uint64_t end);
  void end_releases_before(int64_t now_ns);
  bool add_resident(uint64_t address);
  schema::Touch foreign_touch(uint64_t address, bool resident) const;
  void queue(Acquisition acquisition);
  uint64_t held_resident_in(uint64_t start, uint64_t end) const;

  bool all_calls_;
  RangeMap held_;
  RangeMap foreign_;  // What others mapped, where all their calls are known.
  PageSet resident_;
  PageSet ever_;
  PageSet ever_held_;  // Invariant: all resident pages of held ranges are in it.
  PageSet shared_;
  std::vector<Acquisition> queue_;  // Latest first.
  uint64_t break_end_;
  uint64_t held_resident_pages_ = 0;
  uint64_t resident_pages_ = 0;  // All of resident_.
  PageSet unfaulted_;
  PageSet touched_absent_;
  std::array<PageSet, kReleaseKinds> released_;  // Pages that were resident, by what took them.

  std::vector<Releasing> releasing_;  // The latest; see begin_window().
  PageSet releasing_pages_;           // What was resident of them.
  bool window_open_ = false;
  ResidencyWindow window_;  // Its ranges only.
  PageSet window_any_;      // Pages resident at some moment of it,
  PageSet window_all_;      // and all the time.
  PageSet window_changed_;  // Pages that came or went in it.
  UsedEnds used_;
};

}  // namespace heapledger::analyzer
