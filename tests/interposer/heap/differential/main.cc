// SPDX-License-Identifier: Apache-2.0
//
// heap_differential: random sequences of calls, on the system's glibc in a child process and on the
// Glibc-layout model here; every address, size, system call and number must be the same.
//
//   heap_differential [--seeds N] [--first-seed N] [--ops N] [--threads] [--dump]
//   heap_differential --trace FILE --process N
//   heap_differential --driver FILE --glibc 2.43   another glibc: FILE is glibc_driver.c linked
//   with
//       -Wl,--dynamic-linker=DIR/ld-linux-x86-64.so.2 -Wl,-rpath=DIR, DIR holding that version
//
// CI runs 1,000 seeds, and 500 with threads. The long run, by hand, half an hour each:
//   heap_differential --seeds 100000; heap_differential --threads --seeds 100000
// One seed again, with its sequence and glibc's system calls: --first-seed N --seeds 1 --dump
#include <fmt/format.h>
#include <gnu/libc-version.h>
#include <sys/personality.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "interposer/heap/glibc_version.h"
#include "tests/interposer/heap/differential/comparison.h"
#include "tests/interposer/heap/differential/recorded_sequence.h"
#include "tests/interposer/heap/differential/scripted_os.h"

namespace heapledger::heap::differential {
namespace {

// The driver's addresses must be free here. Without randomisation it has its mappings below the
// stack; with the old layout and a position-independent program this process has none of its own
// there.
void leave_driver_addresses(char** argv) {
  const int now = personality(0xffffffff);
  const unsigned long wanted = ADDR_NO_RANDOMIZE | ADDR_COMPAT_LAYOUT;
  if (now >= 0 && (static_cast<unsigned long>(now) & wanted) == wanted) return;
  if (personality(static_cast<unsigned long>(now) | wanted) >= 0) execv("/proc/self/exe", argv);
  fmt::print(stderr, "heap_differential: personality: {}\n", std::strerror(errno));
  std::exit(1);
}

struct Options {
  uint64_t seeds = 1000;
  uint64_t first_seed = 1;
  size_t ops = 1500;
  bool threads = false;
  std::string trace;
  int64_t process = 0;
  bool dump = false;
  std::string driver;  // Empty: the one beside this program, on the system's glibc.
  std::string glibc = gnu_get_libc_version();
};

// Beside this program.
std::string driver_path() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path() / "glibc_driver";
}

std::optional<Divergence> try_sequence(Tracer* tracer, const Sequence& sequence) {
  const Recording recording = tracer->run(sequence);
  if (!recording.failure.empty()) return Divergence{0, recording.failure};
  return compare(sequence, recording);
}

// Leaves out calls that the divergence does not need: halves, quarters, ... down to single ones.
Sequence shrink(Tracer* tracer, Sequence sequence, Divergence* divergence) {
  sequence.ops.resize(std::min(sequence.ops.size(), divergence->op + 1));
  for (size_t part = sequence.ops.size() / 2; part > 0; part /= 2) {
    for (size_t at = 0; at + part <= sequence.ops.size();) {
      Sequence smaller = sequence;
      const auto first = smaller.ops.begin() + static_cast<ptrdiff_t>(at);
      smaller.ops.erase(first, first + static_cast<ptrdiff_t>(part));
      const std::optional<Divergence> still = try_sequence(tracer, smaller);
      if (!still || smaller.ops.empty()) {
        at += part;
        continue;
      }
      *divergence = *still;
      sequence = std::move(smaller);
    }
  }
  return sequence;
}

void print_sequence(const Sequence& sequence, const Recording& recording) {
  for (const std::string& entry : sequence.environment) fmt::print("    {}\n", entry);
  size_t next = 0;
  for (size_t i = 0; i < sequence.ops.size(); ++i) {
    fmt::print("    {:5}  {}", i, to_text(sequence.ops[i]));
    if (recording.failure.empty()) fmt::print(" -> {:#x}", recording.results[i].value);
    fmt::print("\n");
    for (; next < recording.calls.size() && recording.calls[next].op == static_cast<int64_t>(i);
         ++next) {
      fmt::print("             {}\n", to_text(recording.calls[next]));
    }
  }
}

// What holds only after all calls has no call of its own.
std::string op_text(const Sequence& sequence, size_t op) {
  return op < sequence.ops.size() ? to_text(sequence.ops[op]) : "the end";
}

void report(Tracer* tracer, const Sequence& sequence, Divergence divergence) {
  fmt::print("seed {}: call {} ({}): {}\n", sequence.seed, divergence.op,
             op_text(sequence, divergence.op), divergence.what);
  const Sequence smallest = shrink(tracer, sequence, &divergence);
  fmt::print("  the shortest sequence that differs, {} calls: call {}: {}\n", smallest.ops.size(),
             divergence.op, divergence.what);
  print_sequence(smallest, tracer->run(smallest));
  std::fflush(stdout);
}

// The calls of a recorded program instead of random ones.
int run_recorded(Tracer* tracer, const Options& options) {
  Sequence sequence = recorded_sequence(options.trace, options.process);
  sequence.glibc_version = parse_glibc_version(options.glibc.c_str());
  const Recording recording = tracer->run(sequence);
  if (!recording.failure.empty()) throw std::runtime_error(recording.failure);
  if (options.dump) print_sequence(sequence, recording);
  const std::optional<Divergence> divergence = compare(sequence, recording);
  fmt::print("{}: {} calls, {} system calls, {}\n", options.trace, sequence.ops.size(),
             recording.calls.size(), divergence ? "a divergence" : "no divergence");
  if (!divergence) return 0;
  fmt::print("call {} ({}): {}\n", divergence->op, op_text(sequence, divergence->op),
             divergence->what);
  return 1;
}

int run(const Options& options) {
  const uint16_t version = parse_glibc_version(options.glibc.c_str());
  if (version < kGlibcOldest || version > kGlibcNewest) {
    fmt::print("skipped: there is no model of glibc {}\n", options.glibc);
    return 0;
  }
  if (const std::string taken = driver_addresses_taken(); !taken.empty()) {
    fmt::print(stderr, "heap_differential: addresses: not free here: {}\n", taken);
    return 1;
  }
  Tracer tracer(options.driver.empty() ? driver_path() : options.driver);
  if (!options.trace.empty()) return run_recorded(&tracer, options);
  const auto begin = std::chrono::steady_clock::now();
  uint64_t calls = 0;
  uint64_t system_calls = 0;
  uint64_t divergences = 0;
  uint64_t seeds = 0;
  uint64_t aborted = 0;
  for (uint64_t seed = options.first_seed; seed < options.first_seed + options.seeds; ++seed) {
    Sequence sequence = make_sequence(seed, options.ops, options.threads);
    sequence.glibc_version = version;
    const Recording recording = tracer.run(sequence);
    if (!recording.failure.empty()) {
      fmt::print(stderr, "heap_differential: seed {}: {}\n", seed, recording.failure);
      return 1;
    }
    if (options.dump) print_sequence(sequence, recording);
    ++seeds;
    calls += recording.ops_done;
    if (recording.ops_done < sequence.ops.size()) ++aborted;
    system_calls += recording.calls.size();
    if (const auto divergence = compare(sequence, recording)) {
      report(&tracer, sequence, *divergence);
      if (++divergences == 5) break;
    }
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  fmt::print("{} seeds from {}: {} calls, {} system calls, {} divergences, {:.1f} s\n", seeds,
             options.first_seed, calls, system_calls, divergences, seconds.count());
  if (aborted != 0) fmt::print("{} of them up to an assertion of glibc's own\n", aborted);
  return divergences == 0 ? 0 : 1;
}

}  // namespace
}  // namespace heapledger::heap::differential

int main(int argc, char** argv) {
  using namespace heapledger::heap::differential;
  leave_driver_addresses(argv);
  Options options;
  CLI::App app("compares the allocator's Glibc layout with the system's glibc");
  app.add_option("--seeds", options.seeds, "how many sequences");
  app.add_option("--first-seed", options.first_seed, "the first one's number");
  app.add_option("--ops", options.ops, "calls in each");
  app.add_flag("--threads", options.threads, "sequences of several threads");
  app.add_option("--trace", options.trace, "the calls of a recorded program instead");
  app.add_option("--process", options.process, "its row in the trace's table of processes");
  app.add_option("--driver", options.driver, "glibc_driver, linked with another glibc");
  app.add_option("--glibc", options.glibc, "that glibc's version");
  app.add_flag("--dump", options.dump, "print each sequence and glibc's system calls");
  CLI11_PARSE(app, argc, argv);
  try {
    return run(options);
  } catch (const std::exception& error) {
    fmt::print(stderr, "heap_differential: {}\n", error.what());
    return 1;
  }
}
