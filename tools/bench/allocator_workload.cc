// SPDX-License-Identifier: Apache-2.0
// allocator_workload: one pattern of allocation per run, timed from inside, for
// tools/bench/allocator.
//
//   allocator_workload NAME [SCALE]        runs a workload; SCALE multiplies its number of calls
//   allocator_workload --list              one line per workload: its name
//   allocator_workload --run COMMAND...    runs a program and measures it from outside
//
// Prints one line, "calls wall_ns cpu_ns rss_start_kib rss_peak_kib". Which allocator serves it is
// the caller's choice (LD_PRELOAD; for --run the variable WORKLOAD_PRELOAD, so that this process
// stays small: a program's peak RSS includes that of the process that starts it). Everything is a
// function of fixed seeds: each run makes the same calls.
#include <fcntl.h>
#include <malloc.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <deque>
#include <latch>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

extern char** environ;

namespace {

constexpr size_t kKiB = 1024;
constexpr size_t kMiB = kKiB * kKiB;

// xorshift64*: a few instructions, so that what is measured is the allocator.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ULL + 1) {}
  uint64_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return (state_ * 0x2545f4914f6cdd1dULL) >> 16;
  }
  size_t below(size_t limit) { return static_cast<size_t>(next() % limit); }
  size_t between(size_t low, size_t high) { return low + below(high - low + 1); }

 private:
  uint64_t state_;
};

// As programs ask: eight of ten small, a few of some KiB.
size_t mixed_size(Random& random) {
  const uint64_t kind = random.below(100);
  if (kind < 80) return random.between(8, 256);
  if (kind < 96) return random.between(257, 2048);
  return random.between(2049, 16384);
}

struct Block {
  char* memory = nullptr;
  size_t size = 0;
};

// The program's first write to each block is part of every workload: a header that is on a line of
// its own would show here.
Block make_block(size_t size) {
  auto* memory = static_cast<char*>(std::malloc(size));
  if (memory == nullptr) std::abort();
  std::memcpy(memory, &size, sizeof(size));
  return {memory, size};
}

void replace(Block& block, size_t size) {
  std::free(block.memory);
  block = make_block(size);
}

uint64_t nanoseconds(const timespec& time) {
  return static_cast<uint64_t>(time.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(time.tv_nsec);
}
uint64_t wall_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return nanoseconds(now);
}
uint64_t cpu_ns() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return nanoseconds(now);
}

// A line of /proc/self/status in KiB, read without allocating.
unsigned long status_kib(const char* key) {
  std::array<char, 4096> text{};
  const int file = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  const ssize_t length = read(file, text.data(), text.size() - 1);
  close(file);
  const char* line = length > 0 ? std::strstr(text.data(), key) : nullptr;
  return line == nullptr ? 0 : std::strtoul(line + std::strlen(key), nullptr, 10);
}

// What a workload measured: only the part between start() and stop() counts.
struct Meter {
  uint64_t calls = 0;
  uint64_t wall = 0;
  uint64_t cpu = 0;

  void start() {
    wall = wall_ns();
    cpu = cpu_ns();
  }
  void stop(uint64_t calls_made) {
    wall = wall_ns() - wall;
    cpu = cpu_ns() - cpu;
    calls = calls_made;
  }
};

uint64_t scaled(double scale, uint64_t count) {
  return std::max<uint64_t>(1, static_cast<uint64_t>(scale * static_cast<double>(count)));
}

// ---- One thread.

template <size_t size>
void pairs(Meter& meter, double scale) {
  const uint64_t count = scaled(scale, size > 1024 ? 4'000'000 : 12'000'000);
  std::free(make_block(size).memory);
  meter.start();
  for (uint64_t i = 0; i < count; ++i) std::free(make_block(size).memory);
  meter.stop(2 * count);
}

// More blocks than a thread's cache holds, freed in the order they were made.
void batches(Meter& meter, double scale) {
  constexpr size_t kSize = 64;
  const uint64_t count = scaled(scale, 6000);
  std::vector<Block> blocks(1000);
  meter.start();
  for (uint64_t i = 0; i < count; ++i) {
    for (Block& block : blocks) block = make_block(kSize);
    for (Block& block : blocks) std::free(block.memory);
  }
  meter.stop(2 * count * blocks.size());
}

void churn(std::vector<Block>& blocks, Random& random, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i)
    replace(blocks[random.below(blocks.size())], mixed_size(random));
}

