// SPDX-License-Identifier: Apache-2.0
//
// An Os for tests: one reserved range of addresses with its own break and its own mappings, so that
// an allocator under test never meets the process's real break, every call is written down, and any
// call can be made to fail.
//
// Pages behave as the kernel's: fresh, unmapped and trimmed ones read as zeros. Thread safety:
// calls are serialised.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "interposer/heap/os.h"

namespace heapledger::heap {

struct SysCall {
  std::string name;  // "brk", "mmap", ...
  Cause cause = Cause::kNone;
  int64_t bytes =
      0;  // brk: by how much it moved (0: a question); mremap: the new length; else the length.
  int64_t old_bytes = 0;  // mremap only.
  uintptr_t address = 0;  // What was asked for or acted on.
  bool ok = true;
};

struct PolicyEvent {
  PolicyKind kind = PolicyKind::kNone;
  uint64_t old_value = 0;
  uint64_t new_value = 0;
};

// The address space itself; the Os below is a handle to it, since an allocator keeps its Os by
// value.
class SimulatedSpace {
 public:
  explicit SimulatedSpace(size_t break_bytes = size_t{1} << 32, size_t map_bytes = size_t{1} << 34);
  ~SimulatedSpace();
  SimulatedSpace(const SimulatedSpace&) = delete;
  SimulatedSpace& operator=(const SimulatedSpace&) = delete;

  uintptr_t brk(uintptr_t address, Cause cause);
  void* mmap(size_t length, Cause cause);
  bool munmap(void* address, size_t length, Cause cause);
  void* mremap(void* address, size_t old_length, size_t new_length, Cause cause);
  bool madvise(void* address, size_t length, Cause cause);
  void note_policy(const PolicyEvent& event);

  // Calls since the last take, in order, and as short text: "brk +135168; mmap 200704; mremap
  // 200704 303104".
  std::vector<SysCall> take_calls();
  std::string take_text();

  // What the program does on its own: moves the break, and puts something where the break would
  // grow into.
  uintptr_t foreign_sbrk(int64_t bytes);
  void set_wall(bool on) { wall_ = on; }
  void set_map_fails(bool on) { map_fails_ = on; }
  void set_remap_fails(bool on) { remap_fails_ = on; }
  // Runs at every move of the break, before it: where a signal handler would interrupt the
  // allocator.
  void set_interruption(std::function<void()> handler) { interruption_ = std::move(handler); }
  // Mappings that exist now.
  size_t mapping_count();

  Settings settings;
  std::vector<PolicyEvent> policy;

 private:
  void reset_pages(uintptr_t begin, size_t length, int protection);
  uintptr_t take_range(size_t length);
  void give_range(uintptr_t begin, size_t length);

  std::mutex mutex_;
  uintptr_t base_ = 0;
  size_t total_ = 0;
  uintptr_t break_begin_ = 0;
  uintptr_t break_end_ = 0;  // As far as it may go.
  uintptr_t break_ = 0;
  std::map<uintptr_t, size_t> free_;  // Unmapped ranges for mappings, by address.
  size_t mappings_ = 0;
  bool wall_ = false;
  bool map_fails_ = false;
  bool remap_fails_ = false;
  std::function<void()> interruption_;
  std::vector<SysCall> calls_;
};

struct SimulatedOs {
  SimulatedSpace* space = nullptr;

  Settings initial_settings() { return space->settings; }
  uintptr_t brk(uintptr_t address, Cause cause) { return space->brk(address, cause); }
  void* mmap(void*, size_t length, int, int, Cause cause) { return space->mmap(length, cause); }
  bool munmap(void* address, size_t length, Cause cause) {
    return space->munmap(address, length, cause);
  }
  void* mremap(void* address, size_t old_length, size_t new_length, int, Cause cause) {
    return space->mremap(address, old_length, new_length, cause);
  }
  bool madvise(void* address, size_t length, int, Cause cause) {
    return space->madvise(address, length, cause);
  }
  bool mprotect(void*, size_t, int, Cause) { return false; }  // No part of the main arena needs it.
  void on_policy(PolicyKind kind, uint64_t old_value, uint64_t new_value) {
    space->note_policy({kind, old_value, new_value});
  }
};
static_assert(OperatingSystem<SimulatedOs>);

}  // namespace heapledger::heap
