// SPDX-License-Identifier: Apache-2.0
//
// What the allocator asks of the system, and what it tells about its decisions.
//
// `Allocator` is a template over an Os: the real kernel (direct_os.h), the shim's recording one, or
// a simulated address space (tests, what-if). Every system call the allocator makes goes through
// it, with the cause, so that calls and causes can be counted, timed, refused or simulated in one
// place. The Os is a member of the allocator and may have state.
//
// Contract of every call: runs inside malloc, mostly with an arena's lock held. It must not
// allocate from this allocator, take a lock that is held while allocating, or change errno. Several
// threads may be in it at once: mapped blocks need no arena's lock. A null or false result is the
// system's refusal; no call logs.
//
// Optional, with what is assumed without:
//   bool is_single_threaded()   true while no second thread can be in the allocator: locks are then
//                               not taken, and the main arena serves everything. (false)
//   size_t cpu_count()          CPUs that are online; the limit of arenas follows from it. Asked at
//                               most once. (1)
//   bool release_by_remap()     true where a heap's end must be replaced by a mapping without
//                               access to be given back, because memory is accounted strictly
//                               (overcommit_memory 2) or the process is privileged. Asked at most
//                               once, at the first release. (false)
//   HugePages huge_pages(size_t requested)
//                               see huge_pages.h. Asked at the first call, only where the settings
//                               want huge pages. (none)
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>

#include "interposer/heap/huge_pages.h"
#include "interposer/heap/settings.h"

namespace heapledger::heap {

// Why a system call was made. The numbers are written to traces: never reused, new ones at the end.
enum class Cause : uint8_t {
  kNone = 0,
  kQueryBreak = 1,  // The first question where the break is.
  kGrowTop = 2,     // The main arena's top is too small: the break moves up.
  kAlignForeign =
      3,             // Someone else moved the break: a second step up to a page boundary behind it.
  kFallbackTop = 4,  // The break cannot move: a mapping becomes the new top.
  kMapBlock = 5,     // A block at or above the mmap threshold gets its own mapping.
  kUnmapBlock = 6,   // Such a block is freed.
  kRemapBlock = 7,   // Such a block is resized.
  kTrimTop = 8,      // The top's end is given back: the break moves down.
  kNewHeap = 9,      // A secondary arena's heap is reserved (reservation, alignment, first commit).
  kGrowHeap = 10,    // A heap's committed part grows.
  kTrimHeap = 11,    // A heap's end is given back.
  kDestroyHeap = 12,   // A heap is unmapped.
  kReleasePages = 13,  // malloc_trim drops the pages of free chunks.
  kRegistry = 14,      // The allocator's own table of mapped blocks grows; see page_map.h.
  kAdviseHuge = 15,    // New memory is to have transparent huge pages.
};
inline constexpr unsigned kCauseCount = 16;

constexpr const char* cause_name(Cause cause) {
  constexpr const char* kNames[kCauseCount] = {
      "none",         "query break",   "grow top", "align foreign", "fallback top", "map block",
      "unmap block",  "remap block",   "trim top", "new heap",      "grow heap",    "trim heap",
      "destroy heap", "release pages", "registry", "advise huge"};
  const auto index = static_cast<unsigned>(cause);
  return index < kCauseCount ? kNames[index] : "unknown";
}

// Decisions worth a line in a trace, with an old and a new value in bytes unless the comment says
// otherwise. Same numbering rule.
enum class PolicyKind : uint8_t {
  kNone = 0,
  kThresholdRaised = 1,  // The dynamic mmap threshold followed a freed mapping; the trim threshold
                         // is twice the new value.
  kTopGrown = 2,         // Size of the main arena's system memory before and after.
  kTopTrimmed = 3,       // The same, by a trim.
  kTopFallback = 4,  // The break could not move; old: bytes asked of it, new: bytes mapped instead.
  kForeignBreak = 5,     // Someone else moved the break; old and new: where the top ended and where
                         // memory goes on (addresses).
  kArenaCreated = 6,     // Numbers of arenas (not bytes).
  kHeapCreated = 7,      // Old: 0 or the heap's address before; new: the heap's address.
  kHeapDestroyed = 8,    // Old: the heap's address; new: the one that remains.
  kSettingChanged = 9,   // mallopt, also where it only merged the fastbins; old: the parameter's
                         // number, new: its value (not bytes).
  kSettingAtStart = 10,  // Other than the default; see start_settings.h.
  kTrimCalled = 11,      // malloc_trim; old: its argument.
};
inline constexpr unsigned kPolicyKindCount = 12;

constexpr const char* policy_name(PolicyKind kind) {
  constexpr const char* kNames[kPolicyKindCount] = {
      "none",           "threshold raised", "top grown",        "top trimmed",
      "top fallback",   "foreign break",    "arena created",    "heap created",
      "heap destroyed", "setting changed",  "setting at start", "trim called"};
  const auto index = static_cast<unsigned>(kind);
  return index < kPolicyKindCount ? kNames[index] : "unknown";
}

template <class T>
concept OperatingSystem = requires(T os, uintptr_t address, void* pointer, size_t size, int bits,
                                   Cause cause, PolicyKind kind, uint64_t value) {
  // Asked once, at the first call of the allocator.
  { os.initial_settings() } -> std::same_as<Settings>;
  // brk(2) of the kernel: returns the break that holds afterwards, the old one where it refuses. 0
  // asks.
  { os.brk(address, cause) } -> std::same_as<uintptr_t>;
  // Private anonymous memory at the kernel's choice or at `pointer` if it likes the hint; nullptr
  // where refused.
  { os.mmap(pointer, size, bits /*protection*/, bits /*flags*/, cause) } -> std::same_as<void*>;
  { os.munmap(pointer, size, cause) } -> std::same_as<bool>;
  { os.mremap(pointer, size, size, bits /*flags*/, cause) } -> std::same_as<void*>;
  { os.madvise(pointer, size, bits /*advice*/, cause) } -> std::same_as<bool>;
  { os.mprotect(pointer, size, bits /*protection*/, cause) } -> std::same_as<bool>;
  { os.on_policy(kind, value /*old*/, value /*new*/) } -> std::same_as<void>;
};

}  // namespace heapledger::heap
