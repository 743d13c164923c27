// SPDX-License-Identifier: Apache-2.0
#include "interposer/simulated/address_space.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <new>

#include "interposer/base/bits.h"
#include "interposer/base/pagemap_scan.h"

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

// Addresses are alike in every run, as far as alignment goes, and so is what depends on it: how a
// secondary arena's heap is cut out. As in a real process, the highest mapping ends where nothing
// is aligned.
constexpr size_t kBaseAlignment = size_t{1} << 30;
constexpr size_t kTopBytes = 1957 * kPage;  // Not used: stands for libraries and stacks.

void* reserve_range(size_t bytes, int protection) {
  return ::mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

void change_range(uintptr_t begin, uintptr_t end, int protection) {
  void* result = ::mmap(base::pointer_to(begin), end - begin, protection,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (result == MAP_FAILED) std::abort();  // Inside a range of our own: only without any memory.
}

// A small space has no room to waste.
size_t top_bytes(const SpaceOptions& options) {
  return options.map_bytes >= 16 * kTopBytes ? kTopBytes : 0;
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
  break_begin_ = books_.break_at = base_ + kPage;
  // A page nobody may have keeps the break and the lowest mapping apart.
  break_limit_ = base_ + wanted.break_bytes - kPage;
  books_.gaps.give(base_ + wanted.break_bytes, wanted.map_bytes - top_bytes(wanted));
  if (options.hot_bytes != 0 && contents_ == Contents::kNone &&
      base::is_aligned(total_bytes_, ColdMemory::kClusterBytes)) {
    cold_ =
        std::make_unique<ColdMemory>(base_, total_bytes_, options.hot_bytes, options.all_hot_bytes);
  }
  if (!options.residency) return;
  resident_map_bytes_ = base::align_up(total_bytes_ / kPage / 8 + 8, kPage);
  void* map = reserve_range(resident_map_bytes_, PROT_READ | PROT_WRITE);
  if (map == MAP_FAILED) {
    ::munmap(base::pointer_to(reserved_), total_bytes_ + kBaseAlignment);
    throw std::bad_alloc();
  }
  resident_ = static_cast<uint64_t*>(map);
}

AddressSpace::~AddressSpace() {
  ::munmap(base::pointer_to(reserved_), total_bytes_ + kBaseAlignment);
  if (resident_ != nullptr) ::munmap(resident_, resident_map_bytes_);
  for (const auto& [memory, bytes] : tables_) ::munmap(memory, bytes);
}

void AddressSpace::reserve(const SpaceOptions& options) {
  total_bytes_ = options.break_bytes + options.map_bytes;
  const int protection = contents_ == Contents::kKept ? PROT_NONE : PROT_READ | PROT_WRITE;
  void* memory = reserve_range(total_bytes_ + kBaseAlignment, protection);
  if (memory == MAP_FAILED) return;
  // Headers are scattered: a huge page for each would be the program's whole heap again.
  ::madvise(memory, total_bytes_ + kBaseAlignment, MADV_NOHUGEPAGE);
  reserved_ = base::address_of(memory);
  base_ = base::align_up(reserved_, kBaseAlignment);
}

void AddressSpace::note(SimulatedCall call) {
  ++books_.calls[static_cast<size_t>(call.name)];
  if (sink_) sink_(call);
}

size_t AddressSpace::break_bytes_held() const {
  return base::align_up(books_.break_at, kPage) - break_begin_;
}

void AddressSpace::note_held() {
  const size_t held = held_bytes();
  if (held > books_.held_peak) books_.held_peak = held;
}

// ---- The break.

void AddressSpace::set_break(uintptr_t address) {
  const uintptr_t old_page = base::align_up(books_.break_at, kPage);
  const uintptr_t new_page = base::align_up(address, kPage);
  books_.break_at = address;
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
    call.bytes = static_cast<int64_t>(address) - static_cast<int64_t>(books_.break_at);
    call.ok = address >= break_begin_ && address <= break_limit_ && !refused(call);
    if (call.ok) set_break(address);
    books_.break_owned = books_.break_at;
  }
  note(call);
  return books_.break_at;
}

uintptr_t AddressSpace::move_break_foreign(int64_t bytes) {
  const uintptr_t address = books_.break_at + static_cast<uintptr_t>(bytes);
  if (address >= break_begin_ && address <= break_limit_) set_break(address);
  return books_.break_at;
}

// ---- Mappings.

uintptr_t AddressSpace::place(uintptr_t hint, size_t length, int flags) {
  if ((flags & MAP_FIXED) != 0) {
    remove(hint, hint + length);
    return books_.gaps.take_at(hint, length) ? hint : 0;
  }
  if (hint != 0 && books_.gaps.take_at(base::align_down(hint, kPage), length)) {
    return base::align_down(hint, kPage);
  }
  return books_.gaps.take_highest(length);
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
  books_.mappings.emplace_hint(books_.mappings.end(), begin,
                               Mapping{end, is_accessible(protection)});
  renew(begin, end, protection);
  if (!is_accessible(protection)) return;
  books_.mapped_bytes += end - begin;
  note_held();
}

void AddressSpace::split_at(uintptr_t address) {
  auto found = books_.mappings.lower_bound(address);
  if (found == books_.mappings.begin() ||
      (found != books_.mappings.end() && found->first == address))
    return;
  --found;
  if (found->second.end <= address) return;
  books_.mappings.emplace(address, found->second);
  found->second.end = address;
}

void AddressSpace::remove(uintptr_t begin, uintptr_t end) {
  auto found = books_.mappings.find(begin);
  if (found == books_.mappings.end() || found->second.end != end) {
    split_at(begin);
    split_at(end);
    found = books_.mappings.lower_bound(begin);
  }
  while (found != books_.mappings.end() && found->first < end) {
    const auto [from, mapping] = *found;
    if (mapping.accessible) books_.mapped_bytes -= mapping.end - from;
    renew(from, mapping.end, PROT_NONE);
    books_.gaps.give(from, mapping.end - from);
    found = books_.mappings.erase(found);
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
  if (!books_.gaps.take_at(old_end, new_length - old_length)) return false;
  split_at(begin);
  const auto found = books_.mappings.find(begin);
  const bool accessible = found == books_.mappings.end() || found->second.accessible;
  add(old_end, begin + new_length, accessible ? PROT_READ | PROT_WRITE : PROT_NONE);
  // One mapping again.
  if (found != books_.mappings.end() && found->second.end == old_end) {
    found->second.end = begin + new_length;
    books_.mappings.erase(old_end);
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
    const uintptr_t target = (flags & MREMAP_MAYMOVE) != 0 ? books_.gaps.take_highest(rounded) : 0;
    call.ok = target != 0;
    if (call.ok) {
      // The kernel moves pages: never both at once.
      books_.mapped_bytes -= old_length;
      add(target, target + rounded, PROT_READ | PROT_WRITE);
      books_.mapped_bytes += old_length;
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
    auto found = books_.mappings.lower_bound(begin);
    while (found != books_.mappings.end() && found->first < end) {
      Mapping& mapping = found->second;
      const size_t bytes = mapping.end - found->first;
      if (accessible && !mapping.accessible) books_.mapped_bytes += bytes;
      if (!accessible && mapping.accessible) books_.mapped_bytes -= bytes;
      mapping.accessible = accessible;
      // With the one before, where that makes no difference: a heap grows by many small steps.
      if (found != books_.mappings.begin()) {
        const auto before = std::prev(found);
        if (before->second.end == found->first && before->second.accessible == accessible &&
            cause == Cause::kGrowHeap) {
          before->second.end = mapping.end;
          found = books_.mappings.erase(found);
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

// ---- Images.

namespace {

// The words of the residency map that hold the bits of pages [page, end): visit(index, their mask).
template <class Visit>
void for_each_word(size_t page, size_t end, Visit visit) {
  while (page < end) {
    const size_t bit = page % 64;
    const size_t count = std::min<size_t>(end - page, 64 - bit);
    visit(page / 64, (count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1) << bit);
    page += count;
  }
}

// Which pages of a range have memory of this process behind them, by /proc/self/pagemap: mincore()
// would miss those that are swapped out. By runs where the kernel can (the program may hold
// terabytes that it never touched), else entry by entry.
class WrittenPages {
 public:
  WrittenPages() : fd_(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)) {}
  ~WrittenPages() {
    if (fd_ >= 0) ::close(fd_);
  }
  WrittenPages(const WrittenPages&) = delete;
  WrittenPages& operator=(const WrittenPages&) = delete;

  template <class Visit>
  void for_each(uintptr_t begin, uintptr_t end, Visit visit) {
    uintptr_t rest = begin;
    const base::PageQuestion written{0, base::kPagePresent | base::kPageSwapped, 0};
    has_ioctl_ = has_ioctl_ &&
                 base::scan_pagemap(fd_, begin, end, written, [&](uintptr_t at, uintptr_t run_end) {
                   for (; at < run_end; at += kPage) visit(at);
                   rest = run_end;
                 });
    if (!has_ioctl_) for_each_by_entries(rest, end, visit);
  }

 private:
  template <class Visit>
  void for_each_by_entries(uintptr_t begin, uintptr_t end, Visit visit) {
    constexpr size_t kEntries = 4096;
    constexpr uint64_t kPresentOrSwapped = uint64_t{3} << 62;
    entries_.resize(kEntries);
    for (uintptr_t at = begin; at < end; at += kEntries * kPage) {
      const size_t count = std::min(kEntries, (end - at) / kPage);
      const auto wanted = static_cast<ssize_t>(count * 8);
      // Where nobody says it, each page may be one.
      if (fd_ < 0 ||
          ::pread(fd_, entries_.data(), count * 8, static_cast<off_t>(at / kPage * 8)) != wanted) {
        std::fill_n(entries_.begin(), count, kPresentOrSwapped);
      }
      for (size_t i = 0; i < count; ++i) {
        if ((entries_[i] & kPresentOrSwapped) != 0) visit(at + i * kPage);
      }
    }
  }

  int fd_;
  bool has_ioctl_ = true;
  std::vector<uint64_t> entries_;
};

}  // namespace

AddressSpace::Image AddressSpace::save() const {
  Image image;
  image.books = books_;
  if (cold_ != nullptr) cold_->open_all();
  WrittenPages written;
  for_each_held([&](uintptr_t begin, uintptr_t end) {
    written.for_each(begin, end, [&](uintptr_t at) {
      std::memcpy(image.pages.emplace_back().contents.data(), base::pointer_to(at), kPage);
      image.pages.back().at = at;
    });
    if (resident_ == nullptr) return;
    for_each_word((begin - base_) / kPage, (end - base_) / kPage, [&](size_t index, uint64_t mask) {
      for (uint64_t word = resident_[index] & mask; word != 0; word &= word - 1) {
        const size_t page = index * 64 + static_cast<size_t>(std::countr_zero(word));
        image.resident.push_back(base_ + page * kPage);
      }
    });
  });
  for (const auto& [memory, bytes] : tables_) {
    const auto* begin = static_cast<const std::byte*>(memory);
    image.tables.emplace_back(begin, begin + bytes);
  }
  return image;
}

void AddressSpace::restore(const Image& image) {
  if (resident_ != nullptr) {
    for_each_held([&](uintptr_t begin, uintptr_t end) { forget_pages(begin, end); });
    for (const uintptr_t at : image.resident) touch(base::pointer_to(at), 1);
  }
  books_ = image.books;
  for (const Image::Page& page : image.pages) {
    std::memcpy(base::pointer_to(page.at), page.contents.data(), kPage);
  }
  // Tables that came later are known to nobody any more.
  for (size_t i = 0; i < image.tables.size(); ++i) {
    std::memcpy(tables_[i].first, image.tables[i].data(), image.tables[i].size());
  }
}

// ---- Pages.

void AddressSpace::renew(uintptr_t begin, uintptr_t end, int protection) {
  if (resident_ != nullptr) forget_pages(begin, end);
  if (contents_ == Contents::kNone || begin >= end) return;
  const ErrnoKeeper keeper;
  change_range(begin, end, protection);
}

void AddressSpace::forget_pages(uintptr_t begin, uintptr_t end) {
  for_each_word((begin - base_) / kPage, (end - base_) / kPage, [&](size_t index, uint64_t mask) {
    uint64_t& word = resident_[index];
    if ((word & mask) == 0) return;
    books_.resident_pages -= static_cast<size_t>(std::popcount(word & mask));
    word &= ~mask;
  });
}

void AddressSpace::move_residency(uintptr_t from, uintptr_t to, size_t bytes) {
  for (size_t at = 0; at < bytes; at += kPage) {
    const size_t page = (from + at - base_) / kPage;
    uint64_t& word = resident_[page / 64];
    const uint64_t bit = uint64_t{1} << (page % 64);
    if ((word & bit) == 0) continue;
    word &= ~bit;
    --books_.resident_pages;
    books_.faults -= touch(base::pointer_to(to + at), 1);  // Moved, not touched.
  }
}

size_t AddressSpace::touch(const void* address, size_t bytes) {
  if (resident_ == nullptr || bytes == 0) return 0;
  const size_t page = (base::address_of(address) - base_) / kPage;
  const size_t last = (base::address_of(address) + bytes - 1 - base_) / kPage;
  size_t fresh = 0;
  for_each_word(page, last + 1, [&](size_t index, uint64_t mask) {
    fresh += static_cast<size_t>(std::popcount(~resident_[index] & mask));
    resident_[index] |= mask;
  });
  books_.resident_pages += fresh;
  books_.faults += fresh;
  if (books_.resident_pages > books_.resident_peak) books_.resident_peak = books_.resident_pages;
  return fresh;
}

}  // namespace heapledger::heap
