// SPDX-License-Identifier: Apache-2.0
// How fast models are: whatif_speed TRACE [MODELS]. One reading feeds that many models with
// different thresholds, on two threads; prints the time per operation and model. Not a test.
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <thread>
#include <vector>

#include "analyzer/whatif/model.h"

namespace {

using heapledger::analyzer::Model;
using heapledger::analyzer::Op;

double now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace heapledger;
  if (argc < 2) return std::fputs("usage: whatif_speed TRACE [MODELS]\n", stderr), 2;
  const size_t count = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 200;
  schema::Database db = schema::open_trace(argv[1], schema::OpenMode::kReadOnly);
  const analyzer::TraceInfo info = analyzer::load_trace_info(db);
  std::vector<std::unique_ptr<Model>> models;
  for (size_t i = 0; i < count; ++i) {
    analyzer::ModelOptions options;
    options.settings = analyzer::recorded_settings(db, info, 1);
    options.settings.mmap_threshold = size_t{4096} << (i % 16);
    options.settings.threshold_is_dynamic = i % 2 == 0;
    options.settings.top_pad = size_t{4096} * (i / 16);
    options.space.residency = i % 4 == 3;
    models.push_back(analyzer::make_model(options));
  }
  analyzer::RecordedOps reader(db, info, 1);
  std::vector<Op> ops;
  size_t total = 0;
  double reading = 0;
  const double begin = now();
  for (;;) {
    const double before = now();
    const bool more = reader.next_chunk(ops);
    reading += now() - before;
    if (!more) break;
    total += ops.size();
    const auto run = [&](size_t first) {
      for (size_t i = first; i < models.size(); i += 2) models[i]->run(ops);
    };
    std::thread other(run, 1);
    run(0);
    other.join();
  }
  const double seconds = now() - begin;
  std::printf(
      "%zu operations, %zu models, two threads: %.2f s; reading %.0f ns per operation, "
      "models %.0f ns per operation and model and thread\n",
      total, count, seconds, reading / static_cast<double>(total) * 1e9,
      (seconds - reading) / static_cast<double>(total * count) * 2e9);
  return 0;
}
