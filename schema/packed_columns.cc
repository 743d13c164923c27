// SPDX-License-Identifier: Apache-2.0
#include "schema/packed_columns.h"

#include <zstd.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>

#include "schema/crc32.h"
#include "schema/error.h"

namespace heapledger::schema {
namespace {

constexpr int kHardLevel = 9;
// A section of which no more than a quarter could be saved is made of noise: no level does better.
constexpr size_t kNoiseParts = 4;
constexpr size_t kSmallSection = 64;  // Shorter ones are not worth a zstd frame.

// A section holds at most two varints per row (a dictionary and an index into it) and a count.
constexpr size_t raw_bytes_max(size_t rows) { return (2 * rows + 4) * kVarintBytesMax; }

template <typename T>
void put_raw(uint8_t* at, T value) {
  std::memcpy(at, &value, sizeof(value));
}

template <typename T>
T take_raw(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

[[noreturn]] void damaged(const std::string& why) {
  throw Error("cannot decode a packed batch", why);
}

void check_crc(uint32_t found, uint32_t expected, const std::string& where) {
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
  // A fuzzer would spend its life guessing checksums and see nothing of what lies behind them.
  (void)found, (void)expected, (void)where;
#else
  if (found != expected) damaged("the checksum of " + where + " is wrong");
#endif
}

uint32_t header_crc(std::span<const uint8_t> blob, size_t sections) {
  const uint32_t crc = crc32(blob.first(12));
  return crc32(blob.subspan(kPackedHeaderBytes, sections * kPackedDirectoryBytes), crc);
}

}  // namespace

void VarintReader::fail() { damaged("a column ends too early or holds an impossible number"); }

PackedWriter::PackedWriter(int level) : context_(ZSTD_createCCtx()) {
  if (context_ == nullptr) throw std::bad_alloc();
  ZSTD_CCtx_setParameter(context_, ZSTD_c_compressionLevel, level);
  ZSTD_CCtx_setParameter(context_, ZSTD_c_contentSizeFlag, 0);  // The directory has it.
  if (level != kFastLevel) return;
  // Its table of places takes 16 KiB, and short repetitions are not looked for: columns of numbers
  // become hardly larger by that, in a quarter less time.
  ZSTD_CCtx_setParameter(context_, ZSTD_c_hashLog, 12);
  ZSTD_CCtx_setParameter(context_, ZSTD_c_minMatch, 7);
}

PackedWriter::~PackedWriter() { ZSTD_freeCCtx(context_); }

// Keeps what is there; new bytes are not cleared, since a frame's bound is mostly cut again.
void PackedWriter::reserve(size_t bytes) {
  if (bytes <= capacity_) return;
  const size_t larger = std::max(bytes, 2 * capacity_);
  auto blob = std::make_unique_for_overwrite<uint8_t[]>(larger);
  std::copy_n(blob_.get(), size_, blob.get());
  blob_ = std::move(blob);
  capacity_ = larger;
}

void PackedWriter::begin(uint32_t magic, size_t rows, size_t sections) {
  size_ = 0;
  reserve(kPackedHeaderBytes + sections * kPackedDirectoryBytes);
  size_ = kPackedHeaderBytes + sections * kPackedDirectoryBytes;
  std::fill_n(blob_.get(), size_, uint8_t{0});
  put_raw(&blob_[0], magic);
  put_raw(&blob_[4], kPackedVersion);
  put_raw(&blob_[6], static_cast<uint16_t>(sections));
  put_raw(&blob_[8], static_cast<uint32_t>(rows));
  next_section_ = 0;
  sections_ = sections;
}

size_t PackedWriter::compress(std::span<const uint8_t> section) {
  reserve(size_ + ZSTD_compressBound(section.size()));
  const size_t result =
      ZSTD_compress2(context_, &blob_[size_], capacity_ - size_, section.data(), section.size());
  return ZSTD_isError(result) != 0 ? SIZE_MAX : result;
}

void PackedWriter::add(std::span<const uint8_t> section) {
  const size_t raw = section.size();
  const size_t packed = raw >= kSmallSection ? compress(section) : SIZE_MAX;
  if (packed < raw) {
    enter(raw, packed);
    return;
  }
  reserve(size_ + raw);
  std::copy(section.begin(), section.end(), &blob_[size_]);
  enter(raw, raw);
}

void PackedWriter::add_packed(std::span<const uint8_t> packed, size_t raw_bytes,
                              std::span<const uint8_t> section) {
  if (!section.empty()) {
    const size_t anew = compress(section);
    if (anew < packed.size()) {
      enter(raw_bytes, anew);
      return;
    }
  }
  reserve(size_ + packed.size());
  std::copy(packed.begin(), packed.end(), &blob_[size_]);
  enter(raw_bytes, packed.size());
}

// What lies at the end into the directory.
void PackedWriter::enter(size_t raw, size_t packed) {
  uint8_t* entry = &blob_[kPackedHeaderBytes + next_section_ * kPackedDirectoryBytes];
  put_raw(entry, static_cast<uint32_t>(raw));
  put_raw(entry + 4, static_cast<uint32_t>(packed));
  put_raw(entry + 8, crc32({&blob_[size_], packed}));
  size_ += packed;
  ++next_section_;
}

std::span<const uint8_t> PackedWriter::finish() {
  const std::span<const uint8_t> blob(blob_.get(), size_);
  put_raw(&blob_[12], header_crc(blob, sections_));
  return blob;
}

PackedReader::PackedReader() : context_(ZSTD_createDCtx()) {
  if (context_ == nullptr) throw std::bad_alloc();
}

PackedReader::~PackedReader() { ZSTD_freeDCtx(context_); }

size_t PackedReader::open(std::span<const uint8_t> blob, uint32_t magic, size_t sections,
                          size_t rows_max) {
  if (blob.size() < kPackedHeaderBytes) damaged("it is too short");
  if (take_raw<uint32_t>(&blob[0]) != magic) damaged("it begins with the wrong magic number");
  const uint16_t version = take_raw<uint16_t>(&blob[4]);
  if (version != kPackedVersion) {
    damaged("it has batch version " + std::to_string(version) + ", this heapledger reads version " +
            std::to_string(kPackedVersion));
  }
  if (take_raw<uint16_t>(&blob[6]) != sections) damaged("it has the wrong number of columns");
  size_t at = kPackedHeaderBytes + sections * kPackedDirectoryBytes;
  if (blob.size() < at) damaged("it is too short");
  check_crc(header_crc(blob, sections), take_raw<uint32_t>(&blob[12]), "its header");
  const size_t rows = take_raw<uint32_t>(&blob[8]);
  if (rows > rows_max) damaged("it claims " + std::to_string(rows) + " rows");

  sections_.resize(sections);
  for (size_t i = 0; i < sections; ++i) {
    const uint8_t* entry = &blob[kPackedHeaderBytes + i * kPackedDirectoryBytes];
    const size_t raw = take_raw<uint32_t>(entry);
    const size_t packed = take_raw<uint32_t>(entry + 4);
    if (raw > raw_bytes_max(rows) || packed > blob.size() - at) {
      damaged("column " + std::to_string(i) + " is longer than can be");
    }
    sections_[i].packed = blob.subspan(at, packed);
    sections_[i].raw_bytes = raw;
    sections_[i].crc = take_raw<uint32_t>(entry + 8);
    at += packed;
  }
  if (at != blob.size()) damaged("bytes follow its end");
  return rows;
}

VarintReader PackedReader::section(size_t index) {
  Section& section = sections_[index];
  const std::string where = "column " + std::to_string(index);
  check_crc(crc32(section.packed), section.crc, where);
  const size_t raw = section.raw_bytes;
  if (section.raw.size() < raw + kVarintBytesMax) section.raw.resize(raw + kVarintBytesMax);
  if (section.packed.size() == raw) {
    if (raw > 0) std::memcpy(section.raw.data(), section.packed.data(), raw);
  } else {
    const size_t result = ZSTD_decompressDCtx(context_, section.raw.data(), raw,
                                              section.packed.data(), section.packed.size());
    if (ZSTD_isError(result) != 0) damaged(where + ": " + ZSTD_getErrorName(result));
    if (result != raw) damaged(where + " has the wrong length");
  }
  std::memset(section.raw.data() + raw, 0, kVarintBytesMax);
  return {section.raw.data(), section.raw.data() + raw};
}

std::optional<std::vector<uint8_t>> packed_harder(std::span<const uint8_t> blob) {
  // Of any blob's readers.
  constexpr size_t kRowsMax = size_t{1} << 20;
  constexpr size_t kSectionsMax = 32;
  if (blob.size() < kPackedHeaderBytes) damaged("it is too short");
  const auto magic = take_raw<uint32_t>(&blob[0]);
  const size_t sections = take_raw<uint16_t>(&blob[6]);
  if (sections > kSectionsMax) damaged("it has too many columns");
  PackedReader reader;
  const size_t rows = reader.open(blob, magic, sections, kRowsMax);
  PackedWriter writer(kHardLevel);
  writer.begin(magic, rows, sections);
  for (size_t i = 0; i < sections; ++i) {
    const std::span<const uint8_t> packed = reader.packed(i);
    const size_t raw = reader.raw_bytes(i);
    const bool noise = raw < kSmallSection || packed.size() * kNoiseParts > raw * (kNoiseParts - 1);
    const std::span<const uint8_t> section = reader.section(i).bytes();  // Checks it, too.
    writer.add_packed(packed, raw, noise ? std::span<const uint8_t>() : section);
  }
  const std::span<const uint8_t> harder = writer.finish();
  if (harder.size() >= blob.size()) return std::nullopt;
  return std::vector<uint8_t>(harder.begin(), harder.end());
}

}  // namespace heapledger::schema
