// SPDX-License-Identifier: Apache-2.0
// The allocator's system: the kernel, with every call timed and noted for the recorder.
//
// The allocator calls this with its locks held, so nothing is written to a ring here:
// trace::note_os_call keeps it until the exported function that caused it has left the allocator
// (recorder.h). See heap/os.h for the contract.
#pragma once

#include "interposer/base/bits.h"
#include "interposer/base/sys.h"
#include "interposer/heap/direct_os.h"
#include "interposer/heap/os.h"
#include "interposer/heap/start_settings.h"
#include "interposer/trace/recorder.h"

namespace heapledger {

class TracedOs {
 public:
  // The process's slot has room for the common ones; the others are told where they are unusual.
  heap::Settings initial_settings() {
    const heap::Settings settings = heap::settings_from_environment();
    const heap::Settings usual;
    for (const heap::StartSetting& setting : heap::kStartSettings) {
      const uint64_t value = setting.get(settings);
      if (value != setting.get(usual)) {
        on_policy(heap::PolicyKind::kSettingAtStart, setting.number, value);
      }
    }
    return settings;
  }

  uintptr_t brk(uintptr_t address, heap::Cause cause) {
    const uint64_t entered = trace::tick();
    const uintptr_t result = base::sys::brk(address);
    note(schema::SyscallName::kBrk, cause, entered, {address}, static_cast<long>(result));
    if (cause == heap::Cause::kQueryBreak && trace::is_recording()) trace::note_heap_start(result);
    return result;
  }
  void* mmap(void* hint, size_t length, int protection, int flags, heap::Cause cause) {
    const uint64_t entered = trace::tick();
    const long result = base::sys::mmap(hint, length, protection, flags);
    note(schema::SyscallName::kMmap, cause, entered,
         {base::address_of(hint), length, word(protection), word(flags), UINT64_MAX, 0}, result);
    return heap::DirectOs::pointer_or_null(result);
  }
  bool munmap(void* address, size_t length, heap::Cause cause) {
    const uint64_t entered = trace::tick();
    const long result = base::sys::munmap(address, length);
    note(schema::SyscallName::kMunmap, cause, entered, {base::address_of(address), length}, result);
    return !base::sys::failed(result);
  }
  void* mremap(void* address, size_t old_length, size_t new_length, int flags, heap::Cause cause) {
    const uint64_t entered = trace::tick();
    const long result = base::sys::mremap(address, old_length, new_length, flags);
    note(schema::SyscallName::kMremap, cause, entered,
         {base::address_of(address), old_length, new_length, word(flags)}, result);
    return heap::DirectOs::pointer_or_null(result);
  }
  bool madvise(void* address, size_t length, int advice, heap::Cause cause) {
    const uint64_t entered = trace::tick();
    const long result = base::sys::madvise(address, length, advice);
    note(schema::SyscallName::kMadvise, cause, entered,
         {base::address_of(address), length, word(advice)}, result);
    return !base::sys::failed(result);
  }
  bool mprotect(void* address, size_t length, int protection, heap::Cause cause) {
    const uint64_t entered = trace::tick();
    const long result = base::sys::mprotect(address, length, protection);
    note(schema::SyscallName::kMprotect, cause, entered,
         {base::address_of(address), length, word(protection)}, result);
    return !base::sys::failed(result);
  }
  bool is_single_threaded() { return heap::DirectOs().is_single_threaded(); }
  size_t cpu_count() { return heap::DirectOs().cpu_count(); }
  bool release_by_remap() { return heap::DirectOs().release_by_remap(); }
  heap::HugePages huge_pages(size_t requested) { return heap::read_huge_pages(requested); }
  void on_policy(heap::PolicyKind kind, uint64_t old_value, uint64_t new_value) {
    trace::note_policy(static_cast<uint8_t>(kind), old_value, new_value);
  }

 private:
  static uint64_t word(int value) { return static_cast<uint64_t>(static_cast<int64_t>(value)); }
  static void note(schema::SyscallName name, heap::Cause cause, uint64_t entered,
                   const uint64_t (&args)[6], long result) {
    trace::note_os_call(name, static_cast<uint8_t>(cause), entered, args, result);
  }
};
static_assert(heap::OperatingSystem<TracedOs>);

}  // namespace heapledger
