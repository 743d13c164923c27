// SPDX-License-Identifier: Apache-2.0
#include "analyzer/replay/memory_map.h"

#include <sys/mman.h>

#include <algorithm>
#include <limits>

namespace heapledger::analyzer {

namespace {

using schema::Origin;
using schema::SyscallName;
using schema::Touch;

uint64_t page_up(uint64_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

}  // namespace

const char* region_name(Region region) {
  switch (region) {
    case Region::kHeap:
      return "heap";
    case Region::kArena:
      return "arena";
    case Region::kBlock:
      return "block";
    case Region::kOther:
      break;
  }
  return "other";
}

const char* release_name(Release release) {
  constexpr const char* kNames[kReleaseKinds] = {"",        "munmap",      "trim", "malloc_trim",
                                                 "madvise", "another call"};
  return kNames[static_cast<size_t>(release)];
}

void MemoryMap::enter(const SyscallRow& call) {
  if (call.failed()) return;
  const bool ours = call.origin == Origin::kAllocator;
  const uint64_t start = call.args[0];
  const uint64_t end = start + page_up(call.args[1]);
  switch (call.name) {
    case SyscallName::kBrk:
      move_break(call);
      break;
    case SyscallName::kMmap: {
      const auto got = static_cast<uint64_t>(call.result);
      const uint64_t got_end = got + page_up(call.args[1]);
      if (!ours) {
        forget(got, got_end);
        const bool is_private =
            (call.args[3] & MAP_ANONYMOUS) != 0 && (call.args[3] & MAP_TYPE) == MAP_PRIVATE;
        foreign_.add(got, got_end, is_private ? RangeKind::kAnonymous : RangeKind::kFile, 0);
        break;
      }
      // The allocator's own tables are no heap; a reservation is held once it is made accessible.
      if (call.cause == "trim heap") release_by(call, got, got_end, false, Release::kTrim);
      // What is new has no pages; those known here went by a call that nobody saw.
      if (resident_.count(got, got_end) != 0) release(got, got_end, true, Release::kOther);
      if (call.cause == "registry" || call.args[2] == PROT_NONE) break;
      const bool block = call.cause.empty() || call.cause == "map block";
      queue({call.time_ns + call.duration_ns,
             got,
             got_end,
             block ? RangeKind::kMapped : RangeKind::kHeap,
             call.stack,
             {}});
      break;
    }
    case SyscallName::kMunmap:
      release_by(call, start, end, false, Release::kMunmap);
      if (!ours) forget(start, end);
      break;
    case SyscallName::kMremap:
      remap(call);
      break;
    case SyscallName::kMadvise:
      if (call.args[2] == MADV_DONTNEED || call.args[2] == MADV_REMOVE) {
        const Release by = !ours                       ? Release::kMadvise
                           : call.cause == "trim heap" ? Release::kTrim
                                                       : Release::kMallocTrim;
        release_by(call, start, end, true, by);
      }
      break;
    case SyscallName::kMprotect:
      if (ours) protect(call);
      break;
  }
}

void MemoryMap::move_break(const SyscallRow& call) {
  const auto now = static_cast<uint64_t>(call.result);
  const uint64_t before = break_end_ == 0 ? now : break_end_;
  break_end_ = now;
  if (now < before) {
    const bool ours = call.origin == Origin::kAllocator;
    release_by(call, now, before, false, ours ? Release::kTrim : Release::kOther);
  } else if (now > before && call.origin == Origin::kAllocator) {
    queue({call.time_ns + call.duration_ns, before, now, RangeKind::kBreak, call.stack, {}});
  }
}

void MemoryMap::remap(const SyscallRow& call) {
  const uint64_t old_start = call.args[0];
  const uint64_t old_end = old_start + page_up(call.args[1]);
  const auto start = static_cast<uint64_t>(call.result);
  const uint64_t end = start + page_up(call.args[2]);
  std::optional<RangeKind> kind;
  if (const HeldRange* range = foreign_.find(old_start)) kind = range->kind;
  std::vector<uint64_t> moved;
  resident_.for_each(old_start, old_end, [&](uint64_t page) { moved.push_back(page - old_start); });
  if (start == old_start) {
    if (end < old_end) release_by(call, end, old_end, false, Release::kOther);
    if (end <= old_end) return;
  } else {
    release_by(call, old_start, old_end, false, Release::kOther);
    // They moved: touching the old address again is a first touch of something else.
    forget(old_start, old_end);
  }
  if (call.origin != Origin::kAllocator) {
    if (!kind || !all_calls_) return;
    foreign_.add(start, end, *kind, 0);
    for (const uint64_t offset : moved) {
      if (start + offset < end) add_resident(start + offset);
    }
    return;
  }
  queue({call.time_ns + call.duration_ns, start, end, RangeKind::kMapped, call.stack,
         std::move(moved)});
}

void MemoryMap::protect(const SyscallRow& call) {
  const uint64_t start = call.args[0];
  const uint64_t end = start + page_up(call.args[1]);
  if (call.args[2] == PROT_NONE) {
    release_by(call, start, end, false, Release::kTrim);
  } else if (held_.find(start) == nullptr) {
    queue({call.time_ns + call.duration_ns, start, end, RangeKind::kHeap, call.stack, {}});
  }
}

void MemoryMap::release_by(const SyscallRow& call, uint64_t start, uint64_t end, bool keep_range,
                           Release by) {
  end_releases_before(call.time_ns);
  const uint64_t first_page = (start + kPageBytes - 1) / kPageBytes * kPageBytes;
  const uint64_t page_end = end / kPageBytes * kPageBytes;
  if (resident_.count(first_page, page_end) != 0) {
    releasing_.push_back({call.time_ns + call.duration_ns, start, end});
    releasing_pages_.add_common(resident_, first_page, page_end);
  }
  release(start, end, keep_range, by);
}

void MemoryMap::end_releases_before(int64_t now_ns) {
  std::erase_if(releasing_, [&](const Releasing& other) {
    if (other.return_ns >= now_ns) return false;
    releasing_pages_.remove(other.start, other.end);
    return true;
  });
}

bool MemoryMap::add_resident(uint64_t address) {
  if (!resident_.add(address)) return false;
  ++resident_pages_;
  if (window_open_) window_any_.add(address);
  ever_.add(address);
  return true;
}

void MemoryMap::release(uint64_t start, uint64_t end, bool keep_range, Release by) {
  held_resident_pages_ -= held_resident_in(start, end);
  // Whole pages only, as remove() takes them.
  const uint64_t first_page = (start + kPageBytes - 1) / kPageBytes * kPageBytes;
  const uint64_t page_end = end / kPageBytes * kPageBytes;
  for (PageSet& released : released_) released.remove_common(resident_, first_page, page_end);
  released_[static_cast<size_t>(by)].add_common(resident_, first_page, page_end);
  resident_pages_ -= resident_.remove(start, end);
  shared_.remove(start, end);
  unfaulted_.remove(start, end);
  touched_absent_.remove(start, end);
  used_.forget(start, end);
  if (window_open_) {
    window_all_.remove(start, end);
    window_changed_.add_range(start, end);
  }
  if (!keep_range) {
    held_.remove(start, end);
    foreign_.remove(start, end);
  }
  held_resident_pages_ += held_resident_in(start, end);
}

void MemoryMap::forget(uint64_t start, uint64_t end) {
  held_resident_pages_ -= held_resident_in(start, end);
  resident_pages_ -= resident_.remove(start, end);
  ever_.remove(start, end);
  ever_held_.remove(start, end);
  shared_.remove(start, end);
  unfaulted_.remove(start, end);
  touched_absent_.remove(start, end);
  for (PageSet& released : released_) released.remove(start, end);
  if (!window_open_) return;
  window_all_.remove(start, end);
  window_changed_.add_range(start, end);
}

void MemoryMap::queue(Acquisition acquisition) {
  const auto place = std::find_if(queue_.begin(), queue_.end(), [&](const Acquisition& other) {
    return other.time_ns <= acquisition.time_ns;
  });
  queue_.insert(place, std::move(acquisition));
}

int64_t MemoryMap::next_acquisition() const {
  return queue_.empty() ? std::numeric_limits<int64_t>::max() : queue_.back().time_ns;
}

void MemoryMap::acquire_next() {
  const Acquisition next = std::move(queue_.back());
  queue_.pop_back();
  held_resident_pages_ -= held_resident_in(next.start, next.end);
  held_.add(next.start, next.end, next.kind, next.stack);
  foreign_.remove(next.start, next.end);
  for (const uint64_t offset : next.moved_pages) add_resident(next.start + offset);
  ever_held_.add_common(resident_, next.start, next.end);
  held_resident_pages_ += held_resident_in(next.start, next.end);
  if (!window_open_) return;
  window_.held.emplace_back(next.start, next.end);
  if (!next.moved_pages.empty()) window_changed_.add_range(next.start, next.end);
}

uint64_t MemoryMap::held_resident_in(uint64_t start, uint64_t end) const {
  const RangeMap::Map& ranges = held_.ranges();
  auto it = ranges.lower_bound(start);
  if (it != ranges.begin() && std::prev(it)->second.end > start) --it;
  uint64_t pages = 0;
  for (; it != ranges.end() && it->first < end; ++it) {
    pages += resident_.count(std::max(start, it->first), std::min(end, it->second.end));
  }
  return pages;
}

Touch MemoryMap::fault(uint64_t address) {
  const Region where = region(address);
  if (window_open_) {
    window_changed_.add(address);
    window_any_.add(address);
  }
  if (resident_.add(address)) {
    ++resident_pages_;
    if (held_.find(address) != nullptr) {
      ++held_resident_pages_;
      ever_held_.add(address);
    }
    if (touched_absent_.contains(address)) {
      touched_absent_.remove_page(address);
      return Touch::kZeroUpgrade;
    }
    const bool fresh = ever_.add(address);
    if (fresh) return Touch::kFirst;
    return where == Region::kOther ? foreign_touch(address, false) : Touch::kRepeat;
  }
  ever_.add(address);
  if (shared_.contains(address)) {
    shared_.remove_page(address);
    return Touch::kCow;
  }
  return where == Region::kOther ? foreign_touch(address, true) : Touch::kZeroUpgrade;
}

// A page that had been touched before. Outside of the heap pages come and go by calls that the
// wrappers do not see (the loader's, thread stacks).
Touch MemoryMap::foreign_touch(uint64_t address, bool resident) const {
  const HeldRange* range = all_calls_ ? foreign_.find(address) : nullptr;
  if (range == nullptr) return Touch::kUnknown;
  if (!resident) return Touch::kRepeat;
  // A file's page that is written after it was read is a copy; reclaimed ones come back.
  return range->kind == RangeKind::kAnonymous ? Touch::kZeroUpgrade : Touch::kUnknown;
}

bool MemoryMap::seen_resident(uint64_t address) {
  if (!add_resident(address)) return false;
  if (held_.find(address) != nullptr) {
    ++held_resident_pages_;
    ever_held_.add(address);
  }
  return true;
}

void MemoryMap::seen_absent(uint64_t start, uint64_t end) {
  release(start, end, true, Release::kOther);
}

Release MemoryMap::last_release(uint64_t address) const {
  for (size_t i = 1; i < kReleaseKinds; ++i) {
    if (released_[i].contains(address)) return static_cast<Release>(i);
  }
  return Release::kNone;
}

// A release counts from its entry, but its pages go some time before its return.
void MemoryMap::begin_window(int64_t now_ns) {
  window_open_ = true;
  window_any_ = resident_;
  window_all_ = resident_;
  window_.held.clear();
  window_changed_.clear();
  end_releases_before(now_ns);
  for (const Releasing& other : releasing_) {
    window_any_.add_common(releasing_pages_, other.start, other.end);
    window_.held.emplace_back(other.start, other.end);
    window_changed_.add_range(other.start, other.end);
  }
  for (const auto& [start, range] : held_.ranges()) window_.held.emplace_back(start, range.end);
}

void MemoryMap::correct(uint64_t start, uint64_t end, bool resident) {
  std::vector<uint64_t> wrong;
  const auto note = [&](uint64_t page) {
    if (!window_changed_.contains(page)) wrong.push_back(page);
  };
  if (resident) {
    resident_.for_each_missing(start, end, note);
  } else {
    resident_.for_each(start, end, note);
  }
  // It was so all the time.
  for (const uint64_t page : wrong) {
    const bool held = held_.find(page) != nullptr;
    if (resident) {
      add_resident(page);
      window_all_.add(page);
      touched_absent_.remove_page(page);
    } else {
      resident_.remove_page(page);
      --resident_pages_;
      window_any_.remove_page(page);
      window_all_.remove_page(page);
      unfaulted_.remove_page(page);
    }
    if (!held) continue;
    (resident ? unfaulted_ : touched_absent_).add(page);
    if (resident) {
      ++held_resident_pages_;
      ever_held_.add(page);
    } else {
      --held_resident_pages_;
    }
  }
}

ResidencyWindow MemoryMap::end_window() {
  window_open_ = false;
  ResidencyWindow done = std::move(window_);
  window_ = {};
  std::sort(done.held.begin(), done.held.end());
  size_t kept = 0;
  for (const auto& [start, end] : done.held) {
    if (kept != 0 && start <= done.held[kept - 1].second) {
      done.held[kept - 1].second = std::max(done.held[kept - 1].second, end);
    } else {
      done.held[kept++] = {start, end};
    }
  }
  done.held.resize(kept);
  for (const auto& [start, end] : done.held) {
    done.held_resident_min += window_all_.count(start, end) * kPageBytes;
    done.held_resident_max += window_any_.count(start, end) * kPageBytes;
  }
  window_any_.clear();
  window_all_.clear();
  window_changed_.clear();
  return done;
}

Region MemoryMap::region(uint64_t address) const {
  const auto region_of = [](RangeKind kind) {
    if (kind == RangeKind::kMapped) return Region::kBlock;
    return kind == RangeKind::kBreak ? Region::kHeap : Region::kArena;
  };
  if (const HeldRange* range = held_.find(address)) return region_of(range->kind);
  for (const Acquisition& next : queue_) {
    if (address >= next.start && address < next.end) return region_of(next.kind);
  }
  return Region::kOther;
}

}  // namespace heapledger::analyzer
