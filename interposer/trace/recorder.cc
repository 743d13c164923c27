// SPDX-License-Identifier: Apache-2.0
#include "interposer/trace/recorder.h"

#include "interposer/base/sys.h"
#include "interposer/trace/recipe_table.h"
#include "interposer/trace/stack_capture.h"
#include "interposer/trace/stack_check.h"

namespace heapledger::trace {

using schema::EventHead;
using schema::EventKind;

namespace {
// After which a page that could be read may be gone: stacks off the thread's own are looked at
// anew.
constexpr bool may_unmap(schema::SyscallName name) { return name != schema::SyscallName::kMadvise; }

constexpr uint8_t failed_flag(bool failed) {
  return failed ? uint8_t{schema::kFailed} : uint8_t{0};
}

void copy_frames(uint64_t* to, const uintptr_t* frames, size_t count) {
  for (size_t i = 0; i < count; ++i) to[i] = frames[i];
}
}  // namespace

// ---- Stacks.

void CallScope::walk() noexcept {
  StackWalk& walk = ring_->walk;
  StackWalk::Result found = {StackWalk::Outcome::kHelpless, 0, 0};
  if (g_recipes.attached()) found = walk.walk(registers_above(frame_), caller_, ring_->bounds);
  const bool helpless = found.outcome == StackWalk::Outcome::kHelpless;
  if (__builtin_expect(helpless, 0)) found = unwind(found);
  if (__builtin_expect(g_recorder.verify_stacks, 0)) {
    // What libunwind itself has found is not worth a comparison.
    const bool complete = !helpless && found.outcome == StackWalk::Outcome::kComplete;
    check_stack({walk.frames(), walk.count(), complete}, caller_, ring_->slot, &ring_->busy);
  }
  keep_ = static_cast<uint16_t>(found.keep);
  fresh_ = static_cast<uint16_t>(found.fresh);
  incomplete_ = found.outcome != StackWalk::Outcome::kComplete;
  fresh_is_new_ = true;
  has_stack_ = true;
}

// By libunwind; where that may not be asked, what the walk has found stands as an incomplete stack.
__attribute__((noinline, cold)) StackWalk::Result CallScope::unwind(
    StackWalk::Result walked) noexcept {
  StackWalk& walk = ring_->walk;
  const UnwoundStack found = unwind_stack(walk.fresh(), g_recorder.depth, caller_, &ring_->busy);
  if (found.count != 0) return walk.take(found.count, found.complete);
  if (walked.fresh != 0) return walk.take(walked.fresh, false);
  walk.fresh()[0] = caller_;
  return walk.take(1, false);
}

void CallScope::need_stack() noexcept {
  if (!has_stack_ && g_recorder.depth != 0) walk();
}

// The event that was just published made the walk the ring's current stack: the next one keeps it
// whole.
void CallScope::stack_written() noexcept {
  if (!fresh_is_new_) return;
  keep_ = static_cast<uint16_t>(keep_ + fresh_);
  fresh_ = 0;
  fresh_is_new_ = false;
}

// There was no room for it.
void CallScope::stack_lost() noexcept {
  count_lost_event();
  if (!fresh_is_new_) return;
  ring_->walk.forget();
  has_stack_ = fresh_is_new_ = false;
  keep_ = fresh_ = 0;
}

// ---- Events.

// The first word of an EventHead, put together in a register.
inline uint64_t CallScope::head_word(EventKind kind, uint64_t flags, size_t words) const noexcept {
  static_assert(offsetof(EventHead, kind) == 0 && offsetof(EventHead, flags) == 1 &&
                offsetof(EventHead, words) == 2 && offsetof(EventHead, fresh) == 4 &&
                offsetof(EventHead, keep) == 6 && offsetof(EventHead, tick) == 8);
  uint64_t stack = 0;
  if (has_stack_) {
    flags |= schema::kHasStack | (incomplete_ ? uint64_t{schema::kStackIncomplete} : 0);
    stack = uint64_t{fresh_} << 32 | uint64_t{keep_} << 48;
  }
  if (__builtin_expect(ring_->level != 0, 0)) flags |= schema::kNested;
  return static_cast<uint64_t>(kind) | flags << 8 | words << 16 | stack;
}

// Writes an event whose fixed part, behind the head, is `body` words that `fill` writes, followed
// by the optional words and the fresh frames. Straight into the ring: see CMakeLists.txt.
template <size_t kBody, class Fill>
inline __attribute__((always_inline)) void CallScope::put(EventKind kind, uint64_t flags,
                                                          uint64_t at_tick, size_t optional_words,
                                                          Fill fill) noexcept {
  constexpr size_t kHead = sizeof(EventHead) / 8;
  const size_t fresh = fresh_;
  const size_t words = kHead + kBody + optional_words + fresh;
  uint64_t* at = ring_->producer.reserve(words);
  if (at == nullptr) return stack_lost();
  at[0] = head_word(kind, flags, words);
  at[1] = at_tick;
  fill(at + kHead);
  copy_frames(at + words - fresh, ring_->walk.fresh(), fresh);
  ring_->producer.commit(words);
  stack_written();
}

// An event that is rare enough to be made as a whole first.
template <class Event>
void CallScope::write(Event& event, EventKind kind, uint8_t flags, uint64_t at_tick) noexcept {
  static_assert(sizeof(Event) % 8 == 0);
  constexpr size_t kBytes = sizeof(Event) - sizeof(EventHead);
  put<kBytes / 8>(kind, flags, at_tick, 0, [&event](uint64_t* body) {
    memcpy(body, reinterpret_cast<const std::byte*>(&event) + sizeof(EventHead), kBytes);
  });
}

template <class Event>
void CallScope::write_text(Event& event, EventKind kind, const Part* parts, size_t count,
                           size_t bytes) noexcept {
  static_assert(sizeof(Event) % 8 == 0);
  const size_t text_words = schema::text_words(bytes);
  const size_t words = sizeof(Event) / 8 + text_words + fresh_;
  uint64_t* at = ring_->producer.reserve(words);
  if (at == nullptr) return stack_lost();
  at[0] = head_word(kind, 0, words);
  at[1] = tick();
  constexpr size_t kHead = sizeof(EventHead);
  memcpy(at + kHead / 8, reinterpret_cast<const std::byte*>(&event) + kHead, sizeof(Event) - kHead);
  at += sizeof(Event) / 8;
  if (text_words != 0) at[text_words - 1] = 0;  // The padding.
  auto* text = reinterpret_cast<char*>(at);
  size_t left = bytes;
  for (size_t i = 0; i < count && left != 0; ++i) {
    const size_t size = parts[i].size < left ? parts[i].size : left;
    memcpy(text, parts[i].bytes, size);
    text += size;
    left -= size;
  }
  copy_frames(at + text_words, ring_->walk.fresh(), fresh_);
  ring_->producer.commit(words);
  stack_written();
}

void CallScope::on_allocation(const Allocation& allocation) noexcept {
  if (ring_ == nullptr) return count_lost_event();
  need_stack();
  flush();
  const uint64_t address = base::address_of(allocation.address);
  const uint64_t size = allocation.size;
  const bool has_usable = address != 0 && allocation.usable != schema::usable_by_rule(size);
  const bool has_alignment = allocation.alignment != 0;
  uint64_t flags = address == 0 ? uint64_t{schema::kFailed} : 0;
  if (has_usable) flags |= schema::kHasUsable;
  if (has_alignment) flags |= schema::kHasAlignment;
  const size_t optional = (has_usable ? 1 : 0) + (has_alignment ? 1 : 0);
  // A walk puts thousands of instructions between the allocator's loads and the stamp; without one,
  // a fence must.
  const uint64_t now = has_stack_ ? tick() : tick_now_fenced(g_recorder.clock);
  static_assert(offsetof(schema::AllocEvent, address) == 16 &&
                offsetof(schema::AllocEvent, size) == 24 && offsetof(schema::AllocEvent, id) == 32);
  put<3>(allocation.kind, flags, now, optional, [&](uint64_t* body) {
    body[0] = address;
    body[1] = size;
    body[2] = allocation.id;
    body += 3;
    if (__builtin_expect(has_usable, 0)) *body++ = allocation.usable;
    if (__builtin_expect(has_alignment, 0)) *body = allocation.alignment;
  });
}

void CallScope::put_release(EventKind kind, uint64_t flags, uint64_t address,
                            uint64_t ended_id) noexcept {
  static_assert(offsetof(schema::FreeEvent, address) == 16 &&
                offsetof(schema::FreeEvent, ended_id) == 24);
  put<2>(kind, flags, tick(), 0, [=](uint64_t* body) {
    body[0] = address;
    body[1] = ended_id;
  });
}

void CallScope::on_release(EventKind kind, const void* address, uint64_t ended_id) noexcept {
  if (ring_ == nullptr) return count_lost_event();
  if (g_recorder.free_stacks) need_stack();
  put_release(kind, 0, base::address_of(address), ended_id);
  announced_.kind = EventKind::kPad;
}

void CallScope::on_reallocation(const Reallocation& reallocation) noexcept {
  if (ring_ == nullptr) return count_lost_event();
  need_stack();
  flush();
  const uint64_t address = base::address_of(reallocation.address);
  const uint64_t size = reallocation.size;
  const bool has_usable = address != 0 && reallocation.usable != schema::usable_by_rule(size);
  const uint64_t flags = (reallocation.failed ? uint64_t{schema::kFailed} : 0) |
                         (has_usable ? uint64_t{schema::kHasUsable} : 0);
  const uint64_t now = has_stack_ ? tick() : tick_now_fenced(g_recorder.clock);
  uint64_t ended_tick = reallocation.ended_tick;
  if (ended_tick == 0 || ended_tick > now) ended_tick = now;
  static_assert(offsetof(schema::ReallocEvent, ended_tick) == 16 &&
                offsetof(schema::ReallocEvent, old_address) == 24 &&
                offsetof(schema::ReallocEvent, ended_id) == 32 &&
                offsetof(schema::ReallocEvent, address) == 40 &&
                offsetof(schema::ReallocEvent, size) == 48 &&
                offsetof(schema::ReallocEvent, id) == 56);
  put<6>(reallocation.kind, flags, now, has_usable ? 1 : 0, [&](uint64_t* body) {
    body[0] = ended_tick;
    body[1] = base::address_of(reallocation.old_address);
    body[2] = reallocation.failed ? 0 : reallocation.ended_id;
    body[3] = address;
    body[4] = size;
    body[5] = reallocation.id;
    if (__builtin_expect(has_usable, 0)) body[6] = reallocation.usable;
  });
}

void CallScope::on_syscall(schema::SyscallName name, schema::Origin origin, uint64_t entered,
                           uint64_t duration_ticks, const uint64_t (&args)[6],
                           int64_t result) noexcept {
  if (may_unmap(name)) note_unmapping();
  if (ring_ == nullptr) return count_lost_event();
  schema::SyscallEvent event{};
  event.duration_ticks = duration_ticks;
  event.name = name;
  event.origin = origin;
  event.result = result;
  memcpy(event.args, args, sizeof(event.args));
  write(event, EventKind::kSyscall, failed_flag(result < 0), entered);
}

void CallScope::on_text(EventKind kind, const char* text, bool with_stack) noexcept {
  if (ring_ == nullptr) return count_lost_event();
  if (with_stack) need_stack();
  const size_t length = strnlen(text, schema::kTextBytesMax);
  schema::TextEvent event{};
  event.text_bytes = length;
  const Part part = {text, length};
  write_text(event, kind, &part, 1, length);
}

void CallScope::on_module(schema::ModuleEvent event, EventKind kind, const char* path) noexcept {
  if (ring_ == nullptr) return count_lost_event();
  const size_t length = strnlen(path, schema::kTextBytesMax);
  event.text_bytes = static_cast<uint32_t>(length);
  const Part part = {path, length};
  write_text(event, kind, &part, 1, length);
}

void CallScope::on_exec(uint32_t pid, const char* path, const char* const* argv) noexcept {
  if (ring_ == nullptr) return count_lost_event();
  constexpr size_t kPartsMax = 64;  // Small: this may run on a vfork child's tiny stack.
  Part parts[kPartsMax];
  size_t count = 0;
  size_t bytes = 0;
  schema::ExecEvent event{};
  event.pid = pid;
  if (path != nullptr) {
    event.path_bytes = static_cast<uint32_t>(strnlen(path, kPathBytes));
    parts[count++] = {path, event.path_bytes};
    bytes = event.path_bytes;
    for (; argv != nullptr && *argv != nullptr && count < kPartsMax; ++argv) {
      const size_t size = strlen(*argv) + 1;
      if (bytes + size > schema::kTextBytesMax) break;  // Arguments are kept whole or not at all.
      parts[count++] = {*argv, size};
      bytes += size;
    }
  }
  event.text_bytes = bytes;
  write_text(event, path == nullptr ? EventKind::kExecFailed : EventKind::kExec, parts, count,
             bytes);
}

void CallScope::on_fatal(const char* message) noexcept {
  if (ring_ == nullptr) return count_lost_event();
  flush();
  need_stack();
  const Announced call = announced_;
  announced_.kind = EventKind::kPad;
  if (call.kind == EventKind::kRealloc || call.kind == EventKind::kReallocarray) {
    on_reallocation({call.kind, 0, call.block, 0, nullptr, call.size, 0, 0, true});
  } else if (call.kind != EventKind::kPad) {
    // Whatever it meant to end: nothing was ended.
    put_release(call.kind, schema::kFailed, base::address_of(call.block), 0);
  }
  on_text(EventKind::kNote, message, true);
}

void CallScope::on_plain(EventKind kind) noexcept {
  if (ring_ == nullptr) return count_lost_event();
  schema::PlainEvent event;
  write(event, kind, 0, tick());
}

// ---- What the allocator does meanwhile.

void CallScope::flush_pending() noexcept {
  need_stack();
  const uint32_t count = ring_->pending_count;
  for (uint32_t i = 0; i < count; ++i) {
    const PendingEvent& pending = ring_->pending[i];
    if (pending.kind == EventKind::kPolicy) {
      schema::PolicyEvent event{};
      event.policy = pending.cause;
      event.old_value = pending.args[0];
      event.new_value = pending.args[1];
      write(event, EventKind::kPolicy, 0, pending.tick);
      continue;
    }
    schema::SyscallEvent event{};
    event.duration_ticks = pending.duration_ticks;
    event.name = pending.name;
    event.origin = schema::Origin::kAllocator;
    event.cause = pending.cause;
    event.result = pending.result;
    memcpy(event.args, pending.args, sizeof(event.args));
    write(event, EventKind::kSyscall, failed_flag(pending.result < 0), pending.tick);
  }
  ring_->pending_count = 0;
}

namespace {

// The ring of the call that is under way on this thread.
ThreadRing* current_ring() {
  const unsigned level = t_local.level;
  ThreadRing* ring = t_local.ring;
  if (level == 0 || level > kLevels || ring == nullptr) return nullptr;
  if (level > 1) ring = ring->nested[level - 2];
  return ring != nullptr && ring->producer.attached() ? ring : nullptr;
}

// The list is full: the oldest entry is written without a stack, if there is room in the ring now.
// Waiting is not allowed here, under the allocator's locks.
void spill_oldest(ThreadRing* ring) {
  const PendingEvent& oldest = ring->pending[0];
  schema::SyscallEvent syscall{};
  schema::PolicyEvent policy{};
  const bool is_policy = oldest.kind == EventKind::kPolicy;
  const size_t words = (is_policy ? sizeof(policy) : sizeof(syscall)) / 8;
  uint64_t* at = ring->producer.reserve(words, false);
  if (at == nullptr) {
    count_lost_event();
  } else {
    uint8_t flags = failed_flag(!is_policy && oldest.result < 0);
    if (ring->level != 0) flags |= schema::kNested;
    const EventHead head = {oldest.kind, flags, static_cast<uint16_t>(words), 0, 0, oldest.tick};
    syscall.head = head;
    syscall.duration_ticks = oldest.duration_ticks;
    syscall.name = oldest.name;
    syscall.origin = schema::Origin::kAllocator;
    syscall.cause = oldest.cause;
    syscall.result = oldest.result;
    memcpy(syscall.args, oldest.args, sizeof(syscall.args));
    policy = {head, oldest.cause, oldest.args[0], oldest.args[1]};
    if (is_policy) {
      memcpy(at, &policy, sizeof(policy));
    } else {
      memcpy(at, &syscall, sizeof(syscall));
    }
    ring->producer.commit(words);
  }
  memmove(&ring->pending[0], &ring->pending[1], (kPendingMax - 1) * sizeof(PendingEvent));
  ring->pending_count = kPendingMax - 1;
}

PendingEvent* next_pending() {
  ThreadRing* ring = current_ring();
  if (ring == nullptr) {
    count_lost_event();
    return nullptr;
  }
  if (ring->pending_count == kPendingMax) spill_oldest(ring);
  return &ring->pending[ring->pending_count++];
}

}  // namespace

void note_os_call(schema::SyscallName name, uint8_t cause, uint64_t entered,
                  const uint64_t (&args)[6], int64_t result) noexcept {
  if (!is_recording()) return;
  if (may_unmap(name)) note_unmapping();
  PendingEvent* pending = next_pending();
  if (pending == nullptr) return;
  *pending = {EventKind::kSyscall, name, cause, entered, tick() - entered, result, {}};
  memcpy(pending->args, args, sizeof(args));
}

void note_policy(uint8_t policy, uint64_t old_value, uint64_t new_value) noexcept {
  if (!is_recording()) return;
  PendingEvent* pending = next_pending();
  if (pending == nullptr) return;
  *pending = {EventKind::kPolicy, {}, policy, tick(), 0, 0, {old_value, new_value}};
}

void note_fatal(const char* message) noexcept {
  ThreadRing* ring = is_recording() ? current_ring() : nullptr;
  if (ring == nullptr) return;
  ring->scope->on_fatal(message);
}

}  // namespace heapledger::trace
