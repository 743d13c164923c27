// SPDX-License-Identifier: Apache-2.0
// Feeds any bytes to the decoder of call batches: rows or an Error, and what it accepted must
// encode and decode to the same rows again. The build for fuzzing leaves checksums unchecked.
#include <cstdlib>

#include "schema/error.h"
#include "schema/event_batch.h"

using namespace heapledger::schema;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const uint8_t> blob(data, size);
  CallDecoder decoder;
  CallBatch batch;
  // Each column alone as well: they depend on one another in different ways.
  for (uint32_t column = 1; column < kColumnsAll; column <<= 1) {
    try {
      decoder.decode(blob, column, batch);
    } catch (const Error&) {
    }
  }
  std::vector<CallRow> rows;
  try {
    rows = decode_calls(blob);
  } catch (const Error&) {
    return 0;
  }
  if (decode_calls(encode_calls(rows)) != rows) std::abort();
  return 0;
}
