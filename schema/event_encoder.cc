// SPDX-License-Identifier: Apache-2.0
// The writing half of schema/event_batch.h.
//
// Calls go through in chunks that stay in the processor's nearest cache, and through a chunk column
// by column: lists say which rows begin a block, end one, have a stack (schema/call_chunk.h), so
// that what follows are short loops over exactly those, with the ends of the sections in registers
// and nothing for a branch predictor to guess: allocations and frees alternate at random.
#include <algorithm>
#include <array>
#include <string>

#include "schema/call_chunk.h"
#include "schema/dictionary.h"
#include "schema/error.h"
#include "schema/event_batch.h"
#include "schema/event_batch_format.h"
#include "schema/packed_columns.h"
#include "schema/stack_uses.h"
#include "schema/time_column.h"

namespace heapledger::schema {
namespace {

constexpr size_t kChunkRows = CallChunk::kRows;

// What predicts a thread's next row.
struct ThreadState {
  uint64_t id = 0;
  uint64_t address = 0;
};

// The numbers of shapes, of which few are in use.
class ShapeNumbers {
 public:
  void start() {
    all_.start();
    known_.fill({});
  }
  uint32_t number(uint32_t shape) {
    Known& known = known_[shape * 0x9E3779B1U >> 24];
    if (known.shape != shape) known = {shape, all_.number(shape)};
    return known.number;
  }
  const std::vector<uint64_t>& values() const { return all_.values; }

 private:
  struct Known {
    uint32_t shape = 0;  // No shape is 0.
    uint32_t number = 0;
  };
  Dictionary all_;
  std::array<Known, 256> known_{};
};

}  // namespace

struct CallEncoder::State {
  template <typename T>
  using Column = CallChunk::Column<T>;

  PackedWriter packed;
  VarintWriter out[kCallSections];
  TimeColumnWriter times;
  ShapeNumbers shapes;
  Dictionary threads;
  StackUses stacks;
  IdRows row_of_id;
  std::vector<uint64_t> addresses;  // By row.
  std::vector<ThreadState> thread_states;
  std::vector<uint32_t> thread_of_row;
  std::vector<uint64_t> rests;
  size_t rows_max = 0;
  size_t rows = 0;
  int64_t last_time = 0;
  uint64_t last_ended_id = 0;

  // Of the chunk that is being added.
  CallChunk from_rows;
  Column<uint32_t> shape;      // Collected column by column.
  Column<uint64_t> reference;  // Address of the block that is ended, where it began in this batch;
                               // else 0.
  Column<uint64_t> numbers;    // On their way into a section.

