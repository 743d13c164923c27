// SPDX-License-Identifier: Apache-2.0
// Measures the packed batches on a plausible stream: bytes per event, and events per second in
// both directions. Not a test: run it by hand on a quiet machine.
//     cmake --build --preset release --target batch_speed && build/release/tests/schema/batch_speed
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "schema/event_batch_format.h"
#include "schema/packed_columns.h"
#include "tests/schema/plausible_calls.h"

using namespace heapledger::schema;

namespace {

// The best of some runs, in million events a second: other programs only ever slow it down.
template <typename Work>
double speed(size_t events, Work work) {
  double best = 0;
  for (int run = 0; run < 15; ++run) {
    const auto start = std::chrono::steady_clock::now();
    work();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(events) / took.count() / 1e6);
  }
  return best;
}

void measure(uint32_t threads) {
  constexpr size_t kBatches = 8;
  PlausibleCalls calls(1, threads);
  calls.take(kBatchEvents);  // Let the heap fill.
  std::vector<std::vector<CallRow>> rows(kBatches);
  std::vector<std::vector<uint8_t>> blobs;
  size_t bytes = 0;
  for (auto& batch : rows) {
    batch = calls.take(kBatchEvents);
    blobs.push_back(encode_calls(batch));
    bytes += blobs.back().size();
  }
  const size_t events = kBatches * kBatchEvents;
  CallEncoder encoder;
  CallDecoder decoder;
  CallBatch columns;
  const double encode = speed(events, [&] {
    for (const auto& batch : rows) encoder.encode(batch);
  });
  const auto decode = [&](uint32_t mask) {
    return speed(events, [&] {
      for (const auto& blob : blobs) decoder.decode(blob, mask, columns);
    });
  };
  fmt::print("{} threads: {:.2f} bytes/event; M events/s: encode {:.1f}, decode {:.1f}, ", threads,
             static_cast<double>(bytes) / static_cast<double>(events), encode, decode(kColumnsAll));
  fmt::print("kind+size {:.1f}, stack {:.1f}\n", decode(kColumnKind | kColumnSize),
             decode(kColumnStack));
  fmt::print("  first batch, packed bytes per section:");
  for (size_t section = 0; section < kCallSections; ++section) {
    const size_t entry = kPackedHeaderBytes + section * kPackedDirectoryBytes;
    uint32_t packed;
    std::memcpy(&packed, &blobs[0][entry + 4], sizeof(packed));
    fmt::print(" {}", packed);
  }
  fmt::print("\n");
}

}  // namespace

int main() {
  measure(1);
  measure(4);
  measure(16);
}
