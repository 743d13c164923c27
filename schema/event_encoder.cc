// SPDX-License-Identifier: Apache-2.0
// The writing half of schema/event_batch.h.
#include <algorithm>
#include <string>

#include "schema/dictionary.h"
#include "schema/error.h"
#include "schema/event_batch.h"
#include "schema/event_batch_format.h"
#include "schema/packed_columns.h"
#include "schema/time_column.h"

namespace heapledger::schema {
namespace {

constexpr size_t kAhead = 16;  // Rows whose look-ups are on their way from memory.

// What predicts a thread's next row.
struct ThreadState {
  uint64_t id = 0;
  uint64_t address = 0;
};

}  // namespace

struct CallEncoder::State {
  PackedWriter packed;
  VarintWriter out[kCallSections];
  TimeColumnWriter times;
  Dictionary shapes, threads;
  StackNumbers stacks;
  IdRows row_of_id;
  std::vector<uint64_t> addresses;  // By row, of those that began a block.
  std::vector<ThreadState> thread_states;
  std::vector<uint32_t> thread_of_row, shape_of_row;
  std::vector<uint32_t> stack_of_row;  // Of the rows that have one.
  std::vector<uint32_t> stack_counts;
  std::vector<uint64_t> stack_order;
  uint64_t last_ended_id = 0;

