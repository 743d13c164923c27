// SPDX-License-Identifier: Apache-2.0
#include "schema/number_column.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace heapledger::schema {
namespace {

constexpr uint64_t kTopBits = 0x8080808080808080;

// The groups of seven bits in the low ends of bytes, pushed together in three steps.
uint64_t join_groups(uint64_t word) {
  word &= ~kTopBits;
  word = (word & 0x007f007f007f007f) | (word & 0x7f007f007f007f00) >> 1;
  word = (word & 0x00003fff00003fff) | (word & 0x3fff00003fff0000) >> 2;
  return (word & 0x000000000fffffff) | (word & 0x0fffffff00000000) >> 4;
}

// Unpacks into `values`, which grows as needed; returns how many there were.
size_t unpack(VarintReader in, std::vector<uint64_t>& values) {
  const size_t values_max = in.left() + 1;  // A number has a byte or more; one more for cursors.
  if (values.size() < values_max) values.resize(std::max(values_max, values.size() * 2));
  uint64_t* out = values.data();
  while (in.left() >= sizeof(uint64_t)) {
    uint64_t word;
    std::memcpy(&word, in.bytes().data(), sizeof word);
    uint64_t ends = ~word & kTopBits;  // A bit per number's last byte.
    if (ends == kTopBits) {
      for (int i = 0; i < 8; ++i) *out++ = word >> (8 * i) & 0x7f;
      in.skip(8);
      continue;
    }
    if (ends == 0) {
      *out++ = in.take();  // Longer than the word.
      continue;
    }
    int start = 0;
    do {
      const int last = std::countr_zero(ends);
      ends &= ends - 1;
      *out++ = join_groups(word >> start & ~uint64_t{0} >> (63 - (last - start)));
      start = last + 1;
    } while (ends != 0);
    in.skip(static_cast<size_t>(start) / 8);
  }
  while (in.left() > 0) *out++ = in.take();
  in.finish();
  return static_cast<size_t>(out - values.data());
}

}  // namespace

NumberCursor NumberColumn::read(VarintReader in) {
  const size_t count = unpack(in, values_);
  return {values_.data(), values_.data() + count};
}

NumberCursor NumberColumn::read(SplitReader in) {
  const size_t rest_count = unpack(in.rest, rests_);
  const std::span<const uint8_t> bytes = in.first.bytes();
  if (values_.size() <= bytes.size()) values_.resize(bytes.size() + 1);
  const uint64_t* rest = rests_.data();
  const uint64_t* const rest_end = rest + rest_count;
  for (size_t i = 0; i < bytes.size(); ++i) {
    const uint64_t more = bytes[i] >> 7;
    if (rest == rest_end && more != 0) VarintReader::fail();
    values_[i] = (bytes[i] & 0x7f) | (*rest & (0 - more)) << 7;
    rest += more;
  }
  if (rest != rest_end) VarintReader::fail();
  return {values_.data(), values_.data() + bytes.size()};
}

}  // namespace heapledger::schema
