// SPDX-License-Identifier: Apache-2.0
// Events per second of the final pass: replay_speed FILE [MILLION_EVENTS] writes a synthetic trace
// (mixed sizes, up to 100,000 live blocks, 1,000 stacks, 4 threads) where FILE is missing, then
// times its parts.
#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <random>

#include "analyzer/finalize/accounts.h"
#include "analyzer/finalize/finalize.h"

namespace heapledger::analyzer {
namespace {

using Clock = std::chrono::steady_clock;

void write_trace(const std::string& path, size_t events) {
  constexpr size_t kLiveMax = 100000;
  constexpr uint64_t kHeapStart = 0x10000000;
  constexpr uint64_t kChunk = 1024;
  std::mt19937_64 random(7);
  schema::Database db = schema::create_trace(path, true);
  schema::Transaction transaction(db);
  schema::set_meta(db, "fault_source", "perf");
  schema::set_meta(db, "ns_per_fault", int64_t{1000});
  db.exec(
      fmt::format("INSERT INTO process(id, pid, recorded, heap_start, start_ns, end_ns)"
                  " VALUES (1, 1, 1, {}, 0, {})",
                  kHeapStart, events * 100));
  for (int stack = 1; stack <= 1000; ++stack) {
    db.exec(fmt::format("INSERT INTO stack VALUES ({}, {}, 2)", stack, stack / 2));
  }
  db.exec(
      fmt::format("INSERT INTO syscall VALUES (0, 1, 1, 'brk', {0}, 0, 0, 0, 0, 0, {0}, 10,"
                  " 'grow top', 'allocator', 1)",
                  kHeapStart + kLiveMax * kChunk));
  struct Live {
    uint64_t id, address;
  };
  std::vector<Live> live;
  std::vector<uint64_t> places;
  for (uint64_t i = kLiveMax; i-- > 0;) places.push_back(kHeapStart + i * kChunk + 16);
  uint64_t sequence[4] = {};
  std::vector<schema::CallRow> rows;
  const auto flush = [&] {
    db.prepare(
          "INSERT INTO event_batch(process, events, time_min_ns, time_max_ns, data)"
          " VALUES (1, ?, ?, ?, ?)")
        .run_with(rows.size(), rows.front().time_ns, rows.back().time_ns,
                  schema::encode_calls(rows));
    rows.clear();
  };
  for (size_t i = 0; i < events; ++i) {
    schema::CallRow row;
    row.time_ns = row.ended_ns = static_cast<int64_t>(i * 100);
    const uint64_t slot = random() % 4;
    row.thread = static_cast<uint32_t>(slot + 1);
    if (places.empty() || (!live.empty() && random() % 100 < 49)) {
      const size_t victim = random() % 4 == 0 ? random() % live.size() : live.size() - 1;
      row.kind = schema::EventKind::kFree;
      row.ended_id = live[victim].id;
      row.address = live[victim].address;
      places.push_back(row.address);
      live[victim] = live.back();
      live.pop_back();
    } else {
      row.id = schema::make_id(slot, ++sequence[slot]);
      row.address = places.back();
      places.pop_back();
      row.size = 1 + random() % 1000;
      row.usable = schema::usable_by_rule(row.size);
      row.stack = static_cast<uint32_t>(1 + random() % 1000);
      live.push_back({row.id, row.address});
    }
    rows.push_back(row);
    if (rows.size() == schema::kBatchEvents) flush();
  }
  if (!rows.empty()) flush();
  transaction.commit();
}

template <typename Work>
void time_it(const char* what, size_t events, Work work) {
  const auto start = Clock::now();
  work();
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  fmt::print("{:<28} {:6.2f} s  {:6.2f} M events/s\n", what, seconds,
             static_cast<double>(events) / seconds / 1e6);
}

int run(const std::string& path, size_t events) {
  if (!std::filesystem::exists(path)) write_trace(path, events);
  schema::Database db = schema::open_trace(path, schema::OpenMode::kReadWrite);
  events = static_cast<size_t>(db.query_int("SELECT sum(events) FROM event_batch").value_or(0));
  const TraceInfo info = load_trace_info(db);
  time_it("read only", events, [&] {
    schema::CallReader reader(db, 1);
    schema::CallRow row;
    while (reader.next(row)) {
    }
  });
  time_it("replay", events, [&] {
    Replay replay(db, info, 1, {});
    replay.run_to_end();
  });
  time_it("replay with accounts", events, [&] {
    Accounts accounts(0, info.end_ns, info.processes.front().events, {});
    ReplayOptions options;
    options.observer = &accounts;
    Replay replay(db, info, 1, options);
    replay.run_to_end();
    accounts.finish(replay);
  });
  schema::set_meta(db, "finalized", int64_t{0});
  time_it("finalize", events, [&] { finalize(db); });
  return 0;
}

}  // namespace
}  // namespace heapledger::analyzer

int main(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "usage: replay_speed FILE [MILLION_EVENTS]\n");
    return 2;
  }
  const size_t millions = argc > 2 ? std::stoul(argv[2]) : 10;
  return heapledger::analyzer::run(argv[1], millions * 1'000'000);
}
