// SPDX-License-Identifier: Apache-2.0
//
// The Os of a model: an AddressSpace without contents, and what the modelled machine answers to the
// allocator's questions. An allocator keeps its Os by value, so this is a handle.
// Thread safety: none; the modelled threads all run on one.
#pragma once

#include "interposer/heap/os.h"
#include "interposer/simulated/address_space.h"

namespace heapledger::heap {

struct Machine {
  explicit Machine(const SpaceOptions& options = {}) : space(options) {}

  AddressSpace space;
  Settings settings;            // Read at the allocator's first call.
  bool single_threaded = true;  // Until the modelled process starts its second thread.
  size_t cpus = 1;
  HugePages huge_pages;
};

struct ModelOs {
  static constexpr bool kHoldsData = false;

  Machine* machine = nullptr;

  Settings initial_settings() { return machine->settings; }
  uintptr_t brk(uintptr_t address, Cause cause) { return machine->space.brk(address, cause); }
  void* mmap(void* hint, size_t length, int protection, int flags, Cause cause) {
    return machine->space.mmap(hint, length, protection, flags, cause);
  }
  bool munmap(void* address, size_t length, Cause cause) {
    return machine->space.munmap(address, length, cause);
  }
  void* mremap(void* address, size_t old_length, size_t new_length, int flags, Cause cause) {
    return machine->space.mremap(address, old_length, new_length, flags, cause);
  }
  bool madvise(void* address, size_t length, int advice, Cause cause) {
    return machine->space.madvise(address, length, advice, cause);
  }
  bool mprotect(void* address, size_t length, int protection, Cause cause) {
    return machine->space.mprotect(address, length, protection, cause);
  }
  void on_policy(PolicyKind, uint64_t, uint64_t) {}
  void on_write(const void* address, size_t bytes) { machine->space.touch(address, bytes); }
  bool is_single_threaded() { return machine->single_threaded; }
  size_t cpu_count() { return machine->cpus; }
  HugePages huge_pages(size_t) { return machine->huge_pages; }
};
static_assert(OperatingSystem<ModelOs>);

}  // namespace heapledger::heap