  SplitWriter split(CallSection first, CallSection rest) { return {out[first], out[rest]}; }
  void start(size_t rows);
  uint32_t number_thread(uint32_t thread);
  void check(const CallChunk& calls);
  void add_rows(std::span<const CallRow> content);
  void add_calls(const CallChunk& calls);
  void put_common(const CallChunk& calls);
  void put_begins(const CallChunk& calls, ThreadState& thread);
  void put_begin(const CallChunk& calls, size_t row, ThreadState& thread);
  void put_ends(const CallChunk& calls);
  void put_addresses(const CallChunk& calls, ThreadState& thread);
  void put_plain_addresses(const CallChunk& calls, size_t from, size_t to, ThreadState& thread);
  void put_address(const CallChunk& calls, size_t row, uint64_t old_address, ThreadState& thread);
  void put_sizes(const CallChunk& calls);
  void put_stacks(const CallChunk& calls);
  void put_rare(const CallChunk& calls);
  void put_shapes(size_t count);
  void write_stacks();
  void write_threads();
};

void CallEncoder::State::start(size_t rows_expected) {
  // Stacks are put twice: once distinct, once per row. The last number of a chunk may be written
  // and not kept.
  for (VarintWriter& writer : out) writer.start(2 * rows_expected + 2);
  times.start(rows_expected);
  shapes.start();
  threads.start();
  stacks.start(rows_expected);
  row_of_id.start(rows_expected);
  addresses.resize(rows_expected);
  thread_states.clear();
  thread_of_row.resize(rows_expected);
  rows_max = rows_expected;
  rows = 0;
  last_ended_id = 0;
}

uint32_t CallEncoder::State::number_thread(uint32_t thread) {
  const uint32_t number = threads.number(thread);
  if (number == thread_states.size()) thread_states.push_back({});
  return number;
}

void CallEncoder::State::check(const CallChunk& calls) {
  if (calls.count > rows_max - rows) {
    throw Error("cannot encode a batch", "it has no room for more events");
  }
  bool rises = rows == 0 || calls.time_ns[0] >= last_time;
  for (size_t i = 1; i < calls.count && !calls.rises; ++i) {
    rises &= calls.time_ns[i] >= calls.time_ns[i - 1];
  }
  if (!rises) throw Error("cannot encode a batch", "events are out of order");
  last_time = calls.time_ns[calls.count - 1];
}

// Rows of any threads.
void CallEncoder::State::add_rows(std::span<const CallRow> content) {
  const auto is_a_call = [](const CallRow& row) { return is_call(row.kind); };
  if (!std::all_of(content.begin(), content.end(), is_a_call)) {
    throw Error("cannot encode a batch", "an event is no call");
  }
  CallChunk& calls = from_rows;
  calls.assign(content);
  const auto is_of_first = [&](const CallRow& row) { return row.thread == content[0].thread; };
  if (std::all_of(content.begin(), content.end(), is_of_first)) return add_calls(calls);
  check(calls);
  std::array<uint32_t, kChunkRows> number;
  for (size_t i = 0; i < content.size(); ++i) number[i] = number_thread(content[i].thread);
  std::copy_n(number.begin(), content.size(), &thread_of_row[rows]);
  put_common(calls);
  for (const size_t i : calls.takes) {
    if (calls.id[i] != 0) put_begin(calls, i, thread_states[number[i]]);
  }
  put_ends(calls);
  const uint16_t* rare = calls.rare.begin();
  for (size_t i = 0; i < content.size(); ++i) {
    const bool is_rare = rare != calls.rare.end() && *rare == i;
    if (is_rare) ++rare;
    put_address(calls, i, is_rare ? calls.old_address[i] : 0, thread_states[number[i]]);
  }
  put_rare(calls);
  put_shapes(calls.count);
  rows += calls.count;
}

// Calls of one thread.
void CallEncoder::State::add_calls(const CallChunk& calls) {
  if (calls.count == 0) return;
  check(calls);
  const uint32_t number = number_thread(calls.thread);
  std::fill_n(&thread_of_row[rows], calls.count, number);
  put_common(calls);
  put_begins(calls, thread_states[number]);
  put_ends(calls);
  put_addresses(calls, thread_states[number]);
  put_rare(calls);
  put_shapes(calls.count);
  rows += calls.count;
}

// What does not depend on the thread.
void CallEncoder::State::put_common(const CallChunk& calls) {
  // Over all of the chunk, whatever its length, and told that they are apart: several at a time.
  const uint16_t* __restrict kind = calls.kind.data();
  uint32_t* __restrict to = shape.data();
  for (size_t i = 0; i < kChunkRows; ++i) {
    const uint32_t flags = uint32_t{kind[i]} >> 8 & kStoredFlags;
    to[i] = (kind[i] & 31u) | flags << 5;
  }
  reference.fill(0);
  std::copy_n(calls.address.begin(), calls.count, &addresses[rows]);
  times.put_all({calls.time_ns.data(), calls.count});
  put_sizes(calls);
  put_stacks(calls);
}

void CallEncoder::State::put_begins(const CallChunk& calls, ThreadState& thread) {
  const auto first = static_cast<uint32_t>(rows);
  uint64_t last = thread.id;
  for (const size_t i : calls.takes) {
    const uint64_t id = calls.id[i];
    if (id == 0) continue;
    if (id != last + 1) {
      thread.id = last;
      put_begin(calls, i, thread);
    } else {
      const uint32_t sized = kHasSize * uint32_t{calls.size[i] != 0};
      shape[i] |= shape_bits(kUsableByRule | kIdNext | sized);
      row_of_id.put(id, first + static_cast<uint32_t>(i));
    }
    last = id;
  }
  thread.id = last;
}

void CallEncoder::State::put_begin(const CallChunk& calls, size_t row, ThreadState& thread) {
  const uint64_t id = calls.id[row];
  const bool next = id == thread.id + 1;
  if (!next) out[kSectionId].put(zigzag(id - thread.id));
  const uint32_t sized = kHasSize * uint32_t{calls.size[row] != 0};
  shape[row] |= shape_bits(kUsableByRule | (next ? kIdNext : kIdStored) | sized);
  row_of_id.put(id, static_cast<uint32_t>(rows + row));
  thread.id = id;
}

void CallEncoder::State::put_ends(const CallChunk& calls) {
  size_t referring = 0;
  for (const size_t i : calls.ends) {
    const uint64_t id = calls.ended_id[i];
    if (id == 0) continue;
    const size_t index = rows + i;
    // The whole chunk's blocks are known already, also those that begin after this row.
    if (const uint32_t began = row_of_id.find(id); began < index) {
      reference[i] = addresses[began];
      numbers[referring++] = index - began;
      shape[i] |= shape_bits(kEndedReference);
    } else {
      out[kSectionEndedId].put(zigzag(id - last_ended_id));
      last_ended_id = id;
      shape[i] |= shape_bits(kEndedStored);
    }
  }
  static_assert(kBatchEventsMax <= SplitWriter::kSplitShortEnd);
  split(kSectionReference, kSectionReferenceRest).put_all_short(referring, [&](size_t i) {
    return numbers[i];
  });
}

void CallEncoder::State::put_addresses(const CallChunk& calls, ThreadState& thread) {
  size_t from = 0;
  for (const size_t rare : calls.rare) {
    put_plain_addresses(calls, from, rare, thread);
    put_address(calls, rare, calls.old_address[rare], thread);
    from = rare + 1;
  }
  put_plain_addresses(calls, from, calls.count, thread);
}

// Of rows that are not rare.
void CallEncoder::State::put_plain_addresses(const CallChunk& calls, size_t from, size_t to,
                                             ThreadState& thread) {
  if (from == to) return;
  uint64_t last = thread.address & ~uint64_t{15};
  size_t stored = 0;
  for (size_t i = from; i < to; ++i) {
    const uint64_t address = calls.address[i];
    const uint64_t apart = reference[i] ^ address;
    const auto units = static_cast<int64_t>(address - last) >> 4;
    numbers[stored] = zigzag(static_cast<uint64_t>(units));
    // As in is_above(): allocations and frees alternate at random.
    const auto stores = static_cast<uint32_t>((apart | (0 - apart)) >> 63);
    stored += stores;
    static_assert(kAddressStored == 2 * kAddressReference);
    shape[i] |= shape_bits(kAddressReference) << stores;
    last = address;
  }
  thread.address = last;
  VarintCursor cursor = out[kSectionAddress].cursor();
  for (size_t i = 0; i < stored; ++i) cursor.put(numbers[i]);
  out[kSectionAddress].advance_to(cursor);
}

// Of any row.
void CallEncoder::State::put_address(const CallChunk& calls, size_t row, uint64_t old_address,
                                     ThreadState& thread) {
  const uint64_t address = calls.address[row];
  uint32_t sources = 0;
  if (old_address != 0) {
    if (reference[row] == old_address) {
      sources |= kOldReference;
    } else {
      sources |= kOldStored;
      out[kSectionOldAddress].put(zigzag(old_address - thread.address));
    }
    thread.address = old_address;
  }
  if (address != 0) {
    if (reference[row] == address) {
      sources |= kAddressReference;
    } else if (address == old_address) {
      sources |= kAddressOld;
    } else if (address % 16 != 0) {
      sources |= kAddressStored | kAddressFine;
      out[kSectionAddress].put(zigzag(address - thread.address));
    } else {
      const uint64_t difference = address - (thread.address & ~uint64_t{15});
      const auto units = static_cast<int64_t>(difference) >> 4;
      sources |= kAddressStored;
      out[kSectionAddress].put(zigzag(static_cast<uint64_t>(units)));
    }
    thread.address = address;
  }
  shape[row] |= shape_bits(sources);
}

void CallEncoder::State::put_sizes(const CallChunk& calls) {
  VarintCursor sizes = out[kSectionSize].cursor();
  for (const size_t i : calls.takes) {
    const uint64_t size = calls.size[i];
    if (size == 0) continue;
    if (size < VarintCursor::kShortEnd) {
      sizes.put_short(size);
    } else {
      sizes.put(size);
    }
  }
  out[kSectionSize].advance_to(sizes);
}

void CallEncoder::State::put_stacks(const CallChunk& calls) {
  stacks.add(calls.stacked.rows(), [&](size_t i) {
    shape[i] |= shape_bits(kHasStackValue);
    return calls.stack[i];
  });
}

void CallEncoder::State::put_rare(const CallChunk& calls) {
  for (const size_t i : calls.rare) {
    const uint64_t usable = calls.usable[i];
    shape[i] &= ~shape_bits(kUsableMask | kHasSize);
    if (calls.size[i] != 0) shape[i] |= shape_bits(kHasSize);
    if (usable == usable_by_rule(calls.size[i])) {
      shape[i] |= shape_bits(kUsableByRule);
    } else if (usable != 0) {
      shape[i] |= shape_bits(kUsableStored);
      out[kSectionUsable].put(usable);
    }
    if (calls.alignment[i] != 0) {
      shape[i] |= shape_bits(kHasAlignmentValue);
      out[kSectionAlignment].put(calls.alignment[i]);
    }
    if (calls.ended_ns[i] != calls.time_ns[i]) {
      shape[i] |= shape_bits(kEndedEarlier);
      const auto ended = static_cast<uint64_t>(calls.ended_ns[i]);
      out[kSectionEndedTime].put(zigzag(static_cast<uint64_t>(calls.time_ns[i]) - ended));
    }
  }
}

void CallEncoder::State::put_shapes(size_t count) {
  VarintCursor indices = out[kSectionShape].cursor();
  for (size_t i = 0; i < count; ++i) {
    const uint32_t number = shapes.number(shape[i]);
    if (number < 0x80) {
      indices.put_byte(static_cast<uint8_t>(number));
    } else {
      indices.put(number);
    }
  }
  out[kSectionShape].advance_to(indices);
}

void CallEncoder::State::write_stacks() {
  stacks.number();
  VarintCursor values = out[kSectionStackValues].cursor();
  values.put(stacks.values().size());
  uint64_t last = 0;
  for (const uint64_t value : stacks.values()) {
    values.put(zigzag(value - last));
    last = value;
  }
  out[kSectionStackValues].advance_to(values);
  split(kSectionStack, kSectionStackRest).put_all_short(stacks.rows(), [&](size_t i) {
    return stacks.index(i);
  });
}

void CallEncoder::State::write_threads() {
  VarintWriter& writer = out[kSectionThread];
  writer.put(threads.values.size());
  for (const uint64_t thread : threads.values) writer.put(thread);
  if (threads.values.size() < 2) return;
  for (size_t i = 0; i < rows; ++i) writer.put(thread_of_row[i]);
}

CallEncoder::CallEncoder() : state_(std::make_unique<State>()) {}
CallEncoder::~CallEncoder() = default;

void CallEncoder::begin(size_t rows_max) {
  if (rows_max > kBatchEventsMax) {
    throw Error("cannot encode a batch", std::to_string(rows_max) + " events are too many");
  }
  state_->start(rows_max);
}

void CallEncoder::add(std::span<const CallRow> rows) {
  while (!rows.empty()) {
    const size_t count = std::min(kChunkRows, rows.size());
    state_->add_rows(rows.first(count));
    rows = rows.subspan(count);
  }
}

void CallEncoder::add(const CallChunk& calls) { state_->add_calls(calls); }

size_t CallEncoder::rows() const { return state_->rows; }

std::span<const uint8_t> CallEncoder::finish() {
  State& state = *state_;
  state.times.finish(state.split(kSectionTime, kSectionTimeRest));
  state.out[kSectionShapes].put(state.shapes.values().size());
  for (const uint64_t shape : state.shapes.values()) state.out[kSectionShapes].put(shape);
  state.write_threads();
  state.write_stacks();

  state.packed.begin(kCallMagic, state.rows, kCallSections);
  for (const VarintWriter& section : state.out) state.packed.add(section.bytes());
  return state.packed.finish();
}

std::span<const uint8_t> CallEncoder::encode(std::span<const CallRow> rows) {
  begin(rows.size());
  add(rows);
  return finish();
}

std::vector<uint8_t> encode_calls(std::span<const CallRow> rows) {
  CallEncoder encoder;
  const std::span<const uint8_t> blob = encoder.encode(rows);
  return {blob.begin(), blob.end()};
}

}  // namespace heapledger::schema