void mixed(Meter& meter, double scale) {
  const uint64_t count = scaled(scale, 1'500'000);
  Random random(1);
  std::vector<Block> blocks(100'000);
  for (Block& block : blocks) block = make_block(mixed_size(random));
  meter.start();
  churn(blocks, random, count);
  meter.stop(2 * count);
}

// Blocks of 64 KiB to 1 MiB. With the dynamic threshold the heap serves them after the first few;
// with a fixed one those above 128 KiB come from the system each time.
void large(Meter& meter, double scale, uint64_t full_count) {
  const uint64_t count = scaled(scale, full_count);
  Random random(2);
  std::vector<Block> blocks(32);
  meter.start();
  for (uint64_t i = 0; i < count; ++i) {
    Block& block = blocks[random.below(blocks.size())];
    replace(block, random.between(64 * kKiB, kMiB));
    block.memory[block.size - 1] = 1;
  }
  meter.stop(2 * count);
}
void large_dynamic(Meter& meter, double scale) { large(meter, scale, 300'000); }
void large_fixed(Meter& meter, double scale) {
  mallopt(M_MMAP_THRESHOLD, 128 * kKiB);
  large(meter, scale, 25'000);
}

char* resized(char* old, size_t size) {
  auto* memory = static_cast<char*>(std::realloc(old, size));
  if (memory == nullptr) std::abort();
  memory[size - 1] = 1;
  return memory;
}

// Two hundred strings that grow by half, in turn: some in place, some past their neighbour.
void realloc_small(Meter& meter, double scale) {
  constexpr size_t kLimit = 8 * kKiB;
  const uint64_t rounds = scaled(scale, 300);
  std::vector<Block> strings(200);
  uint64_t calls = 0;
  meter.start();
  for (uint64_t round = 0; round < rounds; ++round) {
    for (size_t size = 16; size < kLimit; size += size / 2) {
      for (Block& string : strings) string = {resized(string.memory, size), size};
      calls += strings.size();
    }
    for (Block& string : strings) {
      std::free(string.memory);
      string.memory = nullptr;
    }
    calls += strings.size();
  }
  meter.stop(calls);
}

// A buffer that doubles until it is larger than any threshold can become: mremap each time.
void realloc_large(Meter& meter, double scale) {
  constexpr size_t kLimit = 64 * kMiB;
  const uint64_t rounds = scaled(scale, 1200);
  uint64_t calls = 0;
  meter.start();
  for (uint64_t round = 0; round < rounds; ++round) {
    char* buffer = nullptr;
    for (size_t size = 256 * kKiB; size <= kLimit; size *= 2, ++calls)
      buffer = resized(buffer, size);
    std::free(buffer);
    ++calls;
  }
  meter.stop(calls);
}

void cleared(Meter& meter, double scale) {
  const uint64_t count = scaled(scale, 1'500'000);
  Random random(3);
  std::vector<Block> blocks(10'000);
  meter.start();
  for (uint64_t i = 0; i < count; ++i) {
    Block& block = blocks[random.below(blocks.size())];
    std::free(block.memory);
    const size_t size = mixed_size(random);
    block = {static_cast<char*>(std::calloc(1, size)), size};
    if (block.memory == nullptr || block.memory[size / 2] != 0) std::abort();
    block.memory[0] = 1;
  }
  meter.stop(2 * count);
}

// ---- Two threads.

void threads_independent(Meter& meter, double scale) {
  const uint64_t count = scaled(scale, 3'000'000);
  std::vector<Block> blocks[2];
  std::latch ready(3);
  std::latch go(1);
  std::latch done(3);
  const auto work = [&](size_t which) {
    Random random(10 + which);
    blocks[which].resize(10'000);
    for (Block& block : blocks[which]) block = make_block(mixed_size(random));
    ready.count_down();
    go.wait();
    churn(blocks[which], random, count);
    done.count_down();
  };
  std::thread first(work, 0);
  std::thread second(work, 1);
  ready.arrive_and_wait();
  meter.start();
  go.count_down();
  done.arrive_and_wait();
  meter.stop(4 * count);
  first.join();
  second.join();
}

// Batches pass through a bounded queue, so that what is timed is malloc and free, not the queue.
class BatchQueue {
 public:
  static constexpr size_t kBatchesMax = 8;

  void push(std::vector<Block>&& batch) {
    std::unique_lock lock(mutex_);
    has_room_.wait(lock, [this] { return batches_.size() < kBatchesMax; });
    batches_.push_back(std::move(batch));
    has_batch_.notify_one();
  }
  std::vector<Block> pop() {
    std::unique_lock lock(mutex_);
    has_batch_.wait(lock, [this] { return !batches_.empty(); });
    std::vector<Block> batch = std::move(batches_.front());
    batches_.pop_front();
    has_room_.notify_one();
    return batch;
  }

 private:
  std::mutex mutex_;
  std::condition_variable has_room_;
  std::condition_variable has_batch_;
  std::deque<std::vector<Block>> batches_;
};

void threads_handover(Meter& meter, double scale) {
  constexpr size_t kBatch = 1000;
  const uint64_t count = scaled(scale, 3000);
  BatchQueue full;
  BatchQueue empty;
  for (size_t i = 0; i < BatchQueue::kBatchesMax; ++i) empty.push(std::vector<Block>(kBatch));
  std::thread consumer([&] {
    for (uint64_t i = 0; i < count; ++i) {
      std::vector<Block> batch = full.pop();
      for (Block& block : batch) std::free(block.memory);
      empty.push(std::move(batch));
    }
  });
  Random random(20);
  meter.start();
  for (uint64_t i = 0; i < count; ++i) {
    std::vector<Block> batch = empty.pop();
    for (Block& block : batch) block = make_block(random.between(16, 512));
    full.push(std::move(batch));
  }
  consumer.join();
  meter.stop(2 * count * kBatch);
}

// As Larson's benchmark: a thread replaces random blocks of an array for a while, then ends and
// leaves the array to its successor, which frees what others allocated.
void larson(Meter& meter, double scale) {
  constexpr size_t kGenerations = 30;
  const uint64_t count = scaled(scale, 120'000);
  std::vector<Block> arrays[2];
  const auto line = [&](size_t which) {
    Random random(30 + which);
    arrays[which].resize(2000);
    for (size_t generation = 0; generation < kGenerations; ++generation) {
      std::thread([&] {
        for (uint64_t i = 0; i < count; ++i) {
          replace(arrays[which][random.below(arrays[which].size())], random.between(16, 1024));
        }
      }).join();
    }
  };
  meter.start();
  std::thread first(line, 0);
  std::thread second(line, 1);
  first.join();
  second.join();
  meter.stop(4 * count * kGenerations);
}

// ---- Choosing one.

struct Workload {
  const char* name;
  void (*run)(Meter&, double);
};
constexpr Workload kWorkloads[] = {
    {"pairs-16", pairs<16>},
    {"pairs-64", pairs<64>},
    {"pairs-512", pairs<512>},
    {"pairs-4096", pairs<4096>},
    {"batches-64", batches},
    {"mixed-100k", mixed},
    {"calloc", cleared},
    {"large", large_dynamic},
    {"large-fixed", large_fixed},
    {"realloc-small", realloc_small},
    {"realloc-mremap", realloc_large},
    {"two-threads", threads_independent},
    {"handover", threads_handover},
    {"larson", larson},
};

void print(const Meter& meter, unsigned long rss_start, unsigned long rss_peak) {
  std::printf("%llu %llu %llu %lu %lu\n", static_cast<unsigned long long>(meter.calls),
              static_cast<unsigned long long>(meter.wall),
              static_cast<unsigned long long>(meter.cpu), rss_start, rss_peak);
}

int run_program(char** command) {
  std::vector<std::string> texts;
  for (char** variable = environ; *variable != nullptr; ++variable) texts.emplace_back(*variable);
  if (const char* preload = std::getenv("WORKLOAD_PRELOAD")) {
    texts.push_back(std::string("LD_PRELOAD=") + preload);
  }
  std::vector<char*> variables;
  for (std::string& text : texts) variables.push_back(text.data());
  variables.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  pid_t child = 0;
  Meter meter;
  meter.start();
  if (posix_spawnp(&child, command[0], &actions, nullptr, command, variables.data()) != 0) return 1;
  int status = 0;
  rusage usage{};
  if (wait4(child, &status, 0, &usage) != child || status != 0) return 1;
  meter.stop(1);
  const timeval user = usage.ru_utime;
  const timeval system = usage.ru_stime;
  meter.cpu = static_cast<uint64_t>(user.tv_sec + system.tv_sec) * 1'000'000'000 +
              static_cast<uint64_t>(user.tv_usec + system.tv_usec) * 1000;
  print(meter, 0, static_cast<unsigned long>(usage.ru_maxrss));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view name = argc > 1 ? argv[1] : "";
  if (name == "--list") {
    for (const Workload& workload : kWorkloads) std::puts(workload.name);
    return 0;
  }
  if (name == "--run" && argc > 2) return run_program(argv + 2);
  for (const Workload& workload : kWorkloads) {
    if (name != workload.name) continue;
    Meter meter;
    const unsigned long rss_start = status_kib("VmRSS:");
    workload.run(meter, argc > 2 ? std::atof(argv[2]) : 1.0);
    print(meter, rss_start, status_kib("VmHWM:"));
    return 0;
  }
  std::fputs("usage: allocator_workload NAME [SCALE] | --list | --run COMMAND...\n", stderr);
  return 2;
}
