// SPDX-License-Identifier: Apache-2.0
#include "tests/interposer/heap/simulated_os.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>

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

}  // namespace

SimulatedSpace::SimulatedSpace(size_t break_bytes, size_t map_bytes)
    : total_(break_bytes + map_bytes) {
  void* memory =
      ::mmap(nullptr, total_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  base_ = base::address_of(memory);
  break_begin_ = break_ = base_ + kPage;
  break_end_ = base_ + break_bytes - kPage;
  free_[base_ + break_bytes] = map_bytes;
}

SimulatedSpace::~SimulatedSpace() { ::munmap(base::pointer_to(base_), total_); }

void SimulatedSpace::reset_pages(uintptr_t begin, size_t length, int protection) {
  if (length == 0) return;
  void* result = ::mmap(base::pointer_to(begin), length, protection,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (result == MAP_FAILED) std::abort();
}

uintptr_t SimulatedSpace::brk(uintptr_t address, Cause cause) {
  const ErrnoKeeper keeper;
  if (interruption_ && address != 0) interruption_();
  const std::lock_guard guard(mutex_);
  SysCall call{"brk", cause, 0, 0, address, true};
  if (address != 0) {
    call.bytes = static_cast<int64_t>(address) - static_cast<int64_t>(break_);
    call.ok = address >= break_begin_ && address <= break_end_ && !(wall_ && call.bytes > 0);
  }
  calls_.push_back(call);
  if (address == 0 || !call.ok) return break_;
  const uintptr_t old_page = base::align_up(break_, kPage);
  const uintptr_t new_page = base::align_up(address, kPage);
  if (new_page > old_page) reset_pages(old_page, new_page - old_page, PROT_READ | PROT_WRITE);
  if (new_page < old_page) reset_pages(new_page, old_page - new_page, PROT_NONE);
  break_ = address;
  return break_;
}

uintptr_t SimulatedSpace::take_range(size_t length) {
  // From the high end of the last range that fits, as the kernel maps top-down.
  for (auto range = free_.rbegin(); range != free_.rend(); ++range) {
    if (range->second < length) continue;
    range->second -= length;
    return range->first + range->second;
  }
  return 0;
}

void SimulatedSpace::give_range(uintptr_t begin, size_t length) {
  auto range = free_.emplace(begin, length).first;
  auto after = std::next(range);
  if (after != free_.end() && begin + length == after->first) {
    range->second += after->second;
    free_.erase(after);
  }
  if (range == free_.begin()) return;
  auto before = std::prev(range);
  if (before->first + before->second == begin) {
    before->second += range->second;
    free_.erase(range);
  }
}

void* SimulatedSpace::mmap(size_t length, Cause cause) {
  const ErrnoKeeper keeper;
  const std::lock_guard guard(mutex_);
  const size_t rounded = base::align_up(length, kPage);
  const uintptr_t begin = map_fails_ ? 0 : take_range(rounded);
  calls_.push_back({"mmap", cause, static_cast<int64_t>(length), 0, begin, begin != 0});
  if (begin == 0) return nullptr;
  reset_pages(begin, rounded, PROT_READ | PROT_WRITE);
  ++mappings_;
  return base::pointer_to(begin);
}

bool SimulatedSpace::munmap(void* address, size_t length, Cause cause) {
  const ErrnoKeeper keeper;
  const std::lock_guard guard(mutex_);
  const uintptr_t begin = base::address_of(address);
  calls_.push_back({"munmap", cause, static_cast<int64_t>(length), 0, begin, true});
  if (!base::is_aligned(begin | length, kPage)) std::abort();
  reset_pages(begin, length, PROT_NONE);
  give_range(begin, length);
  --mappings_;
  return true;
}

void* SimulatedSpace::mremap(void* address, size_t old_length, size_t new_length, Cause cause) {
  const ErrnoKeeper keeper;
  const std::lock_guard guard(mutex_);
  const uintptr_t begin = base::address_of(address);
  calls_.push_back({"mremap", cause, static_cast<int64_t>(new_length),
                    static_cast<int64_t>(old_length), begin, !remap_fails_});
  if (remap_fails_) return nullptr;
  if (new_length <= old_length) {
    reset_pages(begin + new_length, old_length - new_length, PROT_NONE);
    give_range(begin + new_length, old_length - new_length);
    return address;
  }
  // Growth always moves here: the harder case.
  const uintptr_t target = take_range(new_length);
  if (target == 0) return nullptr;
  reset_pages(target, new_length, PROT_READ | PROT_WRITE);
  std::memcpy(base::pointer_to(target), address, old_length);
  reset_pages(begin, old_length, PROT_NONE);
  give_range(begin, old_length);
  return base::pointer_to(target);
}

bool SimulatedSpace::madvise(void* address, size_t length, Cause cause) {
  const ErrnoKeeper keeper;
  const std::lock_guard guard(mutex_);
  const uintptr_t begin = base::address_of(address);
  calls_.push_back({"madvise", cause, static_cast<int64_t>(length), 0, begin, true});
  if (!base::is_aligned(begin | length, kPage)) std::abort();
  reset_pages(begin, length, PROT_READ | PROT_WRITE);
  return true;
}

void SimulatedSpace::note_policy(const PolicyEvent& event) {
  const std::lock_guard guard(mutex_);
  policy.push_back(event);
}

uintptr_t SimulatedSpace::foreign_sbrk(int64_t bytes) {
  const uintptr_t old = brk(0, Cause::kNone);
  brk(old + static_cast<uintptr_t>(bytes), Cause::kNone);
  const std::lock_guard guard(mutex_);
  calls_.pop_back();
  calls_.pop_back();
  return break_;
}

size_t SimulatedSpace::mapping_count() {
  const std::lock_guard guard(mutex_);
  return mappings_;
}

std::vector<SysCall> SimulatedSpace::take_calls() {
  const std::lock_guard guard(mutex_);
  std::vector<SysCall> calls;
  calls.swap(calls_);
  return calls;
}

std::string SimulatedSpace::take_text() {
  std::string text;
  for (const SysCall& call : take_calls()) {
    if (!text.empty()) text += "; ";
    text += call.name;
    if (call.name == "mremap") text += " " + std::to_string(call.old_bytes);
    if (call.name != "brk") {
      text += " " + std::to_string(call.bytes);
    } else if (call.address == 0) {
      text += " ?";
    } else {
      text += (call.bytes >= 0 ? " +" : " ") + std::to_string(call.bytes);
    }
    if (!call.ok) text += " refused";
  }
  return text;
}

}  // namespace heapledger::heap
