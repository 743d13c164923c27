// SPDX-License-Identifier: Apache-2.0
// CRC-32 as zlib and gzip have it: the checksum of packed blobs.
//
// Where the processor multiplies without carries, 64 bytes are folded into the next 64 by a few
// multiplications; else eight bytes are eight looks into tables.
// Thread safety: any. Cost: 0.05 ns a byte, or 0.6 by the tables.
#pragma once

#include <cstdint>
#include <span>

namespace heapledger::schema {

// `crc`: that of what comes before.
uint32_t crc32(std::span<const uint8_t> bytes, uint32_t crc = 0);

}  // namespace heapledger::schema
