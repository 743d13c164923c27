// SPDX-License-Identifier: Apache-2.0
#include "interposer/simulated/address_space.h"

#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <new>

#include "interposer/base/bits.h"

namespace heapledger::heap {

namespace {

constexpr size_t kPage = base::kPageBytes;

// libc's calls set errno; an Os must not.
class ErrnoKeeper {
 public:
  ErrnoKeeper() : saved_(errno) {}
  ~ErrnoKeeper() { errno = saved_; }
  ErrnoKeeper(const ErrnoKeeper&) = delete;
  ErrnoKeeper& operator=(const ErrnoKeeper&) = delete;

 private:
  int saved_;
};

void* reserve_range(size_t bytes, int protection) {
  return ::mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

void change_range(uintptr_t begin, uintptr_t end, int protection) {
  void* result = ::mmap(base::pointer_to(begin), end - begin, protection,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (result == MAP_FAILED) std::abort();  // Inside a range of our own: only without any memory.
}

bool is_accessible(int protection) { return (protection & (PROT_READ | PROT_WRITE)) != 0; }

}  // namespace

AddressSpace::AddressSpace(const SpaceOptions& options) : contents_(options.contents) {
  SpaceOptions wanted = options;
  while (base_ == 0) {
    reserve(wanted);
    if (base_ != 0) break;
    wanted.break_bytes /= 2;
    wanted.map_bytes /= 2;
    if (wanted.break_bytes < 64 * kPage || wanted.map_bytes < 64 * kPage) throw std::bad_alloc();
  }
  break_begin_ = break_ = base_ + kPage;
  // A page nobody may have keeps the break and the lowest mapping apart.
  break_limit_ = base_ + wanted.break_bytes - kPage;
  gaps_.give(base_ + wanted.break_bytes, wanted.map_bytes);
  if (!options.residency) return;
  resident_map_bytes_ = base::align_up(total_bytes_ / kPage / 8 + 8, kPage);
  void* map = reserve_range(resident_map_bytes_, PROT_READ | PROT_WRITE);
  if (map == MAP_FAILED) {
    ::munmap(base::pointer_to(base_), total_bytes_);
    throw std::bad_alloc();
  }
  resident_ = static_cast<uint64_t*>(map);
}

AddressSpace::~AddressSpace() {
  ::munmap(base::pointer_to(base_), total_bytes_);
  if (resident_ != nullptr) ::munmap(resident_, resident_map_bytes_);
  for (const auto& [memory, bytes] : tables_) ::munmap(memory, bytes);
}

void AddressSpace::reserve(const SpaceOptions& options) {
  total_bytes_ = options.break_bytes + options.map_bytes;
  const int protection = contents_ == Contents::kKept ? PROT_NONE : PROT_READ | PROT_WRITE;
  void* memory = reserve_range(total_bytes_, protection);
  if (memory == MAP_FAILED) return;
  // Headers are scattered: a huge page for each would be the program's whole heap again.
  ::madvise(memory, total_bytes_, MADV_NOHUGEPAGE);
  base_ = base::address_of(memory);
}

void AddressSpace::note(SimulatedCall call) {
  ++calls_[static_cast<size_t>(call.name)];
  if (sink_) sink_(call);
}

size_t AddressSpace::break_bytes_held() const {
  return base::align_up(break_, kPage) - break_begin_;
}

void AddressSpace::note_held() {
  const size_t held = held_bytes();
  if (held > held_peak_) held_peak_ = held;
}

// ---- The break.

void AddressSpace::set_break(uintptr_t address) {
  const uintptr_t old_page = base::align_up(break_, kPage);
  const uintptr_t new_page = base::align_up(address, kPage);
  break_ = address;
  if (new_page > old_page) {
    renew(old_page, new_page, PROT_READ | PROT_WRITE);
    note_held();
  } else if (new_page < old_page) {
    renew(new_page, old_page, PROT_NONE);
  }
}

uintptr_t AddressSpace::brk(uintptr_t address, Cause cause) {
  SimulatedCall call{CallName::kBrk, cause, address, 0, 0, true};
  if (address != 0) {
    call.bytes = static_cast<int64_t>(address) - static_cast<int64_t>(break_);
    call.ok = address >= break_begin_ && address <= break_limit_ && !refused(call);
    if (call.ok) set_break(address);
  }
  note(call);
  return break_;
}

uintptr_t AddressSpace::move_break_foreign(int64_t bytes) {
  const uintptr_t address = break_ + static_cast<uintptr_t>(bytes);
  if (address >= break_begin_ && address <= break_limit_) set_break(address);
  return break_;
}

// ---- Mappings.

uintptr_t AddressSpace::place(uintptr_t hint, size_t length, int flags) {
  if ((flags & MAP_FIXED) != 0) {
    remove(hint, hint + length);
    return gaps_.take_at(hint, length) ? hint : 0;
  }
  if (hint != 0 && gaps_.take_at(base::align_down(hint, kPage), length)) {
    return base::align_down(hint, kPage);
  }
  return gaps_.take_highest(length);
}

void* AddressSpace::mmap(void* hint, size_t length, int protection, int flags, Cause cause) {
  const size_t rounded = base::align_up(length, kPage);
  if (cause == Cause::kRegistry) {
    // The allocator's table must begin as zeros and is not part of what is modelled.
    const ErrnoKeeper keeper;
    void* memory = reserve_range(rounded, protection);
    if (memory == MAP_FAILED) return nullptr;
    tables_.emplace_back(memory, rounded);
    return memory;
  }
  SimulatedCall call{
      CallName::kMmap, cause, base::address_of(hint), static_cast<int64_t>(length), 0, true};
  uintptr_t begin = 0;
  if (length != 0 && rounded >= length && !refused(call)) {
    begin = place(base::address_of(hint), rounded, flags);
  }
  call.address = begin;
  call.ok = begin != 0;
  if (call.ok) add(begin, begin + rounded, protection);
  note(call);
  return base::pointer_to(begin);
}

void AddressSpace::add(uintptr_t begin, uintptr_t end, int protection) {
  mappings_.emplace_hint(mappings_.end(), begin, Mapping{end, is_accessible(protection)});
  renew(begin, end, protection);
  if (!is_accessible(protection)) return;
  mapped_bytes_ += end - begin;
  note_held();
}

void AddressSpace::split_at(uintptr_t address) {
  auto found = mappings_.lower_bound(address);
  if (found == mappings_.begin() || (found != mappings_.end() && found->first == address)) return;
  --found;
  if (found->second.end <= address) return;
  mappings_.emplace(address, found->second);
  found->second.end = address;
}

void AddressSpace::remove(uintptr_t begin, uintptr_t end) {
  auto found = mappings_.find(begin);
  if (found == mappings_.end() || found->second.end != end) {
    split_at(begin);
    split_at(end);
    found = mappings_.lower_bound(begin);
  }
  while (found != mappings_.end() && found->first < end) {
    const auto [from, mapping] = *found;
    if (mapping.accessible) mapped_bytes_ -= mapping.end - from;
    renew(from, mapping.end, PROT_NONE);
    gaps_.give(from, mapping.end - from);
    found = mappings_.erase(found);
  }
}

bool AddressSpace::munmap(void* address, size_t length, Cause cause) {
  const uintptr_t begin = base::address_of(address);
  SimulatedCall call{CallName::kMunmap, cause, begin, static_cast<int64_t>(length), 0, true};
  call.ok = base::is_aligned(begin, kPage) && length != 0 && !refused(call);
  if (call.ok) remove(begin, begin + base::align_up(length, kPage));
  note(call);
  return call.ok;
}

bool AddressSpace::grow_mapping(uintptr_t begin, size_t old_length, size_t new_length) {
  const uintptr_t old_end = begin + old_length;
  if (!gaps_.take_at(old_end, new_length - old_length)) return false;
  split_at(begin);
  const auto found = mappings_.find(begin);
  const bool accessible = found == mappings_.end() || found->second.accessible;
  add(old_end, begin + new_length, accessible ? PROT_READ | PROT_WRITE : PROT_NONE);
  // One mapping again.
  if (found != mappings_.end() && found->second.end == old_end) {
    found->second.end = begin + new_length;
    mappings_.erase(old_end);
  }
  return true;
}

void* AddressSpace::mremap(void* address, size_t old_length, size_t new_length, int flags,
                           Cause cause) {
  const uintptr_t begin = base::address_of(address);
  old_length = base::align_up(old_length, kPage);
  const size_t rounded = base::align_up(new_length, kPage);
  SimulatedCall call{CallName::kMremap,
                     cause,
                     begin,
                     static_cast<int64_t>(new_length),
                     static_cast<int64_t>(old_length),
                     true};
  void* result = nullptr;
  if (rounded == 0 || refused(call)) {
    call.ok = false;
  } else if (rounded <= old_length) {
    remove(begin + rounded, begin + old_length);
    result = address;
  } else if (grow_mapping(begin, old_length, rounded)) {
    result = address;
  } else {
    const uintptr_t target = (flags & MREMAP_MAYMOVE) != 0 ? gaps_.take_highest(rounded) : 0;
    call.ok = target != 0;
    if (call.ok) {
      // The kernel moves pages: never both at once.
      mapped_bytes_ -= old_length;
      add(target, target + rounded, PROT_READ | PROT_WRITE);
      mapped_bytes_ += old_length;
      result = base::pointer_to(target);
      // The header, at least, must come along.
      std::memcpy(result, address, contents_ == Contents::kKept ? old_length : 32);
      if (resident_ != nullptr) move_residency(begin, target, old_length);
      remove(begin, begin + old_length);
    }
  }
  note(call);
  return result;
}

bool AddressSpace::madvise(void* address, size_t length, int advice, Cause cause) {
  const uintptr_t begin = base::address_of(address);
  SimulatedCall call{CallName::kMadvise, cause, begin, static_cast<int64_t>(length), 0, true};
  call.ok = base::is_aligned(begin, kPage) && !refused(call);
  if (call.ok && advice == MADV_DONTNEED && length != 0) {
    renew(begin, begin + base::align_up(length, kPage), PROT_READ | PROT_WRITE);
  }
  note(call);
  return call.ok;
}

bool AddressSpace::mprotect(void* address, size_t length, int protection, Cause cause) {
  const uintptr_t begin = base::address_of(address);
  const uintptr_t end = begin + base::align_up(length, kPage);
  SimulatedCall call{CallName::kMprotect, cause, begin, static_cast<int64_t>(length), 0, true};
  call.ok = base::is_aligned(begin, kPage) && !refused(call);
  if (call.ok && length != 0) {
    if (contents_ == Contents::kKept) {
      const ErrnoKeeper keeper;
      if (::mprotect(address, end - begin, protection) != 0) std::abort();
    }
    split_at(begin);
    split_at(end);
    const bool accessible = is_accessible(protection);
    auto found = mappings_.lower_bound(begin);
    while (found != mappings_.end() && found->first < end) {
      Mapping& mapping = found->second;
      const size_t bytes = mapping.end - found->first;
      if (accessible && !mapping.accessible) mapped_bytes_ += bytes;
      if (!accessible && mapping.accessible) mapped_bytes_ -= bytes;
      mapping.accessible = accessible;
      // With the one before, where that makes no difference: a heap grows by many small steps.
      if (found != mappings_.begin()) {
        const auto before = std::prev(found);
        if (before->second.end == found->first && before->second.accessible == accessible &&
            cause == Cause::kGrowHeap) {
          before->second.end = mapping.end;
          found = mappings_.erase(found);
          continue;
        }
      }
      ++found;
    }
    note_held();
  }
  note(call);
  return call.ok;
}

// ---- Pages.

void AddressSpace::renew(uintptr_t begin, uintptr_t end, int protection) {
  if (resident_ != nullptr) forget_pages(begin, end);
  if (contents_ == Contents::kNone || begin >= end) return;
  const ErrnoKeeper keeper;
  change_range(begin, end, protection);
}

void AddressSpace::forget_pages(uintptr_t begin, uintptr_t end) {
  size_t page = (begin - base_) / kPage;
  const size_t last = (end - base_) / kPage;
  while (page < last) {
    const size_t bit = page % 64;
    const size_t count = last - page < 64 - bit ? last - page : 64 - bit;
    const uint64_t mask = (count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1) << bit;
    uint64_t& word = resident_[page / 64];
    if ((word & mask) != 0) {
      resident_pages_ -= static_cast<size_t>(std::popcount(word & mask));
      word &= ~mask;
    }
    page += count;
  }
}

void AddressSpace::move_residency(uintptr_t from, uintptr_t to, size_t bytes) {
  for (size_t at = 0; at < bytes; at += kPage) {
    const size_t page = (from + at - base_) / kPage;
    uint64_t& word = resident_[page / 64];
    const uint64_t bit = uint64_t{1} << (page % 64);
    if ((word & bit) == 0) continue;
    word &= ~bit;
    --resident_pages_;
    faults_ -= touch(base::pointer_to(to + at), 1);  // Moved, not touched.
  }
}

size_t AddressSpace::touch(const void* address, size_t bytes) {
  if (resident_ == nullptr || bytes == 0) return 0;
  size_t page = (base::address_of(address) - base_) / kPage;
  const size_t last = (base::address_of(address) + bytes - 1 - base_) / kPage;
  size_t fresh = 0;
  while (page <= last) {
    const size_t bit = page % 64;
    const size_t count = last + 1 - page < 64 - bit ? last + 1 - page : 64 - bit;
    const uint64_t mask = (count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1) << bit;
    uint64_t& word = resident_[page / 64];
    fresh += static_cast<size_t>(std::popcount(~word & mask));
    word |= mask;
    page += count;
  }
  resident_pages_ += fresh;
  faults_ += fresh;
  if (resident_pages_ > resident_peak_) resident_peak_ = resident_pages_;
  return fresh;
}

}  // namespace heapledger::heap
