// SPDX-License-Identifier: Apache-2.0
// Ways to damage a packed blob, for the tests of its decoders.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "schema/crc32.h"
#include "schema/packed_columns.h"

namespace heapledger::schema {

// Calls visit(cut blob) for every shorter length.
template <typename Visit>
void for_each_cut(const std::vector<uint8_t>& blob, Visit visit) {
  for (size_t length = 0; length < blob.size(); ++length) {
    visit(std::vector<uint8_t>(blob.begin(), blob.begin() + static_cast<ptrdiff_t>(length)));
  }
}

// Calls visit(damaged blob, byte) for every byte with some bits flipped: each alone, and all.
template <typename Visit>
void for_each_flip(const std::vector<uint8_t>& blob, Visit visit) {
  for (size_t at = 0; at < blob.size(); ++at) {
    for (const int bits : {0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff}) {
      std::vector<uint8_t> bad = blob;
      bad[at] = static_cast<uint8_t>(bad[at] ^ bits);
      visit(bad, at);
    }
  }
}

// Makes every checksum right again, as far as header and directory still allow to find it.
inline void fix_checksums(std::vector<uint8_t>& blob) {
  const std::span<const uint8_t> bytes(blob);
  if (blob.size() < kPackedHeaderBytes) return;
  uint16_t sections;
  std::memcpy(&sections, &blob[6], sizeof(sections));
  const size_t directory = sections * kPackedDirectoryBytes;
  if (blob.size() < kPackedHeaderBytes + directory) return;
  size_t at = kPackedHeaderBytes + directory;
  for (size_t i = 0; i < sections; ++i) {
    uint8_t* entry = &blob[kPackedHeaderBytes + i * kPackedDirectoryBytes];
    uint32_t packed;
    std::memcpy(&packed, entry + 4, sizeof(packed));
    if (packed > blob.size() - at) break;
    const uint32_t crc = crc32(bytes.subspan(at, packed));
    std::memcpy(entry + 8, &crc, sizeof(crc));
    at += packed;
  }
  const uint32_t crc = crc32(bytes.subspan(kPackedHeaderBytes, directory), crc32(bytes.first(12)));
  std::memcpy(&blob[12], &crc, sizeof(crc));
}

// Sixteen bytes a line.
inline std::string hex_lines(std::span<const uint8_t> bytes) {
  std::string text;
  for (size_t i = 0; i < bytes.size(); ++i) {
    char byte[4];
    std::snprintf(byte, sizeof(byte), "%02x", unsigned{bytes[i]});
    text += byte;
    text += i % 16 == 15 || i + 1 == bytes.size() ? '\n' : ' ';
  }
  return text;
}

}  // namespace heapledger::schema
