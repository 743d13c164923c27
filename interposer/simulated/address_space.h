// SPDX-License-Identifier: Apache-2.0
//
// An address space of its own for an allocator: a break, mappings where the kernel would put them,
// and books of what was asked for. The simulated half of "one allocator, two systems" (heap/os.h).
//
// Addresses are real: the space reserves a range of this process once, and what the allocator
// writes (headers, links) is stored there, at a page of real memory for each page it writes to.
// With Contents::kNone that is all: no call makes a system call, nothing is cleared or copied, the
// program's data does not exist, and a page that was given back keeps what was in it. That is what
// a model needs: the allocator reads only what it wrote itself. With Contents::kKept, pages behave
// as the kernel's (fresh ones read as zeros, unmapped ones fault), which is what tests need.
//
// As the kernel: mappings go top-down into the highest gap that fits; a hint is taken where it is
// free; a range can be unmapped or protected in parts; a mapping grows in place where it can.
// Not as the kernel: nothing else lives there (no libraries, no stacks), and there is room for any
// program. Addresses are not the real program's, but have the same alignment in every run.
//
// Bytes *held* are those that may be used: the break area and mappings with access. A *resident*
// page is one that was touched since it was got; see touch(). Thread safety: none. Cost: a call
// 50-200 ns, without residency.
#pragma once

#include <sys/mman.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "interposer/base/bits.h"
#include "interposer/heap/os.h"
#include "interposer/simulated/cold_memory.h"
#include "interposer/simulated/gap_set.h"

namespace heapledger::heap {

enum class CallName : uint8_t { kBrk, kMmap, kMunmap, kMremap, kMadvise, kMprotect };
inline constexpr size_t kCallNames = 6;

constexpr const char* call_name(CallName name) {
  constexpr const char* kNames[kCallNames] = {"brk",    "mmap",    "munmap",
                                              "mremap", "madvise", "mprotect"};
  return kNames[static_cast<size_t>(name)];
}

// One call of the allocator. Handed out when it is known how it ends.
struct SimulatedCall {
  CallName name = CallName::kBrk;
  Cause cause = Cause::kNone;
  uintptr_t address = 0;  // What was asked for or acted on; mmap: what was given.
  // brk: by how much it was to move (0: a question); mremap: the new length; else the length.
  int64_t bytes = 0;
  int64_t old_bytes = 0;  // mremap only.
  bool ok = true;
};

enum class Contents : uint8_t { kNone, kKept };

struct SpaceOptions {
  // Addresses for the break and for mappings. Where this process may not reserve so many, fewer.
  // Hundreds of spaces of this size fit into one process.
  size_t break_bytes = size_t{1} << 36;
  size_t map_bytes = size_t{1} << 38;
  Contents contents = Contents::kNone;
  bool residency = false;  // Keeps a bit per page.
  // Not 0, with Contents::kNone: of what the allocator wrote, what it has not touched for long is
  // packed, beyond so many bytes (cold_memory.h). For a model of a large heap; save() unpacks.
  size_t hot_bytes = 0;
  size_t all_hot_bytes = 0;  // Nothing is packed of a heap of no more than this.
};

class AddressSpace {
 public:
  // Throws std::bad_alloc where nothing can be reserved.
  explicit AddressSpace(const SpaceOptions& options = {});
  ~AddressSpace();
  AddressSpace(const AddressSpace&) = delete;
  AddressSpace& operator=(const AddressSpace&) = delete;

  // The calls of heap/os.h.
  uintptr_t brk(uintptr_t address, Cause cause);
  void* mmap(void* hint, size_t length, int protection, int flags, Cause cause);
  bool munmap(void* address, size_t length, Cause cause);
  void* mremap(void* address, size_t old_length, size_t new_length, int flags, Cause cause);
  bool madvise(void* address, size_t length, int advice, Cause cause);
  bool mprotect(void* address, size_t length, int protection, Cause cause);

  // Sees every call, in order. The allocator's own table (Cause::kRegistry) is no call: glibc has
  // none.
  void set_sink(std::function<void(const SimulatedCall&)> sink) { sink_ = std::move(sink); }
  // Asked before each call that could fail (`bytes` and `address` as requested): true refuses it.
  void set_refusal(std::function<bool(const SimulatedCall&)> refuse) {
    refuse_ = std::move(refuse);
  }

