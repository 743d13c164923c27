// SPDX-License-Identifier: Apache-2.0
// The writing half of schema/event_batch.h.
//
// Rows go through in chunks that stay in the processor's nearest cache, and through a chunk column
// by column: which rows begin a block, end one, have a stack is written down once, so that what
// follows are short loops over exactly those, with the ends of the sections in registers and
// nothing for a branch predictor to guess: allocations and frees alternate at random.
#include <algorithm>
#include <array>
#include <string>

#include "schema/dictionary.h"
#include "schema/error.h"
#include "schema/event_batch.h"
#include "schema/event_batch_format.h"
#include "schema/packed_columns.h"
#include "schema/time_column.h"

namespace heapledger::schema {
namespace {

constexpr size_t kChunkRows = 256;

// What predicts a thread's next row.
struct ThreadState {
  uint64_t id = 0;
  uint64_t address = 0;
};

// Some rows of a chunk, by index, in order.
struct RowList {
  std::array<uint16_t, kChunkRows> index;
  size_t count = 0;

  // Adds to it, with the count in a register.
  class Filler {
   public:
    explicit Filler(RowList& list) : list_(list) {}
    ~Filler() { list_.count = count_; }
    Filler(const Filler&) = delete;
    Filler& operator=(const Filler&) = delete;
    void add_if(size_t row, bool wanted) {
      list_.index[count_] = static_cast<uint16_t>(row);
      count_ += wanted ? 1 : 0;
    }

   private:
    RowList& list_;
    size_t count_ = 0;
  };
  const uint16_t* begin() const { return index.data(); }
  const uint16_t* end() const { return index.data() + count; }
};

// Rows that follow each other in a batch, while they are encoded.
struct Chunk {
  std::span<const CallRow> rows;
  size_t first = 0;  // Of the batch's rows.
  std::array<uint32_t, kChunkRows> thread;
  std::array<uint32_t, kChunkRows> sources;    // Collected column by column.
  std::array<uint64_t, kChunkRows> reference;  // Address of the block that is ended, where it
                                               // began in this batch; else 0.
  RowList begins, ends, sized, stacked, rare;

