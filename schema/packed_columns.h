// SPDX-License-Identifier: Apache-2.0
// The frame that every packed blob of a trace has: a number of rows, cut into columns ("sections"
// here, since a column of the format need not be one of the table), each compressed for itself.
//
//     offset 0   u32 magic      which blob this is
//            4   u16 version    kPackedVersion
//            6   u16 sections   how many; fixed for a magic
//            8   u32 rows
//           12   u32 crc        of bytes 0..11 and of the directory
//           16   directory      per section: u32 raw bytes, u32 packed bytes, u32 crc of the packed
//           then the sections   packed == raw: as they are; else one zstd frame each
//
// All little-endian. Checksums are CRC-32 (the one of zlib and gzip). Each section has its own, so
// that a reader of one column neither unpacks nor checks the others.
//
// Inside sections numbers are varints: seven bits a byte, low bits first, the top bit says that
// more follow; at most ten bytes. zigzag() maps small negative numbers to small unsigned ones.
//
// Any bytes may be given to the reader; what it does not accept becomes an Error. Its memory is
// bounded by the number of rows, which is bounded by its caller.
// Thread safety: none; one thread at a time.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

struct ZSTD_CCtx_s;
struct ZSTD_DCtx_s;

namespace heapledger::schema {

inline constexpr uint16_t kPackedVersion = 2;
inline constexpr size_t kPackedHeaderBytes = 16;
inline constexpr size_t kPackedDirectoryBytes = 12;  // Per section.
inline constexpr size_t kVarintBytesMax = 10;

constexpr uint64_t zigzag(uint64_t difference) {
  return difference << 1 ^ (0 - (difference >> 63));
}
constexpr uint64_t unzigzag(uint64_t value) { return value >> 1 ^ (0 - (value & 1)); }

// 1 if `value` is more than `limit`, else 0; of numbers below 2^63. The sign of a difference, since
// compilers like to make a branch of a comparison, which is a guess wrong half of the time where
// numbers follow no pattern.
constexpr uint64_t is_above(uint64_t value, uint64_t limit) { return (limit - value) >> 63; }

// Where the next varint goes, in memory that has room for it. A value of its own, so that a loop
// that writes many can hold it in a register: bytes that are stored might be any object's.
struct VarintCursor {
  uint8_t* at = nullptr;

  // No branch on the length: columns whose numbers differ in it follow no pattern that a branch
  // predictor could learn.
  void put(uint64_t value) {
    if (value >> 56 != 0) {
      put_long(value);
      return;
    }
    const int bits = 64 - std::countl_zero(value | 1);
    const int bytes = (bits * 9 + 64) / 64;  // bits / 7, rounded up.
    // Groups of seven bits are pulled apart in three steps; all but the last get their top bit.
    uint64_t word = (value & 0x000000000fffffff) | (value & 0x00fffffff0000000) << 4;
    word = (word & 0x00003fff00003fff) | (word & 0x0fffc0000fffc000) << 2;
    word = (word & 0x007f007f007f007f) | (word & 0x3f803f803f803f80) << 1;
    word |= 0x8080808080808080 & ((uint64_t{1} << 8 * (bytes - 1)) - 1);
    std::memcpy(at, &word, sizeof word);
    at += bytes;
  }
  void put_byte(uint8_t byte) { *at++ = byte; }
  // Of less than kShortEnd.
  static constexpr uint64_t kShortEnd = uint64_t{1} << 14;
  void put_short(uint64_t value) {
    const uint64_t more = is_above(value, 0x7f);
    const auto word = static_cast<uint16_t>((value & 0x7f) | more << 7 | value >> 7 << 8);
    std::memcpy(at, &word, sizeof word);
    at += 1 + more;
  }

 private:
  void put_long(uint64_t value) {
    for (; value >= 0x80; value >>= 7) *at++ = static_cast<uint8_t>(value | 0x80);
    *at++ = static_cast<uint8_t>(value);
  }
};

// A run of varints, for writing.
class VarintWriter {
 public:
  // Empties it and makes room for `values` put() calls, which do not check.
  void start(size_t values) {
    const size_t bytes = values * kVarintBytesMax + sizeof(uint64_t);  // put() may write beyond.
    if (capacity_ < bytes) {
      bytes_ = std::make_unique_for_overwrite<uint8_t[]>(bytes);
      capacity_ = bytes;
    }
    end_.at = bytes_.get();
  }
  void put(uint64_t value) { end_.put(value); }
  // The end, to write on from; and where that has led to.
  VarintCursor cursor() const { return end_; }
  void advance_to(const VarintCursor& cursor) { end_ = cursor; }

