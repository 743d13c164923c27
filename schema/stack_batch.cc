// SPDX-License-Identifier: Apache-2.0
#include "schema/stack_batch.h"

#include <algorithm>
#include <string>

#include "schema/error.h"
#include "schema/packed_columns.h"

namespace heapledger::schema {
namespace {

constexpr uint32_t kStackMagic = 0x42534C48;  // "HLSB"

enum StackSection : size_t {
  kSectionParent,  // Per node: id - 1 - parent.
  kSectionFrame,   // Per node: frame.
  kStackSections,
};

// A stack's new nodes follow each other, so a node's parent is mostly the node before it. `chained`
// is what the parent then is.
uint64_t chained(uint32_t first_id, size_t index) { return uint64_t{first_id} + index - 1; }

}  // namespace

std::vector<uint8_t> encode_stacks(uint32_t first_id, std::span<const StackRow> rows) {
  if (rows.size() > kBatchStacksMax) {
    throw Error("cannot encode a batch", std::to_string(rows.size()) + " stacks are too many");
  }
  VarintWriter parents;
  VarintWriter frames;
  parents.start(rows.size());
  frames.start(rows.size());
  VarintCursor parent = parents.cursor();
  VarintCursor frame = frames.cursor();
  for (size_t i = 0; i < rows.size(); ++i) {
    const uint64_t before = chained(first_id, i);
    if (rows[i].parent > before) throw Error("cannot encode a batch", "a stack's parent is later");
    const uint64_t distance = before - rows[i].parent;
    if (distance < 0x80) {
      parent.put_byte(static_cast<uint8_t>(distance));
    } else {
      parent.put(distance);
    }
    if (rows[i].frame < VarintCursor::kShortEnd) {
      frame.put_short(rows[i].frame);
    } else {
      frame.put(rows[i].frame);
    }
  }
  parents.advance_to(parent);
  frames.advance_to(frame);
  PackedWriter packed;
  packed.begin(kStackMagic, rows.size(), kStackSections);
  packed.add(parents.bytes());
  packed.add(frames.bytes());
  const std::span<const uint8_t> blob = packed.finish();
  return {blob.begin(), blob.end()};
}

std::vector<StackRow> decode_stacks(uint32_t first_id, std::span<const uint8_t> blob) {
  PackedReader packed;
  std::vector<StackRow> rows(packed.open(blob, kStackMagic, kStackSections, kBatchStacksMax));
  VarintReader parents = packed.section(kSectionParent);
  for (size_t i = 0; i < rows.size(); ++i) {
    const uint64_t before = chained(first_id, i);
    const uint64_t parent = before - parents.take_below(before + 1);
    if (before >= UINT32_MAX) VarintReader::fail();
    rows[i].parent = static_cast<uint32_t>(parent);
  }
  parents.finish();
  VarintReader frames = packed.section(kSectionFrame);
  for (StackRow& row : rows) {
    row.frame = static_cast<uint32_t>(frames.take_below(uint64_t{1} << 32));
  }
  frames.finish();
  return rows;
}

std::vector<StackRow> decode_stacks_or_incomplete(uint32_t first_id, size_t count,
                                                  std::span<const uint8_t> blob, std::string& why) {
  constexpr uint32_t kIncompleteFrame = 1;
  try {
    std::vector<StackRow> rows = decode_stacks(first_id, blob);
    if (rows.size() == count) return rows;
    why = "its rows are not as many as the table says";
  } catch (const Error& error) {
    why = error.what();
  }
  return std::vector<StackRow>(std::min<size_t>(count, kBatchStacksMax), {0, kIncompleteFrame});
}

}  // namespace heapledger::schema
