// SPDX-License-Identifier: Apache-2.0
//
// An Os for tests: an AddressSpace whose pages behave as the kernel's, so that an allocator under
// test never meets the process's real break; every call is written down, and any call can be made
// to fail or to be interrupted. Thread safety: calls are serialised.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "interposer/heap/os.h"
#include "interposer/simulated/address_space.h"

namespace heapledger::heap {

using SysCall = SimulatedCall;

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
  SimulatedSpace(const SimulatedSpace&) = delete;
  SimulatedSpace& operator=(const SimulatedSpace&) = delete;

  uintptr_t brk(uintptr_t address, Cause cause);
  void* mmap(void* hint, size_t length, int protection, int flags, Cause cause);
  bool munmap(void* address, size_t length, Cause cause);
  void* mremap(void* address, size_t old_length, size_t new_length, int flags, Cause cause);
  bool madvise(void* address, size_t length, int advice, Cause cause);
  bool mprotect(void* address, size_t length, int protection, Cause cause);
  void note_policy(const PolicyEvent& event);

  // Calls since the last take, in order, and as short text: "brk +135168; mmap 200704; mremap
  // 200704 303104".
  std::vector<SimulatedCall> take_calls();
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
  size_t cpu_count = 2;
  bool release_by_remap = false;
  HugePages huge_pages;  // What the machine has.
  std::vector<PolicyEvent> policy;

 private:
  bool is_refused(const SimulatedCall& call) const;

  std::mutex mutex_;
  AddressSpace space_;
  bool wall_ = false;
  bool map_fails_ = false;
  bool remap_fails_ = false;
  std::function<void()> interruption_;
  std::vector<SimulatedCall> calls_;
};

struct SimulatedOs {
  SimulatedSpace* space = nullptr;

  Settings initial_settings() { return space->settings; }
  uintptr_t brk(uintptr_t address, Cause cause) { return space->brk(address, cause); }
  void* mmap(void* hint, size_t length, int protection, int flags, Cause cause) {
    return space->mmap(hint, length, protection, flags, cause);
  }
  bool munmap(void* address, size_t length, Cause cause) {
    return space->munmap(address, length, cause);
  }
  void* mremap(void* address, size_t old_length, size_t new_length, int flags, Cause cause) {
    return space->mremap(address, old_length, new_length, flags, cause);
  }
  bool madvise(void* address, size_t length, int advice, Cause cause) {
    return space->madvise(address, length, advice, cause);
  }
  bool mprotect(void* address, size_t length, int protection, Cause cause) {
    return space->mprotect(address, length, protection, cause);
  }
  size_t cpu_count() { return space->cpu_count; }
  bool release_by_remap() { return space->release_by_remap; }
  HugePages huge_pages(size_t) { return space->huge_pages; }
  void on_policy(PolicyKind kind, uint64_t old_value, uint64_t new_value) {
    space->note_policy({kind, old_value, new_value});
  }
};
static_assert(OperatingSystem<SimulatedOs>);

}  // namespace heapledger::heap
