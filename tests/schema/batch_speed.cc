// SPDX-License-Identifier: Apache-2.0
// Measures the packed batches on a plausible stream: bytes per event, and events per second
// encoded, decoded, read back in order from a trace file, and queried with SQL. Not a test: run it
// by hand on a quiet machine.
//     cmake --build --preset release --target batch_speed
//     build/release/tests/schema/batch_speed
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <vector>

#include "schema/event_batch_format.h"
#include "schema/event_reader.h"
#include "schema/packed_columns.h"
#include "schema/trace_db.h"
#include "tests/schema/plausible_calls.h"

using namespace heapledger::schema;

namespace {

constexpr size_t kBatches = 16;
constexpr size_t kEvents = kBatches * kBatchEvents;

// The best of some runs, in million events a second: other programs only ever slow it down.
template <typename Work>
double speed(Work work) {
  double best = 0;
  for (int run = 0; run < 7; ++run) {
    const auto start = std::chrono::steady_clock::now();
    work();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(kEvents) / took.count() / 1e6);
  }
  return best;
}

void print_sections(const std::vector<uint8_t>& blob) {
  fmt::print("  bytes per event by section:");
  for (size_t section = 0; section < kCallSections; ++section) {
    const size_t entry = kPackedHeaderBytes + section * kPackedDirectoryBytes;
    uint32_t packed;
    std::memcpy(&packed, &blob[entry + 4], sizeof(packed));
    fmt::print(" {:.2f}", static_cast<double>(packed) / static_cast<double>(kBatchEvents));
  }
  fmt::print("\n");
}

void measure_file(const std::vector<std::vector<CallRow>>& batches, const char* name) {
  const std::string path = (std::filesystem::temp_directory_path() / "batch_speed.db").string();
  Database db = create_trace(path, true);
  {
    Transaction transaction(db);
    for (const auto& rows : batches) {
      db.prepare(
            "INSERT INTO event_batch(process, events, time_min_ns, time_max_ns, data) "
            "VALUES (1, ?, ?, ?, ?)")
          .run_with(rows.size(), rows.front().time_ns, rows.back().time_ns, encode_calls(rows));
    }
    transaction.commit();
  }
  db = open_trace(path, OpenMode::kReadOnly);
  uint64_t sum = 0;
  const double rows = speed([&] {
    CallReader reader(db, 1);
    CallRow row;
    while (reader.next(row)) sum += row.size;
  });
  const double runs = speed([&] {
    CallReader reader(db, 1);
    CallRun run;
    while (reader.next_run(run)) {
      for (size_t i = run.begin; i < run.end; ++i) sum += run.batch->size[i];
    }
  });
  const auto query = [&](const char* sql) { return speed([&] { db.query_int(sql); }); };
  fmt::print("  {}: M rows/s: next {:.1f}, next_run {:.1f}, count(*) {:.1f}, ", name, rows, runs,
             query("SELECT count(*) FROM event"));
  fmt::print("sum(size) of a kind {:.1f}, group by stack {:.1f}\n",
             query("SELECT sum(size) FROM event WHERE kind = 'malloc'"),
             query("SELECT count(*) FROM event GROUP BY stack"));
  std::filesystem::remove(path);
  if (sum == 0) fmt::print("nothing was read\n");
}

void measure(uint32_t threads) {
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
  CallEncoder encoder;
  CallDecoder decoder;
  CallBatch columns;
  const double encode = speed([&] {
    for (const auto& batch : rows) encoder.encode(batch);
  });
  const auto decode = [&](uint32_t mask) {
    return speed([&] {
      for (const auto& blob : blobs) decoder.decode(blob, mask, columns);
    });
  };
  fmt::print("{} threads: {:.2f} bytes/event; M events/s: encode {:.1f}, decode {:.1f}, ", threads,
             static_cast<double>(bytes) / static_cast<double>(kEvents), encode,
             decode(kColumnsAll));
  fmt::print("kind and size {:.1f}, stack {:.1f}\n", decode(kColumnKind | kColumnSize),
             decode(kColumnStack));
  print_sections(blobs[0]);
  measure_file(rows, "in sequence");
  // The same rows, dealt to pairs of batches that overlap.
  for (size_t i = 0; i + 1 < kBatches; i += 2) {
    std::vector<CallRow> both = rows[i];
    both.insert(both.end(), rows[i + 1].begin(), rows[i + 1].end());
    for (size_t k = 0; k < kBatchEvents; ++k) {
      rows[i][k] = both[2 * k];
      rows[i + 1][k] = both[2 * k + 1];
    }
  }
  measure_file(rows, "overlapping");
}

}  // namespace

int main() {
  for (const uint32_t threads : {1u, 4u, 16u}) measure(threads);
}
