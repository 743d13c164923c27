// SPDX-License-Identifier: Apache-2.0
#include "schema/fault_batch.h"

#include <iterator>
#include <string>

#include "schema/dictionary.h"
#include "schema/error.h"
#include "schema/packed_columns.h"
#include "schema/time_column.h"

namespace heapledger::schema {
namespace {

constexpr uint32_t kFaultMagic = 0x42464C48;        // "HLFB"
constexpr uint32_t kAttributionMagic = 0x41464C48;  // "HLFA"
constexpr int kPageBits = 12;                       // The cut between the two address columns.

enum FaultSection : size_t {
  kSectionTime,    // schema/time_column.h; first bytes.
  kSectionThread,  // Count; the thread ids; then, if there are several, per row an index.
  kSectionPage,    // Per row: zigzag(address / 4096 - that of the thread's last row).
  kSectionOffset,  // Per row: address % 4096.
  kSectionIps,     // Count; the distinct ips, each as zigzag(difference to the last).
  kSectionIp,      // Per row: index into them.
  kSectionFlags,   // Per row: 1 major, 2 kernel.
  kSectionTimeRest,
  kFaultSections,
};

enum AttributionSection : size_t {
  kSectionTouch,  // Per row: touch, + 8 if it has a block, + 16 if it has a site.
  kSectionBlock,  // Per row that has one: zigzag(block_id - the last one).
  kSectionSite,   // Per row that has one: zigzag(site - the last one).
  kAttributionSections,
};
constexpr uint64_t kHasBlock = 8;
constexpr uint64_t kHasSite = 16;

[[noreturn]] void impossible(const std::string& why) {
  throw Error("cannot decode a packed batch", why);
}

void check_count(size_t rows) {
  if (rows > kBatchFaultsMax) {
    throw Error("cannot encode a batch", std::to_string(rows) + " faults are too many");
  }
}

std::vector<uint8_t> pack(uint32_t magic, size_t rows, std::span<const VarintWriter> sections) {
  PackedWriter packed;
  packed.begin(magic, rows, sections.size());
  for (const VarintWriter& section : sections) packed.add(section.bytes());
  const std::span<const uint8_t> blob = packed.finish();
  return {blob.begin(), blob.end()};
}

// A list as kSectionThread and kSectionIps begin with.
std::vector<uint64_t> read_values(VarintReader& in, size_t rows, bool differences) {
  std::vector<uint64_t> values(in.take_below(rows + 1));
  if (values.empty() && rows > 0) impossible("its list of values is empty");
  uint64_t last = 0;
  for (uint64_t& value : values) {
    value = differences ? last + unzigzag(in.take()) : in.take_below(uint64_t{1} << 32);
    last = value;
  }
  return values;
}

void decode_time(PackedReader& packed, FaultBatch& batch) {
  batch.time_ns.resize(batch.faults);
  NumberColumn numbers;
  read_times({packed.section(kSectionTime), packed.section(kSectionTimeRest)}, numbers,
             batch.time_ns);
}

// Threads and addresses, since the latter are counted per thread.
void decode_addresses(PackedReader& packed, uint32_t columns, FaultBatch& batch) {
  VarintReader in = packed.section(kSectionThread);
  const std::vector<uint64_t> threads = read_values(in, batch.faults, false);
  std::vector<uint32_t> number(batch.faults, 0);
  if (threads.size() > 1) {
    for (uint32_t& value : number) value = static_cast<uint32_t>(in.take_below(threads.size()));
  }
  in.finish();
  if (columns & kFaultThread) {
    batch.thread.resize(batch.faults);
    for (size_t i = 0; i < batch.faults; ++i) {
      batch.thread[i] = static_cast<uint32_t>(threads[number[i]]);
    }
  }
  if ((columns & kFaultAddress) == 0) return;
  VarintReader page_in = packed.section(kSectionPage);
  VarintReader offset_in = packed.section(kSectionOffset);
  std::vector<uint64_t> page(threads.size(), 0);
  batch.address.resize(batch.faults);
  for (size_t i = 0; i < batch.faults; ++i) {
    uint64_t& last = page[number[i]];
    last += unzigzag(page_in.take());
    batch.address[i] = last << kPageBits | offset_in.take_below(1u << kPageBits);
  }
  page_in.finish();
  offset_in.finish();
}

void decode_ip(PackedReader& packed, FaultBatch& batch) {
  VarintReader values_in = packed.section(kSectionIps);
  const std::vector<uint64_t> values = read_values(values_in, batch.faults, true);
  values_in.finish();
  VarintReader in = packed.section(kSectionIp);
  batch.ip.resize(batch.faults);
  for (uint64_t& ip : batch.ip) ip = values[in.take_below(values.size())];
  in.finish();
}

void decode_flags(PackedReader& packed, FaultBatch& batch) {
  VarintReader in = packed.section(kSectionFlags);
  batch.major.resize(batch.faults);
  batch.kernel.resize(batch.faults);
  for (size_t i = 0; i < batch.faults; ++i) {
    const uint64_t flags = in.take_below(4);
    batch.major[i] = flags & 1;
    batch.kernel[i] = static_cast<uint8_t>(flags >> 1);
  }
  in.finish();
}

}  // namespace

const char* touch_name(Touch touch) {
  constexpr const char* kNames[kTouchCount] = {nullptr, "first", "zero_upgrade", "cow", "repeat"};
  const auto index = static_cast<size_t>(touch);
  return index < std::size(kNames) ? kNames[index] : nullptr;
}

std::vector<uint8_t> encode_faults(std::span<const FaultRow> rows) {
  check_count(rows.size());
  VarintWriter out[kFaultSections];
  for (VarintWriter& writer : out) writer.start(2 * rows.size() + 1);
  Dictionary threads, ips;
  threads.start();
  ips.start();
  std::vector<uint64_t> page;  // Per thread.
  std::vector<uint32_t> thread_of_row(rows.size());
  TimeColumnWriter times;
  times.start(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    const FaultRow& row = rows[i];
    if (i > 0 && row.time_ns < rows[i - 1].time_ns) {
      throw Error("cannot encode a batch", "faults are out of order");
    }
    times.put(row.time_ns);
    const uint32_t thread = threads.number(row.thread);
    thread_of_row[i] = thread;
    if (thread == page.size()) page.push_back(0);
    const uint64_t row_page = row.address >> kPageBits;
    out[kSectionPage].put(zigzag(row_page - page[thread]));
    page[thread] = row_page;
    out[kSectionOffset].put(row.address & ((1u << kPageBits) - 1));
    out[kSectionIp].put(ips.number(row.ip));
    out[kSectionFlags].put((row.major ? 1u : 0u) | (row.kernel ? 2u : 0u));
  }
  times.finish({out[kSectionTime], out[kSectionTimeRest]});
  out[kSectionThread].put(threads.values.size());
  for (const uint64_t thread : threads.values) out[kSectionThread].put(thread);
  if (threads.values.size() > 1) {
    for (const uint32_t number : thread_of_row) out[kSectionThread].put(number);
  }
  out[kSectionIps].put(ips.values.size());
  uint64_t last_ip = 0;
  for (const uint64_t ip : ips.values) {
    out[kSectionIps].put(zigzag(ip - last_ip));
    last_ip = ip;
  }
  return pack(kFaultMagic, rows.size(), out);
}

void decode_faults(std::span<const uint8_t> blob, uint32_t columns, FaultBatch& batch) {
  batch = FaultBatch{};
  PackedReader packed;
  batch.faults = packed.open(blob, kFaultMagic, kFaultSections, kBatchFaultsMax);
  batch.columns = columns & kFaultColumnsAll;
  if (columns & kFaultTime) decode_time(packed, batch);
  if (columns & (kFaultThread | kFaultAddress)) decode_addresses(packed, columns, batch);
  if (columns & kFaultIp) decode_ip(packed, batch);
  if (columns & kFaultFlags) decode_flags(packed, batch);
}

FaultRow FaultBatch::row(size_t index) const {
  FaultRow row;
  if (columns & kFaultTime) row.time_ns = time_ns[index];
  if (columns & kFaultThread) row.thread = thread[index];
  if (columns & kFaultAddress) row.address = address[index];
  if (columns & kFaultIp) row.ip = ip[index];
  if (columns & kFaultFlags) {
    row.major = major[index] != 0;
    row.kernel = kernel[index] != 0;
  }
  return row;
}

std::vector<FaultRow> decode_faults(std::span<const uint8_t> blob) {
  FaultBatch batch;
  decode_faults(blob, kFaultColumnsAll, batch);
  std::vector<FaultRow> rows(batch.faults);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = batch.row(i);
  return rows;
}

std::vector<uint8_t> encode_attribution(std::span<const FaultAttribution> rows) {
  check_count(rows.size());
  VarintWriter out[kAttributionSections];
  for (VarintWriter& writer : out) writer.start(rows.size());
  uint64_t last_block = 0;
  uint64_t last_site = 0;
  for (const FaultAttribution& row : rows) {
    if (static_cast<uint8_t>(row.touch) >= kTouchCount) {
      throw Error("cannot encode a batch", "a touch is none");
    }
    out[kSectionTouch].put(static_cast<uint64_t>(row.touch) + (row.block_id != 0 ? kHasBlock : 0) +
                           (row.site != 0 ? kHasSite : 0));
    if (row.block_id != 0) {
      out[kSectionBlock].put(zigzag(row.block_id - last_block));
      last_block = row.block_id;
    }
    if (row.site != 0) {
      out[kSectionSite].put(zigzag(row.site - last_site));
      last_site = row.site;
    }
  }
  return pack(kAttributionMagic, rows.size(), out);
}

std::vector<FaultAttribution> decode_attribution(std::span<const uint8_t> blob) {
  PackedReader packed;
  std::vector<FaultAttribution> rows(
      packed.open(blob, kAttributionMagic, kAttributionSections, kBatchFaultsMax));
  VarintReader touch_in = packed.section(kSectionTouch);
  VarintReader block_in = packed.section(kSectionBlock);
  VarintReader site_in = packed.section(kSectionSite);
  uint64_t last_block = 0;
  uint64_t last_site = 0;
  for (FaultAttribution& row : rows) {
    const uint64_t code = touch_in.take_below(4 * kHasBlock);
    if (code % kHasBlock >= kTouchCount) impossible("a touch is none");
    row.touch = static_cast<Touch>(code % kHasBlock);
    if ((code & kHasBlock) != 0) row.block_id = last_block += unzigzag(block_in.take());
    if ((code & kHasSite) == 0) continue;
    last_site += unzigzag(site_in.take());
    if (last_site > UINT32_MAX) impossible("a stack's number is too large");
    row.site = static_cast<uint32_t>(last_site);
  }
  touch_in.finish();
  block_in.finish();
  site_in.finish();
  return rows;
}

}  // namespace heapledger::schema
