// SPDX-License-Identifier: Apache-2.0
#include "schema/site_batch.h"

#include <string>

#include "schema/error.h"
#include "schema/packed_columns.h"

namespace heapledger::schema {
namespace {

constexpr uint32_t kSiteMagic = 0x49534C48;  // "HLSI"

// What a value is stored as the difference to: what it mostly is or is near to.
enum class Base : uint8_t {
  kNone,       // Nothing: the value itself.
  kRowBefore,  // The same column of the row before.
  kSameRow,    // `column` of the same row, which has a lower number.
};
struct Prediction {
  Base base = Base::kNone;
  SiteColumn column = kSiteStack;
};

// Stacks are numbered as they are first seen, so `first_ns` ascends nearly.
constexpr auto kPredictions = [] {
  std::array<Prediction, kSiteColumns> predictions{};
  predictions[kSiteStack] = {Base::kRowBefore};
  predictions[kSiteFirstNs] = {Base::kRowBefore};
  predictions[kSiteLiveBytesEnd] = {Base::kSameRow, kSiteLiveBytesPeak};
  predictions[kSiteLiveBlocksEnd] = {Base::kSameRow, kSiteLiveBlocksPeak};
  predictions[kSiteLastNs] = {Base::kSameRow, kSiteFirstNs};
  return predictions;
}();

uint64_t predicted(std::span<const SiteRow> rows, size_t row, size_t column) {
  const Prediction& prediction = kPredictions[column];
  switch (prediction.base) {
    case Base::kNone:
      return 0;
    case Base::kRowBefore:
      return row == 0 ? 0 : static_cast<uint64_t>(rows[row - 1][column]);
    case Base::kSameRow:
      return static_cast<uint64_t>(rows[row][prediction.column]);
  }
  return 0;
}

}  // namespace

std::vector<uint8_t> encode_sites(std::span<const SiteRow> rows) {
  if (rows.size() > kBatchSitesMax) {
    throw Error("cannot encode a batch", std::to_string(rows.size()) + " sites are too many");
  }
  for (size_t row = 1; row < rows.size(); ++row) {
    if (rows[row][kSiteStack] <= rows[row - 1][kSiteStack]) {
      throw Error("cannot encode a batch", "its sites are out of order");
    }
  }
  PackedWriter packed;
  packed.begin(kSiteMagic, rows.size(), kSiteColumns);
  VarintWriter out;
  for (size_t column = 0; column < kSiteColumns; ++column) {
    out.start(rows.size());
    for (size_t row = 0; row < rows.size(); ++row) {
      out.put(zigzag(static_cast<uint64_t>(rows[row][column]) - predicted(rows, row, column)));
    }
    packed.add(out.bytes());
  }
  const std::span<const uint8_t> blob = packed.finish();
  return {blob.begin(), blob.end()};
}

std::vector<SiteRow> decode_sites(std::span<const uint8_t> blob) {
  PackedReader packed;
  std::vector<SiteRow> rows(packed.open(blob, kSiteMagic, kSiteColumns, kBatchSitesMax));
  for (size_t column = 0; column < kSiteColumns; ++column) {
    VarintReader in = packed.section(column);
    for (size_t row = 0; row < rows.size(); ++row) {
      rows[row][column] = static_cast<int64_t>(predicted(rows, row, column) + unzigzag(in.take()));
    }
    in.finish();
  }
  for (size_t row = 1; row < rows.size(); ++row) {
    if (rows[row][kSiteStack] <= rows[row - 1][kSiteStack]) VarintReader::fail();
  }
  return rows;
}

}  // namespace heapledger::schema