  std::span<const uint8_t> bytes() const {
    return {bytes_.get(), static_cast<size_t>(end_.at - bytes_.get())};
  }

 private:
  std::unique_ptr<uint8_t[]> bytes_;
  size_t capacity_ = 0;
  VarintCursor end_;
};

// Reads them back. The bytes are followed by at least kVarintBytesMax zeros, which end any varint
// that was cut: so only the start of each is checked.
class VarintReader {
 public:
  VarintReader(const uint8_t* begin, const uint8_t* end) : next_(begin), end_(end) {}

  uint64_t take() {
    if (next_ >= end_) fail();
    uint64_t value = *next_++;
    if (value >= 0x80) value = take_long(value);
    return value;
  }
  // The next number if `wanted`, else 0 and nothing is taken. For columns whose numbers differ in
  // length, and for rows that have one or not, in no pattern that a branch predictor could learn:
  // costs the same always, unless the number is longer than eight bytes.
  uint64_t take_if(bool wanted) {
    if (next_ >= end_ && wanted) fail();
    uint64_t word;
    std::memcpy(&word, next_, sizeof(word));
    const uint64_t last_bytes = ~word & 0x8080808080808080;
    if (last_bytes == 0 && wanted) return take_long(*next_++);
    const uint64_t mask = 0 - uint64_t{wanted};
    next_ += (static_cast<uint64_t>(std::countr_zero(last_bytes) / 8) + 1) & mask;
    // The bytes up to the last one, without their top bits, pushed together in three steps.
    word &= (last_bytes ^ (last_bytes - 1)) & 0x7f7f7f7f7f7f7f7f & mask;
    word = (word & 0x007f007f007f007f) | (word & 0x7f007f007f007f00) >> 1;
    word = (word & 0x00003fff00003fff) | (word & 0x3fff00003fff0000) >> 2;
    return (word & 0x000000000fffffff) | (word & 0x0fffffff00000000) >> 4;
  }
  uint8_t take_byte_if(bool wanted) {
    if (next_ >= end_ && wanted) fail();
    const uint8_t byte = wanted ? *next_ : 0;
    next_ += wanted ? 1 : 0;
    return byte;
  }
  // A number that must be below `limit`.
  uint64_t take_below(uint64_t limit) {
    const uint64_t value = take();
    if (value >= limit) fail();
    return value;
  }
  // To be called when all is read: nothing may be left over or have been cut.
  void finish() const {
    if (next_ != end_) fail();
  }
  // What is not read yet, and how to pass over some of it.
  std::span<const uint8_t> bytes() const { return {next_, left()}; }
  size_t left() const { return next_ < end_ ? static_cast<size_t>(end_ - next_) : 0; }
  void skip(size_t bytes) { next_ += bytes; }
  [[noreturn]] static void fail();

