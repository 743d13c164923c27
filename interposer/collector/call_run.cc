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

size_t CallRun::read(std::span<const std::byte> bytes, Times& times, uint32_t thread) {
  constexpr size_t kAhead = 1024;  // Bytes that are on their way from memory.
  Times now = times;               // A copy that nothing written here may lie in.
  incomplete_ = 0;
  stacked_ = 0;
  size_t count = 0;
  const std::byte* at = bytes.data();
  const std::byte* const end = at + bytes.size();
  // The longest fixed part is looked at whole, whatever the kind.
  for (; count < kRowsMax && static_cast<size_t>(end - at) >= sizeof(schema::ReallocEvent);
       ++count) {
    __builtin_prefetch(at + kAhead);
    EventHead head;
    std::memcpy(&head, at, sizeof head);
    const size_t length = size_t{head.words} * 8;
    if (length > static_cast<size_t>(end - at) || !schema::is_call(head.kind)) break;
    schema::CallRow& row = rows_[count];
    row.time_ns = now.clock.to_ns(head.tick) - now.origin_raw_ns;
    if (row.time_ns < 0 || row.time_ns > now.last_ns) break;
    row.thread = thread;
    size_t fixed = take_plain(head, at, row);
    constexpr uint8_t kMore = schema::kHasUsable | schema::kHasAlignment;
    if (head.kind >= EventKind::kRealloc) fixed = take_realloc(head, at, now, row);
    if ((head.flags & kMore) != 0) fixed = take_more(head, at, fixed, row);
    const bool has_stack = (head.flags & schema::kHasStack) != 0;
    const size_t frames = has_stack ? head.fresh : 0;
    if (fixed + frames * 8 > length) break;
    stacks_[stacked_] = {at + fixed, head.fresh, head.keep, static_cast<uint16_t>(count),
                         (head.flags & schema::kStackIncomplete) != 0};
    stacked_ += has_stack ? 1 : 0;
    at += length;
  }
  times.clock = now.clock;
  count_ = count;
  return static_cast<size_t>(at - bytes.data());
}

// Allocations and releases, which alternate at random: nothing here is a branch. Returns the bytes
// of the fixed part.
size_t CallRun::take_plain(const EventHead& head, const std::byte* at, schema::CallRow& row) {
  const bool frees = head.kind >= EventKind::kFree;
  const uint64_t second = word_at(at + 24);
  const uint64_t third = word_at(at + 32);
  row.ended_ns = row.time_ns;
  row.kind = head.kind;
  row.flags = head.flags & schema::kStoredFlags;
  row.address = word_at(at + 16);
  row.size = frees ? 0 : second;
  row.ended_id = frees ? second : 0;
  row.id = frees ? 0 : third;
  row.old_address = 0;
  row.alignment = 0;
  row.stack = 0;
  const bool began = !frees && row.address != 0 && (head.flags & schema::kFailed) == 0;
  row.usable = began ? schema::usable_by_rule(second) : 0;
  return frees ? sizeof(schema::FreeEvent) : sizeof(schema::AllocEvent);
}

size_t CallRun::take_realloc(const EventHead& head, const std::byte* at, Times& times,
                             schema::CallRow& row) {
  schema::ReallocEvent event;
  std::memcpy(&event, at, sizeof event);
  const int64_t ended_ns = times.clock.to_ns(event.ended_tick) - times.origin_raw_ns;
  row.ended_ns = std::min(row.time_ns, ended_ns);
  row.old_address = event.old_address;
  row.ended_id = event.ended_id;
  row.address = event.address;
  row.size = event.size;
  row.id = event.id;
  const bool began = row.address != 0 && (head.flags & schema::kFailed) == 0;
  row.usable = began ? schema::usable_by_rule(row.size) : 0;
  return sizeof event;
}

// The optional words; returns where they end.
size_t CallRun::take_more(const EventHead& head, const std::byte* at, size_t fixed,
                          schema::CallRow& row) {
  const bool frees = head.kind >= EventKind::kFree && head.kind < EventKind::kRealloc;
  const bool began = !frees && row.address != 0 && (head.flags & schema::kFailed) == 0;
  for (const uint8_t flag : {schema::kHasUsable, schema::kHasAlignment}) {
    if ((head.flags & flag) == 0) continue;
    if (fixed + 8 > size_t{head.words} * 8) return SIZE_MAX / 2;  // Longer than the event.
    const uint64_t word = word_at(at + fixed);
    fixed += 8;
    if (flag == schema::kHasAlignment && !frees) row.alignment = word;
    if (flag == schema::kHasUsable && began) row.usable = word;
  }
  return fixed;
}

void CallRun::find_stacks(StackCursor& cursor, CallTree& tree, AddressSpace& space) {
  size_t resolved = 0;  // Stacks before this one are known.
  const auto resolve_until = [&](size_t until) {
    cursor.resolve(tree, plan_);
    for (; resolved < until; ++resolved) {
      rows_[stacks_[resolved].row].stack = plan_.node(nodes_[resolved]);
    }
  };
  for (size_t i = 0; i < stacked_; ++i) {
    const Stack& stack = stacks_[i];
    const int64_t time_ns = rows_[stack.row].time_ns;
    incomplete_ += stack.incomplete ? 1 : 0;
    const auto key_at = [&](size_t index) {
      return space.key(word_at(stack.fresh + index * 8), time_ns);
    };
    if (!cursor.plan(tree, stack.keep, stack.fresh_count, stack.incomplete, key_at, plan_,
                     nodes_[i])) {
      resolve_until(i);
      cursor.apply(tree, stack.keep, stack.fresh_count, stack.incomplete, key_at, nodes_[i]);
      resolve_until(i + 1);
    }
  }
  resolve_until(stacked_);
}

}  // namespace heapledger::collector
