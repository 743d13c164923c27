// SPDX-License-Identifier: Apache-2.0
#include "interposer/trace/own_calls.h"

#include <sys/mman.h>

#include "interposer/base/bits.h"
#include "interposer/base/sys.h"
#include "interposer/trace/recorder.h"
#include "interposer/trace/tick.h"

namespace heapledger::trace {
namespace {

namespace sys = base::sys;
using schema::SyscallName;

// Made before the region says which clock counts: both are read.
struct Stamp {
  uint64_t tsc;
  uint64_t raw_ns;

  static Stamp now() { return {__builtin_ia32_rdtsc(), monotonic_raw_ns()}; }
  uint64_t on(schema::Clock clock) const { return clock == schema::Clock::kTsc ? tsc : raw_ns; }
};

struct OwnCall {
  SyscallName name;
  Stamp entered;
  Stamp left;
  int64_t result;
  uint64_t args[6];
};

constexpr size_t kOwnCallsMax = 32;  // Nearly twice what a start makes.
constinit OwnCall g_calls[kOwnCallsMax]{};
constinit size_t g_count = 0;
constinit size_t g_written = 0;

constinit CodeRange g_unwinder;
constinit CodeRange g_linker;

template <class Work>
long note(SyscallName name, const uint64_t (&args)[6], Work work) {
  const Stamp entered = Stamp::now();
  const long result = work();
  if (g_count < kOwnCallsMax) {
    OwnCall& call = g_calls[g_count++];
    call = {name, entered, Stamp::now(), result, {}};
    memcpy(call.args, args, sizeof(args));
  }
  return result;
}

uint64_t word(int value) { return static_cast<uint64_t>(static_cast<int64_t>(value)); }

bool lies_in(uintptr_t address, CodeRange range) {
  return address >= range.start && address < range.end;
}

}  // namespace

long own_mmap(void* address, size_t length, int protection, int flags, int fd) noexcept {
  return note(SyscallName::kMmap,
              {base::address_of(address), length, word(protection), word(flags), word(fd), 0},
              [=] { return sys::mmap(address, length, protection, flags, fd); });
}

long own_munmap(void* address, size_t length) noexcept {
  return note(SyscallName::kMunmap, {base::address_of(address), length},
              [=] { return sys::munmap(address, length); });
}

long own_madvise(void* address, size_t length, int advice) noexcept {
  return note(SyscallName::kMadvise, {base::address_of(address), length, word(advice)},
              [=] { return sys::madvise(address, length, advice); });
}

void* own_memory(size_t bytes) noexcept {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  const size_t whole = base::align_up(bytes, base::kPageBytes) + base::kPageBytes;
  const long guard = own_mmap(nullptr, whole, PROT_NONE, kFlags);
  if (sys::failed(guard)) return nullptr;
  auto* start = reinterpret_cast<std::byte*>(guard);
  const long memory = own_mmap(start + base::kPageBytes, whole - base::kPageBytes,
                               PROT_READ | PROT_WRITE, kFlags | MAP_FIXED | MAP_GROWSDOWN);
  if (!sys::failed(memory)) return start + base::kPageBytes;
  own_munmap(start, whole);
  return nullptr;
}

void release_own_memory(void* memory, size_t bytes) noexcept {
  own_munmap(static_cast<std::byte*>(memory) - base::kPageBytes,
             base::align_up(bytes, base::kPageBytes) + base::kPageBytes);
}

long own_call(CallScope& scope, SyscallName name, long number, void* address, size_t bytes,
              int argument) noexcept {
  if (bytes == 0) return 0;
  scope.flush();  // Stamps in a ring rise.
  const uint64_t entered = tick();
  const long result = sys::call(number, sys::word(address), sys::word(bytes), argument);
  scope.on_syscall(name, schema::Origin::kRecorder, entered, tick() - entered,
                   {base::address_of(address), bytes, word(argument)}, result);
  count_recorder_syscalls(1);
  return result;
}

void write_own_calls(CallScope& scope) noexcept {
  const schema::Clock clock = g_recorder.clock;
  for (; g_written < g_count; ++g_written) {
    const OwnCall& call = g_calls[g_written];
    const uint64_t entered = call.entered.on(clock);
    scope.on_syscall(call.name, schema::Origin::kRecorder, entered, call.left.on(clock) - entered,
                     call.args, call.result);
    count_recorder_syscalls(1);
  }
}

uint64_t first_own_call(schema::Clock clock) noexcept {
  return g_count == 0 ? 0 : g_calls[0].entered.on(clock);
}

void set_own_code(CodeRange unwinder, CodeRange linker) noexcept {
  g_unwinder = unwinder;
  g_linker = linker;
}

bool is_call_of_unwinder(const void* caller) noexcept {
  return lies_in(base::address_of(caller), g_unwinder);
}

bool is_own_call_slow(const void* caller) noexcept {
  if ((t_local.own & kOwnWork) != 0) return true;
  const uintptr_t address = base::address_of(caller);
  return lies_in(address, g_unwinder) || lies_in(address, g_linker);
}

}  // namespace heapledger::trace
