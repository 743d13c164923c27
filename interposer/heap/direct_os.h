// SPDX-License-Identifier: Apache-2.0
//
// The kernel itself, unrecorded: for HEAPLEDGER_RECORD=off and for tests. Stateless; see os.h for
// the contract.
#pragma once

#include <sys/single_threaded.h>

#include "interposer/base/bits.h"
#include "interposer/base/sys.h"
#include "interposer/heap/machine.h"
#include "interposer/heap/os.h"

namespace heapledger::heap {

struct DirectOs {
  Settings initial_settings() { return settings_from_environment(); }
  uintptr_t brk(uintptr_t address, Cause) { return base::sys::brk(address); }
  void* mmap(void* hint, size_t length, int protection, int flags, Cause) {
    return pointer_or_null(base::sys::mmap(hint, length, protection, flags));
  }
  bool munmap(void* address, size_t length, Cause) {
    return !base::sys::failed(base::sys::munmap(address, length));
  }
  void* mremap(void* address, size_t old_length, size_t new_length, int flags, Cause) {
    return pointer_or_null(base::sys::mremap(address, old_length, new_length, flags));
  }
  bool madvise(void* address, size_t length, int advice, Cause) {
    return !base::sys::failed(base::sys::madvise(address, length, advice));
  }
  bool mprotect(void* address, size_t length, int protection, Cause) {
    return !base::sys::failed(base::sys::mprotect(address, length, protection));
  }
  void on_policy(PolicyKind, uint64_t, uint64_t) {}
  HugePages huge_pages(size_t requested) { return read_huge_pages(requested); }
  // libc's own answer, false until it is initialised.
  bool is_single_threaded() { return __libc_single_threaded != 0; }
  size_t cpu_count() { return online_cpus(); }
  bool release_by_remap() { return must_release_by_remap(); }

  static void* pointer_or_null(long result) {
    return base::sys::failed(result) ? nullptr : base::pointer_to(static_cast<uintptr_t>(result));
  }
};
static_assert(OperatingSystem<DirectOs>);

}  // namespace heapledger::heap