 private:
  uint64_t take_long(uint64_t first) {
    uint64_t value = first & 0x7f;
    for (int shift = 7; shift < 70; shift += 7) {
      const uint64_t byte = *next_++;
      value |= (byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    fail();
  }

  const uint8_t* next_;
  const uint8_t* end_;
};

// Varints in two sections: of each number its first byte in one, what follows it in the other. What
// first bytes are like says little of the bytes that follow, so each part packs better by itself:
// by a tenth where most numbers have one byte or two.
struct SplitWriter {
  VarintWriter& first;
  VarintWriter& rest;

  // Numbers of which many have one byte and many more, in no pattern: what follows first bytes is
  // put aside, in `rests`, and written afterwards.
  template <typename ValueOf>
  void put_all(size_t count, std::vector<uint64_t>& rests, ValueOf value_of) {
    if (rests.size() < count) rests.resize(count);
    uint64_t* next_rest = rests.data();
    uint8_t* const bytes = first.cursor().at;
    for (size_t i = 0; i < count; ++i) {
      const uint64_t value = value_of(i);
      const bool more = value >= 0x80;  // Of any value.
      bytes[i] = static_cast<uint8_t>((value & 0x7f) | (more ? 0x80 : 0));
      *next_rest = value >> 7;
      next_rest += more ? 1 : 0;
    }
    first.advance_to({bytes + count});
    VarintCursor cursor = rest.cursor();
    for (const uint64_t* at = rests.data(); at != next_rest; ++at) cursor.put(*at);
    rest.advance_to(cursor);
  }
  // The same for numbers of less than kSplitShortEnd: nothing is put aside.
  static constexpr uint64_t kSplitShortEnd = VarintCursor::kShortEnd << 7;
  template <typename ValueOf>
  void put_all_short(size_t count, ValueOf value_of) {
    uint8_t* const bytes = first.cursor().at;
    VarintCursor cursor = rest.cursor();
    for (size_t i = 0; i < count; ++i) {
      const uint64_t value = value_of(i);
      const uint64_t more = is_above(value, 0x7f);
      bytes[i] = static_cast<uint8_t>((value & 0x7f) | more << 7);
      cursor.put_short(value >> 7);
      cursor.at -= 1 - more;
    }
    first.advance_to({bytes + count});
    rest.advance_to(cursor);
  }
};
struct SplitReader {
  VarintReader first;
  VarintReader rest;

  uint64_t take() { return take_if(true); }
  uint64_t take_if(bool wanted) {
    const uint64_t byte = first.take_byte_if(wanted);
    return (byte & 0x7f) | rest.take_if(byte >= 0x80) << 7;
  }
  void finish() const {
    first.finish();
    rest.finish();
  }
};

class PackedWriter {
 public:
  // What is written while a program runs takes as little time as it can.
  static constexpr int kFastLevel = 1;

  explicit PackedWriter(int level = kFastLevel);
  ~PackedWriter();
  PackedWriter(const PackedWriter&) = delete;
  PackedWriter& operator=(const PackedWriter&) = delete;

  void begin(uint32_t magic, size_t rows, size_t sections);
  void add(std::span<const uint8_t> section);  // In order; `sections` times.
  // One that is packed already; as it is, or packed anew where `section`, its contents, are given
  // and that makes it smaller.
  void add_packed(std::span<const uint8_t> packed, size_t raw_bytes,
                  std::span<const uint8_t> section = {});
  std::span<const uint8_t> finish();  // Valid until begin().

 private:
  void reserve(size_t bytes);
  // Packs to the end; returns the bytes it takes there, SIZE_MAX where it cannot be packed.
  size_t compress(std::span<const uint8_t> section);
  void enter(size_t raw, size_t packed);

  ZSTD_CCtx_s* context_;
  std::unique_ptr<uint8_t[]> blob_;  // The first `size_` bytes of it.
  size_t size_ = 0;
  size_t capacity_ = 0;
  size_t next_section_ = 0;
  size_t sections_ = 0;
};

class PackedReader {
 public:
  PackedReader();
  ~PackedReader();
  PackedReader(const PackedReader&) = delete;
  PackedReader& operator=(const PackedReader&) = delete;

  // Checks header and directory and returns the number of rows. The blob must outlive the reading.
  size_t open(std::span<const uint8_t> blob, uint32_t magic, size_t sections, size_t rows_max);
  // Unpacks a section; valid until open().
  VarintReader section(size_t index);
  // As it is in the blob.
  std::span<const uint8_t> packed(size_t index) const { return sections_[index].packed; }
  size_t raw_bytes(size_t index) const { return sections_[index].raw_bytes; }

 private:
  struct Section {
    std::span<const uint8_t> packed;
    size_t raw_bytes = 0;
    uint32_t crc = 0;
    std::vector<uint8_t> raw;  // Kept for the next blob; followed by zeros.
  };
  ZSTD_DCtx_s* context_;
  std::vector<Section> sections_;
};

// The same rows in a blob that is smaller by a twelfth where there is much to find, for which it
// takes some eighty nanoseconds per row. Nothing: it would be no smaller. Throws Error for a
// damaged one.
std::optional<std::vector<uint8_t>> packed_harder(std::span<const uint8_t> blob);

}  // namespace heapledger::schema
