// SPDX-License-Identifier: Apache-2.0
//
// The Os of the model under comparison: each system call must be the recorded one, to the last
// argument, and has the recorded result. The memory is mapped at the very addresses the recorded
// process had, so blocks must have equal addresses too; nothing is translated.
//
// The tester runs with another memory layout than the driver (see main.cc), which leaves these
// addresses free. A call that is not the recorded next one throws Mismatch through the allocator:
// the model is then given up. Single-threaded.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "interposer/heap/machine.h"
#include "interposer/heap/os.h"
#include "tests/interposer/heap/differential/tracer.h"

namespace heapledger::heap::differential {

struct Mismatch : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The recorded process's memory, replayed.
class Script {
 public:
  // `calls` must outlive it.
  Script(const std::vector<SystemCall>& calls, const Settings& initial)
      : settings(initial), calls_(calls) {}
  ~Script();
  Script(const Script&) = delete;
  Script& operator=(const Script&) = delete;

  // From here on the model runs call `op` of the sequence.
  void begin_op(int64_t op) { op_ = op; }
  // The call is over: nothing recorded for it may be left.
  void end_op();
  // What the program did to its memory by itself in this call. Returns the break if it asked for or
  // moved it, else 0.
  uintptr_t skip_foreign_op();

  uintptr_t brk(uintptr_t address);
  void* mmap(void* hint, size_t length, int protection, int flags);
  bool munmap(void* address, size_t length);
  void* mremap(void* address, size_t old_length, size_t new_length, int flags);
  bool madvise(void* address, size_t length, int advice);
  bool mprotect(void* address, size_t length, int protection);
  void* map_registry(size_t length);

  Settings settings;
  bool has_threads = false;  // As libc knows it: from the first pthread_create on, for ever.

 private:
  const SystemCall& expect(long number, std::initializer_list<uint64_t> args);
  void follow_break(const SystemCall& call);

  const std::vector<SystemCall>& calls_;
  size_t next_ = 0;
  int64_t op_ = 0;
  uintptr_t break_begin_ = 0;
  uintptr_t break_ = 0;
  std::vector<std::pair<void*, size_t>> registries_;
};

struct ScriptedOs {
  Script* script = nullptr;

  Settings initial_settings() { return script->settings; }
  uintptr_t brk(uintptr_t address, Cause) { return script->brk(address); }
  void* mmap(void* hint, size_t length, int protection, int flags, Cause cause) {
    // The model's own table of pages: no memory that glibc has.
    if (cause == Cause::kRegistry) return script->map_registry(length);
    return script->mmap(hint, length, protection, flags);
  }
  bool munmap(void* address, size_t length, Cause) { return script->munmap(address, length); }
  void* mremap(void* address, size_t old_length, size_t new_length, int flags, Cause) {
    return script->mremap(address, old_length, new_length, flags);
  }
  bool madvise(void* address, size_t length, int advice, Cause) {
    return script->madvise(address, length, advice);
  }
  bool mprotect(void* address, size_t length, int protection, Cause) {
    return script->mprotect(address, length, protection);
  }
  void on_policy(PolicyKind, uint64_t, uint64_t) {}
  HugePages huge_pages(size_t requested) { return read_huge_pages(requested); }
  bool is_single_threaded() { return !script->has_threads; }
  // The driver runs on this machine.
  size_t cpu_count() { return online_cpus(); }
  bool release_by_remap() { return must_release_by_remap(); }
};
static_assert(OperatingSystem<ScriptedOs>);

// The addresses a driver can have memory at are free in this process, or the reason why not.
std::string driver_addresses_taken();

}  // namespace heapledger::heap::differential