  SplitWriter split(CallSection first, CallSection rest) { return {out[first], out[rest]}; }
  void start(size_t rows);
  uint32_t encode_row(const CallRow& row, size_t index, ThreadState& thread);
  uint32_t encode_ended(const CallRow& row, size_t index, uint64_t& reference);
  uint32_t encode_addresses(const CallRow& row, uint64_t reference, ThreadState& thread);
  void write_stacks();
  void write_threads();
};

void CallEncoder::State::start(size_t rows) {
  // Stacks are put twice: once distinct, once per row.
  for (VarintWriter& writer : out) writer.start(2 * rows + 1);
  times.start(rows);
  shapes.start(rows);
  threads.start(rows);
  stacks.start();
  row_of_id.start(rows);
  addresses.resize(rows);
  thread_states.clear();
  thread_of_row.resize(rows);
  shape_of_row.resize(rows);
  stack_of_row.clear();
  stack_counts.clear();
  last_ended_id = 0;
}

// `reference`: the address of the block that is ended, where it began in this batch; else 0.
uint32_t CallEncoder::State::encode_ended(const CallRow& row, size_t index, uint64_t& reference) {
  reference = 0;
  if (row.ended_id == 0) return kEndedNone;
  if (const uint32_t began = row_of_id.find(row.ended_id); began != IdRows::kNone) {
    reference = addresses[began];
    split(kSectionReference, kSectionReferenceRest).put(index - began);
    return kEndedReference;
  }
  out[kSectionEndedId].put(zigzag(row.ended_id - last_ended_id));
  last_ended_id = row.ended_id;
  return kEndedStored;
}

uint32_t CallEncoder::State::encode_addresses(const CallRow& row, uint64_t reference,
                                              ThreadState& thread) {
  uint32_t sources = 0;
  if (row.old_address != 0) {
    if (reference == row.old_address) {
      sources |= kOldReference;
    } else {
      sources |= kOldStored;
      out[kSectionOldAddress].put(zigzag(row.old_address - thread.address));
    }
    thread.address = row.old_address;
  }
  if (row.address != 0) {
    if (reference == row.address) {
      sources |= kAddressReference;
    } else if (row.address == row.old_address) {
      sources |= kAddressOld;
    } else if (row.address % 16 == 0) {
      sources |= kAddressStored;
      const uint64_t difference = row.address - (thread.address & ~uint64_t{15});
      const auto units = static_cast<int64_t>(difference) >> 4;
      out[kSectionAddress].put(zigzag(static_cast<uint64_t>(units)));
    } else {
      sources |= kAddressStored | kAddressFine;
      out[kSectionAddress].put(zigzag(row.address - thread.address));
    }
    thread.address = row.address;
  }
  return sources;
}

// Writes what the row's shape does not say, and returns the sources part of that shape.
uint32_t CallEncoder::State::encode_row(const CallRow& row, size_t index, ThreadState& thread) {
  uint64_t reference;
  uint32_t sources = encode_ended(row, index, reference);
  sources |= encode_addresses(row, reference, thread);
  if (row.id != 0) {
    if (row.id == thread.id + 1) {
      sources |= kIdNext;
    } else {
      sources |= kIdStored;
      out[kSectionId].put(zigzag(row.id - thread.id));
    }
    thread.id = row.id;
    row_of_id.put(row.id, static_cast<uint32_t>(index));
    addresses[index] = row.address;
  }
  if (row.size != 0) {
    sources |= kHasSize;
    out[kSectionSize].put(row.size);
  }
  if (row.usable != 0) {
    if (row.usable == usable_by_rule(row.size)) {
      sources |= kUsableByRule;
    } else {
      sources |= kUsableStored;
      out[kSectionUsable].put(row.usable);
    }
  }
  if (row.alignment != 0) {
    sources |= kHasAlignmentValue;
    out[kSectionAlignment].put(row.alignment);
  }
  if (row.ended_ns != row.time_ns) {
    sources |= kEndedEarlier;
    out[kSectionEndedTime].put(
        zigzag(static_cast<uint64_t>(row.time_ns) - static_cast<uint64_t>(row.ended_ns)));
  }
  if (row.stack != 0) {
    sources |= kHasStackValue;
    const uint32_t number = stacks.number(row.stack);
    if (number == stack_counts.size()) stack_counts.push_back(0);
    ++stack_counts[number];
    stack_of_row.push_back(number);
  }
  return sources;
}

// The stacks that are used most come first, so that they have indices of one byte; the others
// follow in ascending order, so that they are small differences.
void CallEncoder::State::write_stacks() {
  constexpr size_t kOneByte = 128;
  const std::vector<uint32_t>& values_used = stacks.values();
  // As one number each: how seldom, then the value.
  std::vector<uint64_t>& order = stack_order;
  order.resize(values_used.size());
  for (uint32_t i = 0; i < order.size(); ++i) {
    order[i] = uint64_t{UINT32_MAX - stack_counts[i]} << 32 | values_used[i];
  }
  const auto middle = order.begin() + static_cast<ptrdiff_t>(std::min(kOneByte, order.size()));
  std::nth_element(order.begin(), middle, order.end());
  std::sort(order.begin(), middle);
  for (auto rest = middle; rest != order.end(); ++rest) *rest &= UINT32_MAX;
  std::sort(middle, order.end());

  VarintWriter& values = out[kSectionStackValues];
  values.put(order.size());
  std::vector<uint32_t>& place = stack_counts;  // Not needed as counts any more.
  uint64_t last = 0;
  for (uint32_t i = 0; i < order.size(); ++i) {
    const uint64_t value = order[i] & UINT32_MAX;
    values.put(zigzag(value - last));
    last = value;
    place[stacks.number(static_cast<uint32_t>(value))] = i;
  }
  SplitWriter indices = split(kSectionStack, kSectionStackRest);
  for (const uint32_t number : stack_of_row) indices.put(place[number]);
}

void CallEncoder::State::write_threads() {
  VarintWriter& writer = out[kSectionThread];
  writer.put(threads.values.size());
  for (const uint64_t thread : threads.values) writer.put(thread);
  if (threads.values.size() < 2) return;
  for (const uint32_t number : thread_of_row) writer.put(number);
}

CallEncoder::CallEncoder() : state_(std::make_unique<State>()) {}
CallEncoder::~CallEncoder() = default;

std::span<const uint8_t> CallEncoder::encode(std::span<const CallRow> rows) {
  State& state = *state_;
  if (rows.size() > kBatchEventsMax) {
    throw Error("cannot encode a batch", std::to_string(rows.size()) + " events are too many");
  }
  state.start(rows.size());
  int64_t last_time = rows.empty() ? 0 : rows.front().time_ns;
  for (size_t i = 0; i < rows.size(); ++i) {
    const CallRow& row = rows[i];
    if (i + kAhead < rows.size()) {
      state.row_of_id.prefetch(rows[i + kAhead].ended_id);
      state.stacks.prefetch(rows[i + kAhead].stack);
    }
    if (row.time_ns < last_time) throw Error("cannot encode a batch", "events are out of order");
    if (!is_call(row.kind)) throw Error("cannot encode a batch", "an event is no call");
    last_time = row.time_ns;
    state.times.put(row.time_ns);
    const uint32_t thread = state.threads.number(row.thread);
    if (thread == state.thread_states.size()) state.thread_states.push_back({});
    state.thread_of_row[i] = thread;
    const uint32_t sources = state.encode_row(row, i, state.thread_states[thread]);
    const uint8_t flags = row.flags & kStoredFlags;
    state.shape_of_row[i] = state.shapes.number(make_shape(row.kind, flags, sources));
  }
  state.times.finish(state.split(kSectionTime, kSectionTimeRest));
  state.out[kSectionShapes].put(state.shapes.values.size());
  for (const uint64_t shape : state.shapes.values) state.out[kSectionShapes].put(shape);
  for (const uint32_t number : state.shape_of_row) state.out[kSectionShape].put(number);
  state.write_threads();
  state.write_stacks();

  state.packed.begin(kCallMagic, rows.size(), kCallSections);
  for (const VarintWriter& section : state.out) state.packed.add(section.bytes());
  return state.packed.finish();
}

std::vector<uint8_t> encode_calls(std::span<const CallRow> rows) {
  CallEncoder encoder;
  const std::span<const uint8_t> blob = encoder.encode(rows);
  return {blob.begin(), blob.end()};
}

}  // namespace heapledger::schema
