// SPDX-License-Identifier: Apache-2.0
// Feeds any bytes to the decoders of fault batches and of attributions; as event_batch_fuzzer.cc.
#include <cstdlib>

#include "schema/error.h"
#include "schema/fault_batch.h"

using namespace heapledger::schema;

namespace {

template <typename Decode, typename Encode>
void check(std::span<const uint8_t> blob, Decode decode, Encode encode) {
  try {
    const auto rows = decode(blob);
    if (decode(encode(rows)) != rows) std::abort();
  } catch (const Error&) {
    // As good an answer: the encoders take whatever the decoders give, so it was the decoder's.
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const uint8_t> blob(data, size);
  check(
      blob, [](std::span<const uint8_t> bytes) { return decode_faults(bytes); },
      [](const std::vector<FaultRow>& rows) { return encode_faults(rows); });
  check(
      blob, [](std::span<const uint8_t> bytes) { return decode_attribution(bytes); },
      [](const std::vector<FaultAttribution>& rows) { return encode_attribution(rows); });
  return 0;
}
