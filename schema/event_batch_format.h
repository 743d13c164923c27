// SPDX-License-Identifier: Apache-2.0
// What encoder and decoder of schema/event_batch.h agree on, and nobody else needs: the sections of
// a batch and the shape of a row. README.md explains them with an example.
//
// The shape of a row says for each of its fields where the value comes from. A batch lists its
// distinct shapes once; a row is an index into the list. `kind` and `flags` belong to the shape
// too, since they nearly always decide the rest.
//
// Two running values predict others, both per thread and both kept by encoder and decoder alike:
//   id        the thread's last id: its next one is mostly one more
//   address   the last address that the thread got or gave back: the next one is mostly near
// Both begin at 0. In a row old_address comes before address.
#pragma once

#include <cstddef>
#include <cstdint>

#include "schema/event.h"

namespace heapledger::schema {

inline constexpr uint32_t kCallMagic = 0x42434C48;  // "HLCB"

enum CallSection : size_t {
  kSectionTime,         // schema/time_column.h; first bytes.
  kSectionShapes,       // Count; then the distinct shapes, each as make_shape() has it.
  kSectionShape,        // Per row: index of its shape.
  kSectionThread,       // Count; the thread ids; then, if there are several, per row an index.
  kSectionId,           // Per kIdStored: zigzag(id - the thread's last id).
  kSectionReference,    // Per kEndedReference: how many rows before this one the block began;
                        // first bytes.
  kSectionEndedId,      // Per kEndedStored: zigzag(ended_id - the last one stored here).
  kSectionAddress,      // Per kAddressStored: zigzag(address - last one), in 16 bytes or in bytes.
  kSectionOldAddress,   // Per kOldStored: zigzag(old_address - last one), in bytes.
  kSectionSize,         // Per kHasSize: size.
  kSectionUsable,       // Per kUsableStored: usable.
  kSectionAlignment,    // Per kHasAlignmentValue: alignment.
  kSectionEndedTime,    // Per kEndedEarlier: zigzag(time_ns - ended_ns).
  kSectionStackValues,  // Count; the distinct stacks but 0, each as zigzag(difference to the last).
  kSectionStack,        // Per kHasStackValue: index into them; first bytes.
  kSectionTimeRest,     // What follows the first bytes (SplitWriter).
  kSectionReferenceRest,
  kSectionStackRest,
  kCallSections,
};

// The sources: two bits each for what has several, one for what is there or not.
enum CallSource : uint32_t {
  kIdNone = 0,
  kIdNext = 1,  // The thread's last id + 1.
  kIdStored = 2,
  kIdMask = 3,

  kEndedNone = 0 << 2,
  kEndedReference = 1 << 2,  // The id of an earlier row of the batch.
  kEndedStored = 2 << 2,
  kEndedMask = 3 << 2,

  kAddressNone = 0 << 4,
  kAddressReference = 1 << 4,  // The address of the row that kEndedReference names.
  kAddressStored = 2 << 4,
  kAddressOld = 3 << 4,  // old_address: a realloc in place.
  kAddressMask = 3 << 4,

  kOldNone = 0 << 6,
  kOldReference = 1 << 6,
  kOldStored = 2 << 6,
  kOldMask = 3 << 6,

  kUsableNone = 0 << 8,
  kUsableByRule = 1 << 8,
  kUsableStored = 2 << 8,
  kUsableMask = 3 << 8,

  kHasSize = 1 << 10,
  kHasAlignmentValue = 1 << 11,
  kEndedEarlier = 1 << 12,
  kHasStackValue = 1 << 13,
  kAddressFine = 1 << 14,  // With kAddressStored: not a multiple of 16, so counted in bytes.
  kSourcesEnd = 1 << 15,
};

// A shape as one number.
constexpr uint32_t make_shape(EventKind kind, uint8_t flags, uint32_t sources) {
  return static_cast<uint32_t>(kind) | uint32_t{flags} << 5 | sources << 13;
}
// What a further source adds to it.
constexpr uint32_t shape_bits(uint32_t sources) { return sources << 13; }
constexpr EventKind shape_kind(uint32_t shape) { return static_cast<EventKind>(shape & 31); }
constexpr uint8_t shape_flags(uint32_t shape) { return static_cast<uint8_t>(shape >> 5); }
constexpr uint32_t shape_sources(uint32_t shape) { return shape >> 13; }
static_assert(static_cast<unsigned>(EventKind::kCallKindEnd) <= 32);

}  // namespace heapledger::schema
