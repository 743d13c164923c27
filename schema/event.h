// SPDX-License-Identifier: Apache-2.0
// The events that the shim writes into its rings and the collector reads: the only place where
// their layout stands.
//
// An event is a run of 8-byte words, little-endian, 8-byte aligned, written whole before the ring's
// head is moved past it:
//
//     EventHead          16 bytes: kind, flags, length, stack lengths, time stamp
//     fixed part         the struct of the kind (EventHead is its first member)
//     optional words     in this order, each present if its flag is set: usable, alignment
//     text               for the kinds that carry one: `text_bytes` bytes, padded with zeros to 8
//     fresh frames       head.fresh words: return addresses, innermost first
//
// Stacks are deltas. Each ring has a current stack (frames counted from the outermost). An event
// with kHasStack names its own stack as: the outermost `keep` frames of the ring's current stack,
// then its `fresh` frames inside them; that becomes the current stack. An event without kHasStack
// leaves it alone. kThreadStart empties it. A stack that could not be walked to its root has
// kStackIncomplete; its outermost frame is where the walk ended.
//
// Rules: 1. kind 0 is padding for ever; numbers are never reused. 2. A reader skips a kind it does
// not know by `words`.
// 3. Time stamps are in ticks of the region's clock (ControlPage::clock). 4. An event's stamp lies
// inside its call: after an allocation exists, before a released block can be handed out again. 5.
// Ids: ring slot in the top 24 bits, sequence in that slot in the low 40, both starting at 1, so
// that 0 means "no id": allocated while not recording, or a failed call.
// 6. What does not fit: an event is at most 65,535 words, so a stack is at most 65,000 frames (the
// recorder's limit is lower: ControlPage::stack_depth); sizes and addresses are full words; texts
// are cut at kTextBytesMax.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>

namespace heapledger::schema {

// What happened. The malloc family comes first: kind < kCallKindEnd is a call of the program,
// counted in `event`.
enum class EventKind : uint8_t {
  kPad = 0,  // Skips the rest of a ring before it wraps. Only `kind` and `words` are meaningful;
             // its head may be one word.
  // Allocations (AllocEvent).
  kMalloc = 1,
  kCalloc = 2,
  kMemalign = 3,
  kPosixMemalign = 4,
  kAlignedAlloc = 5,
  kValloc = 6,
  kPvalloc = 7,
  kNew = 8,
  kNewArray = 9,
  // Releases (FreeEvent).
  kFree = 10,
  kCfree = 11,
  kFreeSized = 12,
  kFreeAlignedSized = 13,
  kDelete = 14,
  kDeleteArray = 15,
  // Both (ReallocEvent).
  kRealloc = 16,
  kReallocarray = 17,
  kCallKindEnd = 18,

