// SPDX-License-Identifier: Apache-2.0
#include "schema/call_chunk.h"

namespace heapledger::schema {

void CallChunk::assign(std::span<const CallRow> rows) {
  List::Filler into_takes(takes), into_ends(ends), into_stacked(stacked), into_rare(rare);
  count = rows.size();
  thread = rows.empty() ? 0 : rows.front().thread;
  rises = true;
  for (size_t i = 0; i < count; ++i) {
    const CallRow& row = rows[i];
    rises &= i == 0 || row.time_ns > rows[i - 1].time_ns;
    time_ns[i] = row.time_ns;
    kind[i] = kind_of(row.kind, row.flags);
    address[i] = row.address;
    id[i] = row.id;
    ended_id[i] = row.ended_id;
    size[i] = row.size;
    stack[i] = row.stack;
    usable[i] = row.usable;
    alignment[i] = row.alignment;
    old_address[i] = row.old_address;
    ended_ns[i] = row.ended_ns;
    into_takes.add_if(i, (row.id != 0) | (row.size != 0));
    into_ends.add_if(i, row.ended_id != 0);
    into_stacked.add_if(i, row.stack != 0);
    const uint64_t expected = row.id != 0 ? usable_by_rule(row.size) : 0;
    const bool odd = (row.address == 0) | (row.address % 16 != 0) | (row.usable != expected) |
                     (row.id == 0 && row.size != 0);
    const bool more = (row.alignment != 0) | (row.old_address != 0) | (row.ended_ns != row.time_ns);
    into_rare.add_if(i, odd | more);
  }
}

void CallChunk::copy_to(std::span<CallRow> rows) const {
  for (size_t i = 0; i < count; ++i) {
    CallRow& row = rows[i];
    row = {};
    row.time_ns = row.ended_ns = time_ns[i];
    row.thread = thread;
    row.kind = kind_at(i);
    row.flags = flags_at(i);
    row.address = address[i];
  }
  for (const size_t i : takes) {
    rows[i].size = size[i];
    rows[i].id = id[i];
    if (id[i] != 0) rows[i].usable = usable_by_rule(size[i]);
  }
  for (const size_t i : ends) rows[i].ended_id = ended_id[i];
  for (const size_t i : stacked) rows[i].stack = stack[i];
  for (const size_t i : rare) {
    rows[i].usable = usable[i];
    rows[i].alignment = alignment[i];
    rows[i].old_address = old_address[i];
    rows[i].ended_ns = ended_ns[i];
  }
}

}  // namespace heapledger::schema
