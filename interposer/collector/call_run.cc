// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/call_run.h"

#include <algorithm>
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

}  // namespace

// What an event says; the fields that its kind does not have are 0.
struct CallRun::Fields {
  uint64_t address;
  uint64_t size;
  uint64_t id;
  uint64_t ended_id;
};

size_t CallRun::read(std::span<const std::byte> bytes, Times& times, uint32_t thread) {
  constexpr size_t kAhead = 1024;  // Bytes that are on their way from memory.
  constexpr uint8_t kRare = schema::kHasUsable | schema::kHasAlignment | schema::kFailed;
  Times now = times;  // A copy that nothing written here may lie in.
  schema::CallChunk& c = calls_;
  using Filler = schema::CallChunk::List::Filler;
  Filler begins(c.begins), ends(c.ends), sized(c.sized), stacked(c.stacked), rare(c.rare);
  size_t count = 0;
  size_t stacks = 0;
  size_t incomplete = 0;
  bool rises = true;
  int64_t last_ns = INT64_MIN;
  const std::byte* at = bytes.data();
  const std::byte* const end = at + bytes.size();
  // The longest fixed part is looked at whole, whatever the kind. Allocations and releases
  // alternate at random: what tells them apart is no branch.
  for (; count < kRowsMax && static_cast<size_t>(end - at) >= sizeof(schema::ReallocEvent);
       ++count) {
    __builtin_prefetch(at + kAhead);
    EventHead head;
    std::memcpy(&head, at, sizeof head);
    const size_t length = size_t{head.words} * 8;
    if (length > static_cast<size_t>(end - at) || !schema::is_call(head.kind)) break;
    const int64_t time_ns = now.clock.to_ns(head.tick) - now.origin_raw_ns;
    if (time_ns < 0 || time_ns > now.last_ns) break;
    const bool frees = head.kind >= EventKind::kFree;
    Fields fields{word_at(at + 16), word_at(at + 24), word_at(at + 32), 0};
    fields.ended_id = frees ? fields.size : 0;
    fields.size = frees ? 0 : fields.size;
    fields.id = frees ? 0 : fields.id;
    size_t fixed = frees ? sizeof(schema::FreeEvent) : sizeof(schema::AllocEvent);
    const bool is_rare = (head.kind >= EventKind::kRealloc) | ((head.flags & kRare) != 0) |
                         (fields.address == 0) | (fields.address % 16 != 0) |
                         (!frees & (fields.id == 0));
    c.time_ns[count] = time_ns;
    if (is_rare) fixed = take_rare(head, at, count, now, fields);
    const bool has_stack = (head.flags & schema::kHasStack) != 0;
    if (fixed + (has_stack ? size_t{head.fresh} * 8 : 0) > length) break;
    c.kind[count] = schema::CallChunk::kind_of(head.kind, head.flags);
    c.address[count] = fields.address;
    c.size[count] = fields.size;
    c.id[count] = fields.id;
    c.ended_id[count] = fields.ended_id;
    begins.add_if(count, fields.id != 0);
    ends.add_if(count, fields.ended_id != 0);
    sized.add_if(count, fields.size != 0);
    stacked.add_if(count, has_stack);
    rare.add_if(count, is_rare);
    const bool cut = (head.flags & schema::kStackIncomplete) != 0;
    stacks_[stacks] = {at + fixed, head.fresh, head.keep, static_cast<uint16_t>(count), cut};
    stacks += has_stack ? 1 : 0;
    incomplete += has_stack && cut ? 1 : 0;
    rises &= time_ns > last_ns;
    last_ns = time_ns;
    at += length;
  }
  times.clock = now.clock;
  c.count = count;
  c.thread = thread;
  c.rises = rises;
  stacked_ = stacks;
  incomplete_ = incomplete;
  return static_cast<size_t>(at - bytes.data());
}

// What is no plain allocation or release of a block. Returns the bytes of the fixed part with the
// optional words.
size_t CallRun::take_rare(const EventHead& head, const std::byte* at, size_t row, Times& times,
                          Fields& fields) {
  schema::CallChunk& c = calls_;
  const bool frees = head.kind >= EventKind::kFree && head.kind < EventKind::kRealloc;
  size_t fixed = frees ? sizeof(schema::FreeEvent) : sizeof(schema::AllocEvent);
  c.ended_ns[row] = c.time_ns[row];
  c.old_address[row] = 0;
  c.alignment[row] = 0;
  if (head.kind >= EventKind::kRealloc) {
    schema::ReallocEvent event;
    std::memcpy(&event, at, sizeof event);
    const int64_t ended_ns = times.clock.to_ns(event.ended_tick) - times.origin_raw_ns;
    c.ended_ns[row] = std::min(c.time_ns[row], ended_ns);
    c.old_address[row] = event.old_address;
    fields = {event.address, event.size, event.id, event.ended_id};
    fixed = sizeof event;
  }
  const bool began = !frees && fields.address != 0 && (head.flags & schema::kFailed) == 0;
  c.usable[row] = began ? schema::usable_by_rule(fields.size) : 0;
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
  const auto key_of = [&](const StackDelta& delta, uint32_t index) {
    return space.key(delta.pc(index), calls_.time_ns[delta.row]);
  };
  for (size_t done = 0; done < stacked_;) {
    const std::span<const StackDelta> rest(&stacks_[done], stacked_ - done);
    const size_t planned = cursor.plan(tree, rest, key_of, plan_, &nodes_[done]);
    cursor.resolve(tree, plan_);
    for (size_t i = 0; i < planned; ++i) {
      calls_.stack[rest[i].row] = plan_.node(nodes_[done + i]);
    }
    done += planned;
    if (done == stacked_) break;
    const StackDelta& delta = stacks_[done++];
    cursor.apply(
        tree, delta.keep, delta.fresh_count, delta.incomplete,
        [&](uint32_t index) { return key_of(delta, index); }, calls_.stack[delta.row]);
  }
}

}  // namespace heapledger::collector
