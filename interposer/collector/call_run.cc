// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/call_run.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace heapledger::collector {
namespace {

using schema::EventHead;
using schema::EventKind;

uint64_t word_at(const std::byte* at) {
  uint64_t word;
  std::memcpy(&word, at, sizeof word);
  return word;
}

// 1 where `kind` is `first` or a later one, else 0: a carry, which no compiler makes a branch of.
unsigned is_from(EventKind first, EventKind kind) {
  return (static_cast<unsigned>(kind) + (256 - static_cast<unsigned>(first))) >> 8;
}

}  // namespace

size_t CallRun::read(std::span<const std::byte> bytes, Times& times, uint32_t thread) {
  constexpr size_t kAhead = 1024;  // Bytes that are on their way from memory.
  constexpr uint8_t kRare = schema::kHasUsable | schema::kHasAlignment | schema::kFailed;
  Times now = times;  // A copy that nothing written here may lie in.
  schema::CallChunk& c = calls_;
  using Filler = schema::CallChunk::List::Filler;
  Filler takes(c.takes), ends(c.ends), rare(c.rare);
  size_t count = 0;
  size_t stacks = 0;
  bool rises = true;
  int64_t last_ns = INT64_MIN;
  const std::byte* at = bytes.data();
  const std::byte* const end = at + bytes.size();
  // The longest fixed part is looked at whole, whatever the kind: allocations and releases
  // alternate at random, and a column may have anything at rows that are on no list.
  for (; count < kRowsMax && static_cast<size_t>(end - at) >= sizeof(schema::ReallocEvent);
       ++count) {
    __builtin_prefetch(at + kAhead);
    EventHead head;
    std::memcpy(&head, at, sizeof head);
    const size_t length = size_t{head.words} * 8;
    if (length > static_cast<size_t>(end - at) || !schema::is_call(head.kind)) break;
    const int64_t time_ns = now.clock.to_ns(head.tick) - now.origin_raw_ns;
    if (time_ns < 0 || time_ns > now.last_ns) break;
    const unsigned frees = is_from(EventKind::kFree, head.kind);
    const unsigned reallocs = is_from(EventKind::kRealloc, head.kind);
    const uint64_t address = word_at(at + 16);
    const uint64_t second = word_at(at + 24);
    const uint64_t third = word_at(at + 32);
    std::memcpy(&c.kind[count], at, sizeof c.kind[count]);
    c.time_ns[count] = time_ns;
    c.address[count] = address;
    c.size[count] = second;
    c.ended_id[count] = second;
    c.id[count] = third;
    static_assert(sizeof(schema::AllocEvent) == sizeof(schema::FreeEvent) + 8);
    size_t fixed = sizeof(schema::AllocEvent) - 8 * frees;
    const bool is_rare = (reallocs != 0) | ((head.flags & kRare) != 0) | (address == 0) |
                         (address % 16 != 0) | ((third == 0) & (frees == 0));
    if (is_rare) fixed = take_rare(head, at, count, now);
    const unsigned has_stack = head.flags & schema::kHasStack;
    if (fixed + head.fresh * size_t{8} * has_stack > length) break;
    StackDelta& stack = stacks_[stacks];
    stack.fresh = at + fixed;
    std::memcpy(&stack.frames, at + offsetof(EventHead, fresh), sizeof stack.frames);
    stack.row = static_cast<uint16_t>(count);
    stack.incomplete = (head.flags & schema::kStackIncomplete) != 0;
    stacks += has_stack;
    takes.add_if(count, (frees == 0) | (reallocs != 0));
    ends.add_if(count, frees != 0);
    rare.add_if(count, is_rare);
    rises &= time_ns > last_ns;
    last_ns = time_ns;
    at += length;
  }
  times.clock = now.clock;
  c.count = count;
  c.thread = thread;
  c.rises = rises;
  stacked_ = stacks;
  return static_cast<size_t>(at - bytes.data());
}

// What is no plain allocation or release of a block. Returns the bytes of the fixed part with the
// optional words.
size_t CallRun::take_rare(const EventHead& head, const std::byte* at, size_t row, Times& times) {
  schema::CallChunk& c = calls_;
  const bool frees = head.kind >= EventKind::kFree && head.kind < EventKind::kRealloc;
  size_t fixed = frees ? sizeof(schema::FreeEvent) : sizeof(schema::AllocEvent);
  c.ended_ns[row] = c.time_ns[row];
  c.old_address[row] = 0;
  c.alignment[row] = 0;
  if (frees) c.size[row] = 0;
  if (head.kind >= EventKind::kRealloc) {
    schema::ReallocEvent event;
    std::memcpy(&event, at, sizeof event);
    const int64_t ended_ns = times.clock.to_ns(event.ended_tick) - times.origin_raw_ns;
    c.ended_ns[row] = std::min(c.time_ns[row], ended_ns);
    c.old_address[row] = event.old_address;
    c.address[row] = event.address;
    c.size[row] = event.size;
    c.id[row] = event.id;
    c.ended_id[row] = event.ended_id;
    fixed = sizeof event;
  }
  const bool began = !frees && c.address[row] != 0 && (head.flags & schema::kFailed) == 0;
  c.usable[row] = began ? schema::usable_by_rule(c.size[row]) : 0;
  for (const uint8_t flag : {schema::kHasUsable, schema::kHasAlignment}) {
    if ((head.flags & flag) == 0) continue;
    if (fixed + 8 > size_t{head.words} * 8) return SIZE_MAX / 2;  // Longer than the event.
    const uint64_t word = word_at(at + fixed);
    fixed += 8;
    if (flag == schema::kHasAlignment && !frees) c.alignment[row] = word;
    if (flag == schema::kHasUsable && began) c.usable[row] = word;
  }
  return fixed;
}

void CallRun::find_stacks(StackCursor& cursor, CallTree& tree, AddressSpace& space) {
  const auto key_of = [&](uint64_t pc, size_t row) { return space.key(pc, calls_.time_ns[row]); };
  schema::CallChunk::List::Filler stacked(calls_.stacked);
  incomplete_ = 0;
  const auto put = [&](const StackDelta& delta, uint32_t node) {
    calls_.stack[delta.row] = node;
    stacked.add_if(delta.row, node != 0);
    incomplete_ += delta.incomplete ? 1 : 0;
  };
  for (size_t done = 0; done < stacked_;) {
    const std::span<const StackDelta> rest(&stacks_[done], stacked_ - done);
    const size_t planned = cursor.plan(tree, rest, key_of, plan_, nodes_.data());
    cursor.resolve(tree, plan_);
    for (size_t i = 0; i < planned; ++i) put(rest[i], plan_.node(nodes_[i]));
    done += planned;
    if (planned == rest.size()) break;
    const StackDelta& delta = stacks_[done++];
    uint32_t node = 0;
    cursor.apply(
        tree, delta.frames.keep, delta.frames.fresh, delta.incomplete,
        [&](uint32_t index) { return key_of(delta.pc(index), delta.row); }, node);
    put(delta, node);
  }
}

}  // namespace heapledger::collector