  void start(std::span<const CallRow> content, size_t at) {
    rows = content;
    first = at;
  }
};

// The numbers of shapes, of which few are in use.
class ShapeNumbers {
 public:
  void start(size_t rows) {
    all_.start(rows);
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
  PackedWriter packed;
  VarintWriter out[kCallSections];
  TimeColumnWriter times;
  ShapeNumbers shapes;
  Dictionary threads;
  StackNumbers stacks;
  IdRows row_of_id;
  std::vector<uint64_t> addresses;  // By row, of those that began a block.
  std::vector<ThreadState> thread_states;
  std::vector<uint32_t> thread_of_row;
  std::vector<uint32_t> stack_of_row;  // Of the rows that have one: the first `stacked_rows`.
  std::vector<uint32_t> stack_counts;
  std::vector<uint64_t> stack_order;
  std::vector<uint64_t> rests;
  Chunk chunk;
  size_t rows_max = 0;
  size_t rows = 0;
  size_t stacked_rows = 0;
  int64_t last_time = 0;
  uint64_t last_ended_id = 0;

  SplitWriter split(CallSection first, CallSection rest) { return {out[first], out[rest]}; }
  void start(size_t rows);
  void add_chunk(std::span<const CallRow> content);
  uint32_t number_thread(uint32_t thread);
  void sort_out();
  void put_begins();
  void put_ends();
  void put_addresses();
  void put_sizes();
  void put_stacks();
  void put_rare();
  void put_shapes();
  void write_stacks();
  void write_threads();
};

void CallEncoder::State::start(size_t rows_expected) {
  // Stacks are put twice: once distinct, once per row. The last number of a chunk may be written
  // and not kept.
  for (VarintWriter& writer : out) writer.start(2 * rows_expected + 2);
  times.start(rows_expected);
  shapes.start(rows_expected);
  threads.start(rows_expected);
  stacks.start();
  row_of_id.start(rows_expected);
  addresses.resize(rows_expected);
  thread_states.clear();
  thread_of_row.resize(rows_expected);
  stack_of_row.resize(rows_expected);
  stack_counts.clear();
  rows_max = rows_expected;
  rows = 0;
  stacked_rows = 0;
  last_ended_id = 0;
}

uint32_t CallEncoder::State::number_thread(uint32_t thread) {
  const uint32_t number = threads.number(thread);
  if (number == thread_states.size()) thread_states.push_back({});
  return number;
}

// Checks the rows and finds which of them have what.
void CallEncoder::State::sort_out() {
  Chunk& c = chunk;
  const size_t count = c.rows.size();
  int64_t last = rows == 0 ? c.rows.front().time_ns : last_time;
  bool rises = true;
  bool are_calls = true;
  uint32_t thread = c.rows.front().thread;
  uint32_t number = number_thread(thread);
  RowList::Filler begins(c.begins), ends(c.ends), sized(c.sized), stacked(c.stacked), rare(c.rare);
  for (size_t i = 0; i < count; ++i) {
    const CallRow& row = c.rows[i];
    row_of_id.prefetch(row.ended_id);
    stacks.prefetch(row.stack);
    rises &= row.time_ns >= last;
    last = row.time_ns;
    are_calls &= is_call(row.kind);
    if (row.thread != thread) {
      thread = row.thread;
      number = number_thread(thread);
    }
    c.thread[i] = number;
    c.reference[i] = 0;
    begins.add_if(i, row.id != 0);
    ends.add_if(i, row.ended_id != 0);
    sized.add_if(i, row.size != 0);
    stacked.add_if(i, row.stack != 0);
    const bool has_usable = row.usable != 0;
    const bool by_rule = row.usable == usable_by_rule(row.size);
    const bool earlier = row.ended_ns != row.time_ns;
    rare.add_if(i, (has_usable && !by_rule) | (row.alignment != 0) | earlier);
    c.sources[i] = kUsableByRule * uint32_t{by_rule} |
                   kUsableStored * uint32_t{has_usable && !by_rule} |
                   kHasSize * uint32_t{row.size != 0} | kHasStackValue * uint32_t{row.stack != 0};
  }
  if (!rises) throw Error("cannot encode a batch", "events are out of order");
  if (!are_calls) throw Error("cannot encode a batch", "an event is no call");
  std::copy_n(c.thread.begin(), count, thread_of_row.begin() + static_cast<ptrdiff_t>(c.first));
  last_time = last;
}

void CallEncoder::State::put_begins() {
  Chunk& c = chunk;
  VarintCursor ids = out[kSectionId].cursor();
  for (const size_t i : c.begins) {
    const CallRow& row = c.rows[i];
    ThreadState& thread = thread_states[c.thread[i]];
    const bool next = row.id == thread.id + 1;
    if (!next) ids.put(zigzag(row.id - thread.id));
    c.sources[i] |= next ? kIdNext : kIdStored;
    thread.id = row.id;
    row_of_id.put(row.id, static_cast<uint32_t>(c.first + i));
    addresses[c.first + i] = row.address;
  }
  out[kSectionId].advance_to(ids);
}

void CallEncoder::State::put_ends() {
  Chunk& c = chunk;
  SplitCursor references = split(kSectionReference, kSectionReferenceRest).cursor();
  VarintCursor ids = out[kSectionEndedId].cursor();
  for (const size_t i : c.ends) {
    const uint64_t id = c.rows[i].ended_id;
    const size_t index = c.first + i;
    // The whole chunk's blocks are known already, also those that begin after this row.
    if (const uint32_t began = row_of_id.find(id); began < index) {
      c.reference[i] = addresses[began];
      references.put(index - began);
      c.sources[i] |= kEndedReference;
    } else {
      ids.put(zigzag(id - last_ended_id));
      last_ended_id = id;
      c.sources[i] |= kEndedStored;
    }
  }
  split(kSectionReference, kSectionReferenceRest).advance_to(references);
  out[kSectionEndedId].advance_to(ids);
}

void CallEncoder::State::put_addresses() {
  Chunk& c = chunk;
  VarintCursor addresses_out = out[kSectionAddress].cursor();
  for (size_t i = 0; i < c.rows.size(); ++i) {
    const CallRow& row = c.rows[i];
    ThreadState& thread = thread_states[c.thread[i]];
    const uint64_t reference = c.reference[i];
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
    const bool named = reference == row.address;
    if (row.address == 0) {
      c.sources[i] |= sources;
      continue;
    }
    if (row.address % 16 != 0 && !named && row.address != row.old_address) {
      sources |= kAddressStored | kAddressFine;
      addresses_out.put(zigzag(row.address - thread.address));
    } else {
      const bool stays = row.address == row.old_address;
      const bool stored = !named && !stays;
      const uint64_t difference = row.address - (thread.address & ~uint64_t{15});
      const auto units = static_cast<int64_t>(difference) >> 4;
      addresses_out.put_if(zigzag(static_cast<uint64_t>(units)), stored);
      sources |= named ? kAddressReference : stays ? kAddressOld : kAddressStored;
    }
    thread.address = row.address;
    c.sources[i] |= sources;
  }
  out[kSectionAddress].advance_to(addresses_out);
}

void CallEncoder::State::put_sizes() {
  VarintCursor sizes = out[kSectionSize].cursor();
  for (const size_t i : chunk.sized) sizes.put(chunk.rows[i].size);
  out[kSectionSize].advance_to(sizes);
}

void CallEncoder::State::put_stacks() {
  for (const size_t i : chunk.stacked) {
    const uint32_t number = stacks.number(chunk.rows[i].stack);
    if (number == stack_counts.size()) stack_counts.push_back(0);
    ++stack_counts[number];
    stack_of_row[stacked_rows++] = number;
  }
}

void CallEncoder::State::put_rare() {
  for (const size_t i : chunk.rare) {
    const CallRow& row = chunk.rows[i];
    if ((chunk.sources[i] & kUsableMask) == kUsableStored) out[kSectionUsable].put(row.usable);
    if (row.alignment != 0) {
      chunk.sources[i] |= kHasAlignmentValue;
      out[kSectionAlignment].put(row.alignment);
    }
    if (row.ended_ns != row.time_ns) {
      chunk.sources[i] |= kEndedEarlier;
      out[kSectionEndedTime].put(
          zigzag(static_cast<uint64_t>(row.time_ns) - static_cast<uint64_t>(row.ended_ns)));
    }
  }
}

void CallEncoder::State::put_shapes() {
  VarintCursor indices = out[kSectionShape].cursor();
  for (size_t i = 0; i < chunk.rows.size(); ++i) {
    const CallRow& row = chunk.rows[i];
    const auto flags = static_cast<uint8_t>(row.flags & kStoredFlags);
    const uint32_t number = shapes.number(make_shape(row.kind, flags, chunk.sources[i]));
    if (number < 0x80) {
      indices.put_byte(static_cast<uint8_t>(number));
    } else {
      indices.put(number);
    }
  }
  out[kSectionShape].advance_to(indices);
}

void CallEncoder::State::add_chunk(std::span<const CallRow> content) {
  chunk.start(content, rows);
  sort_out();
  times.put_all(content.size(), [&](size_t i) { return content[i].time_ns; });
  put_begins();
  put_ends();
  put_addresses();
  put_sizes();
  put_stacks();
  put_rare();
  put_shapes();
  rows += content.size();
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

  VarintCursor values = out[kSectionStackValues].cursor();
  values.put(order.size());
  std::vector<uint32_t>& place = stack_counts;  // Not needed as counts any more.
  uint64_t last = 0;
  for (uint32_t i = 0; i < order.size(); ++i) {
    const uint64_t value = order[i] & UINT32_MAX;
    values.put(zigzag(value - last));
    last = value;
    place[stacks.number(static_cast<uint32_t>(value))] = i;
  }
  out[kSectionStackValues].advance_to(values);
  split(kSectionStack, kSectionStackRest).put_all(stacked_rows, rests, [&](size_t i) {
    return place[stack_of_row[i]];
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
  if (rows.size() > state_->rows_max - state_->rows) {
    throw Error("cannot encode a batch", "it has no room for more events");
  }
  while (!rows.empty()) {
    const size_t count = std::min(kChunkRows, rows.size());
    state_->add_chunk(rows.first(count));
    rows = rows.subspan(count);
  }
}

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