  // The program moves the break itself, by so many bytes, into the allocator's memory too if told
  // so. Returns the new break. Not a call of the allocator.
  uintptr_t move_break_foreign(int64_t bytes);
  // How much of the break's end is the program's own: above where the allocator left it.
  size_t foreign_break_bytes() const { return books_.break_at - books_.break_owned; }

  uint64_t calls(CallName name) const { return books_.calls[static_cast<size_t>(name)]; }
  size_t held_bytes() const { return break_bytes_held() + books_.mapped_bytes; }
  size_t held_bytes_peak() const { return books_.held_peak; }
  // Peaks begin again at what is now.
  void restart_peaks() {
    books_.held_peak = held_bytes();
    restart_resident_peak();
  }
  size_t mapping_count() const { return books_.mappings.size(); }
  void restart_resident_peak() { books_.resident_peak = books_.resident_pages; }
  uintptr_t break_begin() const { return break_begin_; }

  // The space as it is now, and back to it: how a model goes on with a forked child and then with
  // the parent. An image belongs to the space that made it. Time and memory: the pages that the
  // allocator wrote to, not those that are held.
  struct Image;
  Image save() const;
  void restore(const Image& image);

  // These bytes were written by the program or the allocator, or would have been: their pages are
  // resident now. Returns how many were not before: page faults. Only with SpaceOptions::residency.
  size_t touch(const void* address, size_t bytes);
  size_t resident_bytes() const { return books_.resident_pages * base::kPageBytes; }
  size_t resident_bytes_peak() const { return books_.resident_peak * base::kPageBytes; }
  uint64_t faults() const { return books_.faults; }

 private:
  struct Mapping {
    uintptr_t end;
    bool accessible;
  };
  using Mappings = std::map<uintptr_t, Mapping>;

  // All that a call can change, besides pages.
  struct Books {
    uintptr_t break_at = 0;
    uintptr_t break_owned = 0;  // Where the allocator left it; below is the allocator's.
    Mappings mappings;
    GapSet gaps;
    size_t mapped_bytes = 0;
    size_t held_peak = 0;
    std::array<uint64_t, kCallNames> calls{};
    size_t resident_pages = 0;
    size_t resident_peak = 0;
    uint64_t faults = 0;
  };

  void reserve(const SpaceOptions& options);
  bool refused(const SimulatedCall& call) { return refuse_ && refuse_(call); }
  void note(SimulatedCall call);
  size_t break_bytes_held() const;
  void note_held();
  void set_break(uintptr_t address);
  uintptr_t place(uintptr_t hint, size_t length, int flags);
  // Cuts mappings so that one begins at `address`, if any covers it.
  void split_at(uintptr_t address);
  void remove(uintptr_t begin, uintptr_t end);
  void add(uintptr_t begin, uintptr_t end, int protection);
  bool grow_mapping(uintptr_t begin, size_t old_length, size_t new_length);
  // Pages are got or given back: contents and residency.
  void renew(uintptr_t begin, uintptr_t end, int protection);
  void forget_pages(uintptr_t begin, uintptr_t end);
  void move_residency(uintptr_t from, uintptr_t to, size_t bytes);
  // Visits every range that is held.
  template <class Visit>
  void for_each_held(Visit visit) const {
    const uintptr_t break_end = base::align_up(books_.break_at, base::kPageBytes);
    if (break_end > break_begin_) visit(break_begin_, break_end);
    for (const auto& [begin, mapping] : books_.mappings) {
      if (mapping.accessible) visit(begin, mapping.end);
    }
  }

  Contents contents_;
  uintptr_t reserved_ = 0;
  uintptr_t base_ = 0;  // In it, aligned.
  size_t total_bytes_ = 0;
  uintptr_t break_begin_ = 0;
  uintptr_t break_limit_ = 0;
  Books books_;
  std::vector<std::pair<void*, size_t>> tables_;  // The allocator's registry; unmapped at the end.
  std::function<void(const SimulatedCall&)> sink_;
  std::function<bool(const SimulatedCall&)> refuse_;
  uint64_t* resident_ = nullptr;  // A bit per page; reserved as one mapping. Null: not kept.
  size_t resident_map_bytes_ = 0;
  std::unique_ptr<ColdMemory> cold_;  // Null: nothing is packed.
};

struct AddressSpace::Image {
  struct Page {
    uintptr_t at;
    std::array<std::byte, base::kPageBytes> contents;
  };
  Books books;
  std::vector<Page> pages;
  std::vector<std::vector<std::byte>> tables;
  std::vector<uintptr_t> resident;  // Addresses of pages.
};

}  // namespace heapledger::heap
