// SPDX-License-Identifier: Apache-2.0
// Not a test: how fast a recorded stream is packed, by hand.
//
//     HEAPLEDGER_DUMP=cc1plus.dump heapledger record -- cc1plus ...
//     packing_speed cc1plus.dump [ROUNDS]
//
// Gives the whole stream to the writer, ROUNDS times, as fast as it takes it, and prints the best
// round: events a second on one core, and what each stage took. The trace goes to the folder of
// the dump and is removed.
#include <fmt/format.h>
#include <sys/prctl.h>
#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <functional>

#include "interposer/collector/recorder.h"
#include "interposer/collector/stream_dump.h"
#include "schema/error.h"

namespace {

using namespace heapledger;
using namespace heapledger::collector;

// Of this thread: other work on the machine does not count.
int64_t cpu_now_ns() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

struct Round {
  double seconds;  // Of the processor.
  uint64_t events;
  uint64_t lost;
  uint64_t bytes;
};

// The recorder takes what lies after now for damage: the dump's times are moved to just before it.
void move_to_now(LoadedDump& dump) {
  int64_t last = dump.begin.second.raw_ns;
  for (const Message& message : dump.messages) {
    if (const auto* window = std::get_if<Window>(&message)) {
      last = std::max(last, window->began_raw_ns);
    }
  }
  const int64_t shift = raw_now_ns() - last;
  dump.begin.origin_raw_ns += shift;
  dump.begin.first.raw_ns += shift;
  dump.begin.second.raw_ns += shift;
  for (Message& message : dump.messages) {
    if (auto* image = std::get_if<ImageJoined>(&message)) image->raw_ns += shift;
    if (auto* window = std::get_if<Window>(&message)) {
      window->began_raw_ns += shift;
      if (window->pair) window->pair->raw_ns += shift;
    }
  }
}

Round run(const std::string& path) {
  LoadedDump dump = load_dump(path);
  move_to_now(dump);
  const std::string trace = path + ".db";
  PerfFaults perf;
  Round round{};
  {
    TraceWriter writer(trace, true);
    Recorder recorder(writer, perf, ClockMap(dump.begin.clock, dump.begin.first, dump.begin.second),
                      dump.begin.origin_raw_ns,
                      {[](pid_t) {}, [](uint64_t) {},
                       [](const std::string& why) {
                         fmt::print(stderr, "packing_speed: {}\n", why);
                         std::exit(1);
                       }});
    // For `perf report --comm packing`: what was measured, without the loading of the dump.
    prctl(PR_SET_NAME, "packing");
    const int64_t start = cpu_now_ns();
    for (Message& message : dump.messages) recorder.handle(std::move(message));
    recorder.handle(Finish{raw_now_ns(), 0});
    round.seconds = static_cast<double>(cpu_now_ns() - start) * 1e-9;
    prctl(PR_SET_NAME, "loading");
    round.events = recorder.counters().events;
    round.lost = recorder.counters().lost;
  }
  round.bytes = std::filesystem::file_size(trace);
  std::filesystem::remove(trace);
  return round;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "usage: packing_speed DUMP [ROUNDS]\n");
    return 2;
  }
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 5;
  try {
    Round best{};
    for (int i = 0; i < rounds; ++i) {
      const Round round = run(argv[1]);
      if (i == 0 || round.seconds < best.seconds) best = round;
    }
    const auto events = static_cast<double>(best.events);
    fmt::print(
        "{} events, {} lost: {:.1f} ms = {:.2f} M events/s, {:.1f} ns/event; {:.2f} bytes/event\n",
        best.events, best.lost, best.seconds * 1e3, events / best.seconds * 1e-6,
        best.seconds / events * 1e9, static_cast<double>(best.bytes) / events);
  } catch (const schema::Error& error) {
    fmt::print(stderr, "packing_speed: {}\n", error.what());
    return 1;
  }
  return 0;
}
