// SPDX-License-Identifier: Apache-2.0
// The reading half of schema/event_batch.h. The input may be anything: every number that selects or
// counts something is checked before it is used; the others may be any 64 bits.
#include <algorithm>
#include <span>
#include <string>

#include "schema/error.h"
#include "schema/event_batch.h"
#include "schema/event_batch_format.h"
#include "schema/number_column.h"
#include "schema/packed_columns.h"
#include "schema/time_column.h"

namespace heapledger::schema {
namespace {

constexpr size_t kShapesOfOneByte = 128;

[[noreturn]] void impossible(const std::string& why) {
  throw Error("cannot decode a packed batch", why);
}

struct ThreadState {
  uint64_t id = 0;
  uint64_t address = 0;
};

bool shape_is_valid(uint64_t shape) {
  if (shape >= uint64_t{kSourcesEnd} << 13) return false;
  const auto narrow = static_cast<uint32_t>(shape);
  const uint32_t sources = shape_sources(narrow);
  if (!is_call(shape_kind(narrow)) || (shape_flags(narrow) & ~kStoredFlags) != 0) return false;
  if ((sources & kIdMask) == kIdMask || (sources & kEndedMask) == kEndedMask) return false;
  if ((sources & kOldMask) == kOldMask || (sources & kUsableMask) == kUsableMask) return false;
  if ((sources & kAddressFine) != 0 && (sources & kAddressMask) != kAddressStored) return false;
  // Only a row that names another can take something from it.
  const bool takes =
      (sources & kAddressMask) == kAddressReference || (sources & kOldMask) == kOldReference;
  return !takes || (sources & kEndedMask) == kEndedReference;
}

}  // namespace

struct CallDecoder::State {
  PackedReader packed;
  size_t rows = 0;
  std::vector<uint32_t> shapes;         // Distinct.
  uint32_t sources_used = 0;            // By any of them.
  std::vector<uint32_t> shape;          // Per row, the shape itself.
  std::vector<uint64_t> threads;        // Distinct.
  std::vector<uint32_t> thread_number;  // Per row.
  std::vector<ThreadState> thread_states;
  std::vector<uint32_t> reference;  // Per row: the row it names, or itself.
  std::vector<uint32_t> stacks;     // Distinct; then a 0.
  NumberColumn numbers, more_numbers;

