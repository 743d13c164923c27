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
  count_ = 0;
  incomplete_ = 0;
  size_t position = 0;
  // The longest fixed part is looked at whole, whatever the kind.
  while (count_ < kRowsMax && position + sizeof(schema::ReallocEvent) <= bytes.size()) {
    const std::byte* at = bytes.data() + position;
    uint16_t words;
    std::memcpy(&words, at + offsetof(EventHead, words), sizeof words);
    const size_t length = size_t{words} * 8;
    if (length > bytes.size() - position || !take(at, length, times, thread)) break;
    position += length;
    ++count_;
  }
  return position;
}

bool CallRun::take(const std::byte* at, size_t bytes, Times& times, uint32_t thread) {
  EventHead head;
  std::memcpy(&head, at, sizeof head);
  if (!schema::is_call(head.kind)) return false;
  const bool frees = head.kind >= EventKind::kFree && head.kind < EventKind::kRealloc;
  const bool reallocates = head.kind >= EventKind::kRealloc;
  size_t fixed = frees ? sizeof(schema::FreeEvent) : sizeof(schema::AllocEvent);
  const uint64_t first = word_at(at + 16);
  const uint64_t second = word_at(at + 24);
  const uint64_t third = word_at(at + 32);
  schema::CallRow& row = rows_[count_];
  row.time_ns = times.clock.to_ns(head.tick) - times.origin_raw_ns;
  if (row.time_ns < 0 || row.time_ns > times.last_ns) return false;
  row.ended_ns = row.time_ns;
  row.thread = thread;
  row.kind = head.kind;
  row.flags = head.flags & schema::kStoredFlags;
  row.address = first;
  row.size = frees ? 0 : second;
  row.ended_id = frees ? second : 0;
  row.id = frees ? 0 : third;
  row.old_address = 0;
  row.alignment = 0;
  if (reallocates) {
    schema::ReallocEvent event;
    std::memcpy(&event, at, sizeof event);
    fixed = sizeof event;
    const int64_t ended_ns = times.clock.to_ns(event.ended_tick) - times.origin_raw_ns;
    row.ended_ns = std::min(row.time_ns, ended_ns);
    row.old_address = event.old_address;
    row.ended_id = event.ended_id;
    row.address = event.address;
    row.size = event.size;
    row.id = event.id;
  }
  const bool began = !frees && row.address != 0 && (head.flags & schema::kFailed) == 0;
  row.usable = began ? schema::usable_by_rule(row.size) : 0;
  if ((head.flags & (schema::kHasUsable | schema::kHasAlignment)) != 0) {
    for (const uint8_t flag : {schema::kHasUsable, schema::kHasAlignment}) {
      if ((head.flags & flag) == 0) continue;
      if (fixed + 8 > bytes) return false;
      const uint64_t word = word_at(at + fixed);
      fixed += 8;
      if (flag == schema::kHasAlignment) row.alignment = word;
      if (flag == schema::kHasUsable && began) row.usable = word;
    }
    if (frees) row.alignment = 0;
  }
  const bool has_stack = (head.flags & schema::kHasStack) != 0;
  const size_t frames = has_stack ? head.fresh : 0;
  stacks_[count_] = {at + fixed, static_cast<uint16_t>(frames), head.keep, head.flags};
  return fixed + frames * 8 <= bytes;
}

void CallRun::find_stacks(StackCursor& cursor, CallTree& tree, AddressSpace& space) {
  size_t resolved = 0;  // Rows before this have their stacks.
  const auto resolve_until = [&](size_t until) {
    cursor.resolve(tree, plan_);
    for (; resolved < until; ++resolved) rows_[resolved].stack = plan_.node(nodes_[resolved]);
  };
  for (size_t i = 0; i < count_; ++i) {
    const Stack& stack = stacks_[i];
    nodes_[i] = 0;
    if ((stack.flags & schema::kHasStack) == 0) continue;
    const bool incomplete = (stack.flags & schema::kStackIncomplete) != 0;
    incomplete_ += incomplete ? 1 : 0;
    const auto key_at = [&](size_t index) {
      return space.key(word_at(stack.fresh + index * 8), rows_[i].time_ns);
    };
    if (!cursor.plan(tree, stack.keep, stack.fresh_count, incomplete, key_at, plan_, nodes_[i])) {
      resolve_until(i);
      cursor.apply(tree, stack.keep, stack.fresh_count, incomplete, key_at, nodes_[i]);
      resolve_until(i + 1);
    }
  }
  resolve_until(count_);
}

}  // namespace heapledger::collector
