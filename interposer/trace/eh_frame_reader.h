// SPDX-License-Identifier: Apache-2.0
// Reads the encodings of .eh_frame from a run of bytes, never outside of it.
//
// What does not fit or makes no sense yields 0 and makes the reader stay failed, at its end; so
// callers look at failed() once, at the end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace heapledger::trace {

// Pointer encodings (DW_EH_PE_*): the lower four bits say the format, the next three the base.
inline constexpr uint8_t kPointerOmitted = 0xff;
inline constexpr uint8_t kPointerIndirect = 0x80;

class EhReader {
 public:
  EhReader(const std::byte* at, const std::byte* end) : at_(at), end_(end) {}

  bool failed() const { return failed_; }
  bool at_end() const { return at_ == end_; }
  const std::byte* position() const { return at_; }
  size_t left() const { return static_cast<size_t>(end_ - at_); }

  void fail() {
    failed_ = true;
    at_ = end_;
  }
  void skip(uint64_t bytes) {
    if (bytes > left()) return fail();
    at_ += bytes;
  }
  // The next `bytes` for themselves; the reader goes on behind them.
  EhReader part(uint64_t bytes) {
    const std::byte* start = at_;
    skip(bytes);
    EhReader result(start, at_);
    if (failed_) result = EhReader(at_, at_), result.failed_ = true;
    return result;
  }

  template <class T>
  T fixed() {
    T value{};
    if (sizeof(T) > left()) {
      fail();
      return value;
    }
    memcpy(&value, at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }
  uint8_t byte() { return fixed<uint8_t>(); }

  uint64_t unsigned_leb() {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const uint8_t next = byte();
      value |= static_cast<uint64_t>(next & 0x7f) << shift;
      if ((next & 0x80) == 0) return value;
    }
    fail();
    return 0;
  }
  int64_t signed_leb() {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const uint8_t next = byte();
      value |= static_cast<uint64_t>(next & 0x7f) << shift;
      if ((next & 0x80) != 0) continue;
      const bool negative = (next & 0x40) != 0 && shift + 7 < 64;
      return static_cast<int64_t>(negative ? value | ~uint64_t{0} << (shift + 7) : value);
    }
    fail();
    return 0;
  }

  // A number in one of the pointer formats, relative to nothing.
  uint64_t number(uint8_t encoding) {
    switch (encoding & 0x0f) {
      case 0x00:
        return fixed<uint64_t>();  // DW_EH_PE_absptr
      case 0x01:
        return unsigned_leb();
      case 0x02:
        return fixed<uint16_t>();
      case 0x03:
        return fixed<uint32_t>();
      case 0x04:
        return fixed<uint64_t>();
      case 0x09:
        return static_cast<uint64_t>(signed_leb());
      case 0x0a:
        return static_cast<uint64_t>(int64_t{fixed<int16_t>()});
      case 0x0b:
        return static_cast<uint64_t>(int64_t{fixed<int32_t>()});
      case 0x0c:
        return fixed<uint64_t>();
      default:
        fail();
        return 0;
    }
  }
  // An address. `data_base`: what DW_EH_PE_datarel counts from. Fails on bases that no linker of
  // x86-64 uses, and on indirect ones.
  uint64_t address(uint8_t encoding, uintptr_t data_base) {
    const auto here = reinterpret_cast<uintptr_t>(at_);
    const uint64_t value = number(encoding);
    switch (encoding & 0xf0) {
      case 0x00:
        return value;
      case 0x10:
        return here + value;  // DW_EH_PE_pcrel
      case 0x30:
        return data_base + value;  // DW_EH_PE_datarel
      default:
        fail();
        return 0;
    }
  }

 private:
  const std::byte* at_;
  const std::byte* end_;
  bool failed_ = false;
};

}  // namespace heapledger::trace