  uint32_t sources(size_t row) const { return shape_sources(shape[row]); }
  SplitReader split(CallSection first, CallSection rest) {
    return {packed.section(first), packed.section(rest)};
  }
  void read_shapes();
  void read_short_shapes(std::span<const uint8_t> index);
  void read_threads();
  void read_references();
  void decode_time(CallBatch& batch);
  void decode_ended_time(CallBatch& batch);
  template <bool is_alone>
  void decode_id(CallBatch& batch);
  void decode_ended_id(CallBatch& batch);
  template <bool is_alone>
  void decode_addresses(CallBatch& batch);
  void decode_stack(CallBatch& batch);
  void decode_optional(CallSection section, uint32_t source, std::vector<uint64_t>& values);
  void decode_usable(CallBatch& batch);
};

void CallDecoder::State::read_shapes() {
  VarintReader in = packed.section(kSectionShapes);
  shapes.resize(in.take_below(rows + 1));
  sources_used = 0;
  for (uint32_t& value : shapes) {
    const uint64_t stored = in.take();
    if (!shape_is_valid(stored)) impossible("an event has an impossible shape");
    value = static_cast<uint32_t>(stored);
    sources_used |= shape_sources(value);
  }
  in.finish();
  VarintReader index = packed.section(kSectionShape);
  shape.resize(rows);
  if (shapes.size() <= kShapesOfOneByte) {
    read_short_shapes(index.bytes());
    return;
  }
  for (uint32_t& value : shape) value = shapes[index.take_below(shapes.size())];
  index.finish();
}

// Each is a byte then.
void CallDecoder::State::read_short_shapes(std::span<const uint8_t> index) {
  if (index.size() != rows) VarintReader::fail();
  const size_t count = shapes.size();
  shapes.resize(kShapesOfOneByte);
  unsigned most = 0;
  for (size_t i = 0; i < rows; ++i) {
    most = std::max<unsigned>(most, index[i]);
    shape[i] = shapes[index[i] % kShapesOfOneByte];
  }
  if (rows != 0 && most >= count) VarintReader::fail();
}

void CallDecoder::State::read_threads() {
  VarintReader in = packed.section(kSectionThread);
  threads.resize(in.take_below(rows + 1));
  if (threads.empty() && rows > 0) impossible("its events have no thread");
  for (uint64_t& thread : threads) thread = in.take_below(uint64_t{1} << 32);
  thread_number.assign(rows, 0);
  if (threads.size() > 1) {
    for (uint32_t& number : thread_number) {
      number = static_cast<uint32_t>(in.take_below(threads.size()));
    }
  }
  in.finish();
}

void CallDecoder::State::read_references() {
  NumberCursor in = numbers.read(split(kSectionReference, kSectionReferenceRest));
  reference.resize(rows);
  for (size_t i = 0; i < rows; ++i) {
    const bool has = (sources(i) & kEndedMask) == kEndedReference;
    const uint64_t distance = in.take_if(has);
    if (distance > i) impossible("an event ends one before the first");
    reference[i] = static_cast<uint32_t>(i - distance);
  }
  in.finish();
}

void CallDecoder::State::decode_time(CallBatch& batch) {
  batch.time_ns.resize(rows);
  read_times(split(kSectionTime, kSectionTimeRest), numbers, batch.time_ns);
}

void CallDecoder::State::decode_ended_time(CallBatch& batch) {
  VarintReader in = packed.section(kSectionEndedTime);
  batch.ended_ns = batch.time_ns;
  if ((sources_used & kEndedEarlier) == 0) return in.finish();
  for (size_t i = 0; i < rows; ++i) {
    if ((sources(i) & kEndedEarlier) == 0) continue;
    const uint64_t time = static_cast<uint64_t>(batch.time_ns[i]);
    batch.ended_ns[i] = static_cast<int64_t>(time - unzigzag(in.take()));
  }
  in.finish();
}

template <bool is_alone>
void CallDecoder::State::decode_id(CallBatch& batch) {
  VarintReader in = packed.section(kSectionId);
  batch.id.resize(rows);
  uint64_t only = 0;  // The last id, where there is one thread: in a register.
  thread_states.assign(threads.size(), {});
  for (size_t i = 0; i < rows; ++i) {
    const uint32_t source = sources(i) & kIdMask;
    uint64_t& last = is_alone ? only : thread_states[thread_number[i]].id;
    if (source == kIdStored) {
      last += unzigzag(in.take());
    } else {
      last += source;  // kIdNext is 1, kIdNone 0.
    }
    batch.id[i] = source == kIdNone ? 0 : last;
  }
  in.finish();
}

void CallDecoder::State::decode_ended_id(CallBatch& batch) {
  VarintReader in = packed.section(kSectionEndedId);
  batch.ended_id.resize(rows);
  uint64_t last = 0;
  for (size_t i = 0; i < rows; ++i) {
    const uint32_t source = sources(i) & kEndedMask;
    const uint64_t named = 0 - uint64_t{source == kEndedReference};
    uint64_t value = batch.id[reference[i]] & named;
    if (source == kEndedStored) {
      last += unzigzag(in.take());
      value = last;
    }
    batch.ended_id[i] = value;
  }
  in.finish();
}

template <bool is_alone>
void CallDecoder::State::decode_addresses(CallBatch& batch) {
  NumberCursor in = numbers.read(packed.section(kSectionAddress));
  NumberCursor in_old = more_numbers.read(packed.section(kSectionOldAddress));
  batch.address.resize(rows);
  batch.old_address.resize(rows);
  uint64_t only = 0;  // The last address, where there is one thread: in a register.
  thread_states.assign(threads.size(), {});
  for (size_t i = 0; i < rows; ++i) {
    const uint32_t source = sources(i);
    uint64_t& last = is_alone ? only : thread_states[thread_number[i]].address;
    uint64_t old = 0;
    if ((source & kOldMask) != kOldNone) {
      old = (source & kOldMask) == kOldReference ? batch.address[reference[i]]
                                                 : last + unzigzag(in_old.take());
      last = old;
    }
    batch.old_address[i] = old;
    // Allocations and frees alternate at random: select, do not branch.
    const uint32_t from = source & kAddressMask;
    const uint64_t difference = unzigzag(in.take_if(from == kAddressStored));
    uint64_t address = from == kAddressStored ? (last & ~uint64_t{15}) + (difference << 4) : 0;
    address = from == kAddressReference ? batch.address[reference[i]] : address;
    if (from == kAddressOld) address = old;
    if ((source & kAddressFine) != 0) address = last + difference;
    last = address != 0 ? address : last;
    batch.address[i] = address;
  }
  in.finish();
  in_old.finish();
}

void CallDecoder::State::decode_stack(CallBatch& batch) {
  VarintReader values = packed.section(kSectionStackValues);
  const size_t count = values.take_below(rows + 1);
  stacks.assign(count + 1, 0);  // The last one stands in for rows that have none.
  uint64_t last = 0;
  for (size_t i = 0; i < count; ++i) {
    last += unzigzag(values.take());
    if (last > UINT32_MAX) impossible("a stack's number is too large");
    stacks[i] = static_cast<uint32_t>(last);
  }
  values.finish();
  NumberCursor in = numbers.read(split(kSectionStack, kSectionStackRest));
  batch.stack.resize(rows);
  for (size_t i = 0; i < rows; ++i) {
    const bool has = (sources(i) & kHasStackValue) != 0;
    const uint64_t index = in.take_if(has);
    if (index >= count + !has) impossible("it names a stack that it does not list");
    batch.stack[i] = stacks[index] & (0 - uint32_t{has});
  }
  in.finish();
}

void CallDecoder::State::decode_optional(CallSection section, uint32_t source,
                                         std::vector<uint64_t>& values) {
  NumberCursor in = numbers.read(packed.section(section));
  if ((sources_used & source) == 0) {
    values.assign(rows, 0);
    return in.finish();
  }
  values.resize(rows);
  for (size_t i = 0; i < rows; ++i) values[i] = in.take_if((sources(i) & source) != 0);
  in.finish();
}

void CallDecoder::State::decode_usable(CallBatch& batch) {
  VarintReader in = packed.section(kSectionUsable);
  batch.usable.resize(rows);
  for (size_t i = 0; i < rows; ++i) {
    const uint32_t source = sources(i) & kUsableMask;
    uint64_t usable = source == kUsableByRule ? usable_by_rule(batch.size[i]) : 0;
    if (source == kUsableStored) usable = in.take();
    batch.usable[i] = usable;
  }
  in.finish();
}

CallDecoder::CallDecoder() : state_(std::make_unique<State>()) {}
CallDecoder::~CallDecoder() = default;

void CallDecoder::decode(std::span<const uint8_t> blob, uint32_t columns, CallBatch& batch) {
  State& state = *state_;
  // Columns that others are made from.
  if (columns & kColumnEndedTime) columns |= kColumnTime;
  if (columns & kColumnEndedId) columns |= kColumnId;
  if (columns & kColumnUsable) columns |= kColumnSize;
  constexpr uint32_t kAddresses = kColumnAddress | kColumnOldAddress;
  if (columns & kAddresses) columns |= kAddresses;
  columns &= kColumnsAll;

  batch.clear_except(columns);
  state.rows = batch.events = state.packed.open(blob, kCallMagic, kCallSections, kBatchEventsMax);
  batch.columns = columns;
  if (columns & ~uint32_t{kColumnTime | kColumnThread}) state.read_shapes();
  if (columns & (kColumnThread | kColumnId | kAddresses)) state.read_threads();
  if (columns & (kColumnEndedId | kAddresses)) state.read_references();

  if (columns & kColumnTime) state.decode_time(batch);
  if (columns & kColumnEndedTime) state.decode_ended_time(batch);
  if (columns & kColumnThread) {
    batch.thread.resize(state.rows);
    if (state.threads.size() == 1) {
      std::fill(batch.thread.begin(), batch.thread.end(), static_cast<uint32_t>(state.threads[0]));
    } else {
      for (size_t i = 0; i < state.rows; ++i) {
        batch.thread[i] = static_cast<uint32_t>(state.threads[state.thread_number[i]]);
      }
    }
  }
  if (columns & kColumnKind) {
    batch.kind.resize(state.rows);
    batch.flags.resize(state.rows);
    for (size_t i = 0; i < state.rows; ++i) {
      batch.kind[i] = shape_kind(state.shape[i]);
      batch.flags[i] = shape_flags(state.shape[i]);
    }
  }
  const bool is_alone = state.threads.size() == 1;
  if (columns & kColumnId) {
    is_alone ? state.decode_id<true>(batch) : state.decode_id<false>(batch);
  }
  if (columns & kColumnEndedId) state.decode_ended_id(batch);
  if (columns & kAddresses) {
    is_alone ? state.decode_addresses<true>(batch) : state.decode_addresses<false>(batch);
  }
  if (columns & kColumnSize) state.decode_optional(kSectionSize, kHasSize, batch.size);
  if (columns & kColumnUsable) state.decode_usable(batch);
  if (columns & kColumnAlignment) {
    state.decode_optional(kSectionAlignment, kHasAlignmentValue, batch.alignment);
  }
  if (columns & kColumnStack) state.decode_stack(batch);
}

void CallBatch::clear_except(uint32_t kept) {
  events = 0;
  columns = 0;
  const auto empty = [kept](uint32_t column, auto&... vectors) {
    if ((kept & column) == 0) (vectors.clear(), ...);
  };
  empty(kColumnTime, time_ns);
  empty(kColumnEndedTime, ended_ns);
  empty(kColumnThread, thread);
  empty(kColumnKind, kind, flags);
  empty(kColumnId, id);
  empty(kColumnAddress, address);
  empty(kColumnSize, size);
  empty(kColumnUsable, usable);
  empty(kColumnAlignment, alignment);
  empty(kColumnEndedId, ended_id);
  empty(kColumnOldAddress, old_address);
  empty(kColumnStack, stack);
}

CallRow CallBatch::row(size_t index) const {
  if (columns == kColumnsAll) {
    return {time_ns[index],  ended_ns[index],    thread[index], kind[index],   flags[index],
            id[index],       address[index],     size[index],   usable[index], alignment[index],
            ended_id[index], old_address[index], stack[index]};
  }
  CallRow row;
  if (columns & kColumnTime) row.time_ns = row.ended_ns = time_ns[index];
  if (columns & kColumnEndedTime) row.ended_ns = ended_ns[index];
  if (columns & kColumnThread) row.thread = thread[index];
  if (columns & kColumnKind) {
    row.kind = kind[index];
    row.flags = flags[index];
  }
  if (columns & kColumnId) row.id = id[index];
  if (columns & kColumnAddress) row.address = address[index];
  if (columns & kColumnSize) row.size = size[index];
  if (columns & kColumnUsable) row.usable = usable[index];
  if (columns & kColumnAlignment) row.alignment = alignment[index];
  if (columns & kColumnEndedId) row.ended_id = ended_id[index];
  if (columns & kColumnOldAddress) row.old_address = old_address[index];
  if (columns & kColumnStack) row.stack = stack[index];
  return row;
}

std::vector<CallRow> decode_calls(std::span<const uint8_t> blob) {
  CallDecoder decoder;
  CallBatch batch;
  decoder.decode(blob, kColumnsAll, batch);
  std::vector<CallRow> rows(batch.events);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = batch.row(i);
  return rows;
}

}  // namespace heapledger::schema
