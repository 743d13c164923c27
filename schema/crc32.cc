// SPDX-License-Identifier: Apache-2.0
#include "schema/crc32.h"

#include <array>
#include <bit>
#include <cstring>

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace heapledger::schema {
namespace {

constexpr uint32_t kPolynomial = 0xEDB88320u;  // Its lowest power is the top bit.

// tables[k][b] is the CRC of byte b followed by k zero bytes: eight bytes are then eight look-ups
// that do not wait for each other.
constexpr auto kCrcTables = [] {
  std::array<std::array<uint32_t, 256>, 8> tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (kPolynomial & (0u - (crc & 1)));
    tables[0][byte] = crc;
  }
  for (size_t k = 1; k < 8; ++k) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t crc = tables[k - 1][byte];
      tables[k][byte] = crc >> 8 ^ tables[0][crc & 0xff];
    }
  }
  return tables;
}();

// The register after these bytes.
uint32_t by_tables(const uint8_t* at, size_t left, uint32_t crc) {
  for (; left >= 8; left -= 8, at += 8) {
    uint64_t word;
    std::memcpy(&word, at, sizeof word);
    word ^= crc;
    crc = 0;
    for (size_t k = 0; k < 8; ++k) crc ^= kCrcTables[7 - k][word >> (8 * k) & 0xff];
  }
  for (; left > 0; --left, ++at) crc = crc >> 8 ^ kCrcTables[0][(crc ^ *at) & 0xff];
  return crc;
}

#ifdef __x86_64__

// x^power modulo the polynomial, as a factor of a multiplication without carries: that shifts its
// product by one, since the lowest powers are on top.
constexpr uint64_t power_of_x(int power) {
  uint32_t rest = 1u << 31;
  for (int i = 0; i < power; ++i) rest = rest >> 1 ^ (kPolynomial & (0u - (rest & 1)));
  return uint64_t{rest} << 1;
}

// Sixteen bytes, seen as a polynomial, times x^(8 * distance), without all that a remainder does
// not need: sixteen bytes again. The halves are 64 powers apart, and a product's bits stand for 32
// more.
template <int distance>
__attribute__((target("pclmul"))) __m128i moved(__m128i bytes) {
  const __m128i factors = _mm_set_epi64x(static_cast<int64_t>(power_of_x(8 * distance - 32)),
                                         static_cast<int64_t>(power_of_x(8 * distance + 32)));
  return _mm_xor_si128(_mm_clmulepi64_si128(bytes, factors, 0x00),
                       _mm_clmulepi64_si128(bytes, factors, 0x11));
}

__attribute__((target("pclmul"))) __m128i load(const uint8_t* at) {
  __m128i bytes;
  std::memcpy(&bytes, at, sizeof bytes);
  return bytes;
}

// Four runs of sixteen bytes at once, none of which waits for another. What is left of them has the
// same remainder as all that was before.
__attribute__((target("pclmul"))) uint32_t by_multiplication(const uint8_t* at, size_t left,
                                                             uint32_t crc) {
  __m128i a = _mm_xor_si128(load(at), _mm_cvtsi32_si128(static_cast<int>(crc)));
  __m128i b = load(at + 16);
  __m128i c = load(at + 32);
  __m128i d = load(at + 48);
  for (at += 64, left -= 64; left >= 64; at += 64, left -= 64) {
    a = _mm_xor_si128(moved<64>(a), load(at));
    b = _mm_xor_si128(moved<64>(b), load(at + 16));
    c = _mm_xor_si128(moved<64>(c), load(at + 32));
    d = _mm_xor_si128(moved<64>(d), load(at + 48));
  }
  b = _mm_xor_si128(b, moved<16>(a));
  c = _mm_xor_si128(c, moved<16>(b));
  d = _mm_xor_si128(d, moved<16>(c));
  std::array<uint8_t, 16> rest;
  std::memcpy(rest.data(), &d, sizeof rest);
  return by_tables(at, left, by_tables(rest.data(), rest.size(), 0));
}

const bool kMultiplies = __builtin_cpu_supports("pclmul") != 0;

#endif

}  // namespace

uint32_t crc32(std::span<const uint8_t> bytes, uint32_t crc) {
#ifdef __x86_64__
  if (kMultiplies && bytes.size() >= 64) {
    return ~by_multiplication(bytes.data(), bytes.size(), ~crc);
  }
#endif
  return ~by_tables(bytes.data(), bytes.size(), ~crc);
}

}  // namespace heapledger::schema