  kSyscall = 32,       // SyscallEvent: a memory system call, by the allocator or by the program.
  kPolicy = 33,        // PolicyEvent: the allocator changed its mind about something.
  kThreadStart = 34,   // ThreadStartEvent: a thread took this ring; first event of each ownership.
  kThreadEnd = 35,     // PlainEvent: its thread has ended; the last event of an ownership, where it
                       // could be written.
  kModuleLoad = 36,    // ModuleEvent: an ELF file is mapped.
  kModuleUnload = 37,  // ModuleEvent: it is no longer.
  kMark = 38,          // TextEvent: the program's own heapledger_mark.
  kExec = 39,  // ExecEvent: this process, or a child sharing its memory, is about to run another
               // program.
  kExecFailed = 40,  // ExecEvent: it could not; text empty.
  kNote = 41,        // TextEvent: something the reader must know (a coverage gap, a masked flag).
};

enum EventFlags : uint8_t {
  kHasStack = 1,
  kStackIncomplete = 2,  // Only with kHasStack.
  kHasUsable = 4,        // A word with the usable size follows; else it is usable_by_rule(size).
  kHasAlignment = 8,     // A word with the requested alignment follows; else 0 (the natural 16).
  kFailed = 16,          // The call returned null (or an error): no block, id 0.
  kNested = 32,  // Recorded while another event of the thread was being made (a signal handler).
};

struct EventHead {
  EventKind kind;
  uint8_t flags;   // EventFlags.
  uint16_t words;  // Length of the whole event in 8-byte words, the head included; for kPad up to
                   // the ring's end.
  uint16_t fresh;  // Fresh frames at the event's tail.
  uint16_t keep;   // Outermost frames kept from the ring's current stack.
  uint64_t tick;   // When.
};
static_assert(sizeof(EventHead) == 16);

struct PlainEvent {
  EventHead head;
};

struct AllocEvent {
  EventHead head;    // Stamped after the block exists.
  uint64_t address;  // What the program got; 0 if it failed.
  uint64_t
      size;  // What the program asked for: for calloc the product, or SIZE_MAX where it overflows.
  uint64_t id;
};
static_assert(sizeof(AllocEvent) == 40);

struct FreeEvent {
  EventHead head;  // Stamped after validation, before the block can be handed out again.
  uint64_t address;
  uint64_t ended_id;  // The allocation it ends; 0 for a block from before the recording, and with
                      // kFailed: the pointer was no live block, and the program was aborted.
};
static_assert(sizeof(FreeEvent) == 32);

// realloc(p, n): ends `ended_id` and begins `id`, in place too. realloc(NULL, n): ended_id and
// old_address 0. realloc(p, 0): id and address 0 (not kFailed). Failed: kFailed, nothing ended,
// old_address says which block stayed.
struct ReallocEvent {
  EventHead head;  // When the new block began.
  uint64_t
      ended_tick;  // When the old one ended: before it could be handed out again; <= head.tick.
  uint64_t old_address;
  uint64_t ended_id;
  uint64_t address;
  uint64_t size;
  uint64_t id;
};
static_assert(sizeof(ReallocEvent) == 64);

// kLoader: the dynamic linker's own calls, which only the kernel tells of.
enum class Origin : uint8_t { kAllocator = 0, kProgram = 1, kRecorder = 2, kLoader = 3 };
enum class SyscallName : uint8_t {
  kBrk = 0,
  kMmap = 1,
  kMunmap = 2,
  kMremap = 3,
  kMadvise = 4,
  kMprotect = 5
};
inline constexpr const char* kSyscallNames[] = {"brk",    "mmap",    "munmap",
                                                "mremap", "madvise", "mprotect"};
inline constexpr const char* kOriginNames[] = {"allocator", "program", "recorder", "loader"};

// Arguments and result are the kernel's own, as strace shows them: brk(addr) gives the new break, a
// failed call -errno.
struct SyscallEvent {
  EventHead head;           // When it was entered.
  uint64_t duration_ticks;  // From there to its return.
  SyscallName name;
  Origin origin;
  uint8_t cause;  // heap::Cause; 0 for the program's own.
  uint8_t reserved[5];
  int64_t result;
  uint64_t args[6];
};
static_assert(sizeof(SyscallEvent) == 88);

struct PolicyEvent {
  EventHead head;
  uint64_t policy;  // heap::PolicyKind.
  uint64_t old_value;
  uint64_t new_value;
};
static_assert(sizeof(PolicyEvent) == 40);

struct ThreadStartEvent {
  EventHead head;
  uint32_t pid;  // As the thread itself sees them (its own pid namespace).
  uint32_t tid;
  uint32_t process_slot;  // Index into the region's process table.
  uint32_t level;  // 0: the thread's own ring; 1, 2: for events made inside a signal handler that
                   // interrupted level 0, 1.
  uint64_t next_sequence;  // Ids of this ownership start here.
};
static_assert(sizeof(ThreadStartEvent) == 40);

inline constexpr size_t kBuildIdBytesMax = 32;
inline constexpr size_t kTextBytesMax = 8192;

struct ModuleEvent {
  EventHead head;
  uint64_t base;   // Load bias: address in memory minus address in the file's ELF headers.
  uint64_t start;  // First mapped address, and one past the last, over all PT_LOAD segments.
  uint64_t end;
  uint8_t build_id[kBuildIdBytesMax];
  uint32_t build_id_bytes;  // 0: it has none.
  uint32_t text_bytes;      // The path follows; empty: the vDSO.
};
static_assert(sizeof(ModuleEvent) == 80);

struct TextEvent {
  EventHead head;
  uint64_t text_bytes;
};
static_assert(sizeof(TextEvent) == 24);

struct ExecEvent {
  EventHead head;
  uint32_t pid;  // Who execs: this process or its vfork child; for posix_spawn the child, written
                 // after it exists.
  uint32_t path_bytes;  // The text is the file's path, then the argument vector, each argument
                        // ended by a zero.
  uint64_t text_bytes;
};
static_assert(sizeof(ExecEvent) == 32);

// One row per kind that has a name of its own; the decoder, the `event` table and the tests use it.
// NOLINTNEXTLINE(clang-analyzer-optin.performance.Padding): one table, in reading order.
struct EventKindRow {
  EventKind kind;
  const char* name;  // The function's name for calls.
  uint16_t bytes;    // Fixed part.
  char role;         // 'a' allocates, 'f' frees, 'r' reallocates, 0 otherwise.
};

inline constexpr EventKindRow kEventKinds[] = {
    {EventKind::kPad, "pad", 8, 0},
    {EventKind::kMalloc, "malloc", sizeof(AllocEvent), 'a'},
    {EventKind::kCalloc, "calloc", sizeof(AllocEvent), 'a'},
    {EventKind::kMemalign, "memalign", sizeof(AllocEvent), 'a'},
    {EventKind::kPosixMemalign, "posix_memalign", sizeof(AllocEvent), 'a'},
    {EventKind::kAlignedAlloc, "aligned_alloc", sizeof(AllocEvent), 'a'},
    {EventKind::kValloc, "valloc", sizeof(AllocEvent), 'a'},
    {EventKind::kPvalloc, "pvalloc", sizeof(AllocEvent), 'a'},
    {EventKind::kNew, "new", sizeof(AllocEvent), 'a'},
    {EventKind::kNewArray, "new[]", sizeof(AllocEvent), 'a'},
    {EventKind::kFree, "free", sizeof(FreeEvent), 'f'},
    {EventKind::kCfree, "cfree", sizeof(FreeEvent), 'f'},
    {EventKind::kFreeSized, "free_sized", sizeof(FreeEvent), 'f'},
    {EventKind::kFreeAlignedSized, "free_aligned_sized", sizeof(FreeEvent), 'f'},
    {EventKind::kDelete, "delete", sizeof(FreeEvent), 'f'},
    {EventKind::kDeleteArray, "delete[]", sizeof(FreeEvent), 'f'},
    {EventKind::kRealloc, "realloc", sizeof(ReallocEvent), 'r'},
    {EventKind::kReallocarray, "reallocarray", sizeof(ReallocEvent), 'r'},
    {EventKind::kSyscall, "syscall", sizeof(SyscallEvent), 0},
    {EventKind::kPolicy, "policy", sizeof(PolicyEvent), 0},
    {EventKind::kThreadStart, "thread start", sizeof(ThreadStartEvent), 0},
    {EventKind::kThreadEnd, "thread end", sizeof(PlainEvent), 0},
    {EventKind::kModuleLoad, "module load", sizeof(ModuleEvent), 0},
    {EventKind::kModuleUnload, "module unload", sizeof(ModuleEvent), 0},
    {EventKind::kMark, "mark", sizeof(TextEvent), 0},
    {EventKind::kExec, "exec", sizeof(ExecEvent), 0},
    {EventKind::kExecFailed, "exec failed", sizeof(ExecEvent), 0},
    {EventKind::kNote, "note", sizeof(TextEvent), 0},
};

// The row of a kind, or nullptr for a number that no kind has.
constexpr const EventKindRow* kind_row(EventKind kind) {
  for (const EventKindRow& row : kEventKinds) {
    if (row.kind == kind) return &row;
  }
  return nullptr;
}

constexpr bool is_call(EventKind kind) {
  return kind != EventKind::kPad && kind < EventKind::kCallKindEnd;
}

// What a heap block of this requested size can hold in the 16-byte-header layout: the request
// rounded up to 16, at least 16.
constexpr uint64_t usable_by_rule(uint64_t size) {
  return size <= 16 ? 16 : (size + 15) & ~uint64_t{15};
}

inline constexpr int kIdSequenceBits = 40;
constexpr uint64_t make_id(uint64_t ring_slot, uint64_t sequence) {
  return (ring_slot + 1) << kIdSequenceBits | sequence;
}
constexpr uint64_t id_slot(uint64_t id) { return (id >> kIdSequenceBits) - 1; }
constexpr uint64_t id_sequence(uint64_t id) { return id & ((uint64_t{1} << kIdSequenceBits) - 1); }

// Words of a text of so many bytes.
constexpr size_t text_words(size_t bytes) { return (bytes + 7) / 8; }

}  // namespace heapledger::schema
