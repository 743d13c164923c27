// SPDX-License-Identifier: Apache-2.0
// overhead_workload: calls of malloc and free under call stacks of a chosen shape, timed from
// inside, for tools/bench/overhead.
//
//   overhead_workload NAME [SCALE]   runs a workload; SCALE multiplies its number of calls
//   overhead_workload --list         one line per workload that the table shows: its name
//
// NAME is SHAPE-DEPTH, then any of "-live" and "-threads". SHAPE says how one stack follows
// another:
//   same    each call comes from the same place: a loop in the innermost function
//   tree    a call tree is walked over and over; its last five levels have two branches each, and
//           each function on them makes calls of its own, as those of programs do
//   random  each pair of calls comes from a new random path: no stack is seen twice
// DEPTH counts the program's own frames; main, libc's start and _start add four. The functions
// differ as compiled ones do: frames of different sizes, frames addressed by rbp (alloca), frames
// realigned for a local of 64 bytes.
//   (pairs)   malloc, first write, free
//   -live     100,000 blocks live; each step frees one of them, by chance, and makes another
//   -threads  two threads, each with work of its own; time is that of the slower
// `faults` has no calls: it touches each page of a fresh mapping once, and the figures are per
// page.
//
// Prints one line, "events wall_ns cpu_ns rss_peak_kib": calls (or pages), the wall and processor
// time they took, and the process' peak RSS. All is a function of fixed seeds: each run makes the
// same calls.
#include <alloca.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string_view>
#include <utility>

namespace {

constexpr size_t kFunctions = 64;
constexpr size_t kDepthMax = 256;
constexpr size_t kTreeLevels = 5;
constexpr size_t kLiveBlocks = 100'000;
constexpr size_t kOsPage = 4096;

constexpr std::array<const char*, 10> kListed = {
    "same-8",    "same-32",     "tree-8",       "tree-32",        "random-8",
    "random-32", "tree-8-live", "tree-32-live", "tree-8-threads", "faults"};

enum class Shape { kSame, kTree, kRandom };

// xorshift64*: a few instructions, so that what is measured is not the program.
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

 private:
  uint64_t state_;
};

struct Workload {
  Shape shape = Shape::kSame;
  size_t depth = 0;
  bool live = false;
  size_t threads = 1;
  bool faults = false;
};

// One thread's work, handed down the frames.
struct Walk {
  Walk(const Workload& what, uint64_t seed) : workload(what), random(seed) {
    for (auto& function : path) function = static_cast<uint8_t>(random.below(kFunctions));
  }

  const Workload& workload;
  Random random;
  std::array<uint8_t, kDepthMax> path{};  // The function at each level.
  void** blocks = nullptr;                // Live ones; null: pairs.
  size_t steps = 0;                       // Steps of the innermost function per descent.
  uint64_t events = 0;
};

void* make_block(Random& random) {
  const size_t size = 16 + random.below(240);
  void* block = std::malloc(size);
  if (block == nullptr) std::abort();
  std::memcpy(block, &size, sizeof(size));  // The first write is the program's.
  return block;
}

// Two calls. Inlined: its caller's frame is the innermost.
inline __attribute__((always_inline)) void step(Walk& walk) {
  if (walk.blocks == nullptr) {
    std::free(make_block(walk.random));
  } else {
    void*& block = walk.blocks[walk.random.below(kLiveBlocks)];
    std::free(block);
    block = make_block(walk.random);
  }
  walk.events += 2;
}

using Function = void (*)(Walk&, size_t level);
extern const std::array<Function, kFunctions> kTable;

// What each of the functions does at its level; inlined into all of them.
inline __attribute__((always_inline)) void body(Walk& walk, size_t level) {
  const Workload& workload = walk.workload;
  if (level + 1 == workload.depth) {
    for (size_t i = 0; i < walk.steps; ++i) step(walk);
    return;
  }
  const size_t next = walk.path[level + 1];
  if (workload.shape == Shape::kTree && level + 1 + kTreeLevels >= workload.depth) {
    step(walk);
    kTable[next](walk, level + 1);
    kTable[(next + 7) % kFunctions](walk, level + 1);
    return;
  }
  kTable[next](walk, level + 1);
}

// By Id: a frame of 40 to 568 bytes; one whose size is known at run time only, so that rbp holds
// it; one realigned to 64 bytes.
template <size_t Id>
__attribute__((noinline)) void function(Walk& walk, size_t level) {
  if constexpr (Id % 8 == 3) {
    void* room = alloca(16 + level % 4 * 16);
    asm volatile("" : : "r"(room) : "memory");
    body(walk, level);
    asm volatile("" : : "r"(room) : "memory");
  } else if constexpr (Id % 8 == 6) {
    alignas(64) std::array<char, 64> room;
    asm volatile("" : : "r"(room.data()) : "memory");
    body(walk, level);
    asm volatile("" : : "r"(room.data()) : "memory");
  } else {
    std::array<char, 8 + Id * Id % 67 * 8> room;
    asm volatile("" : : "r"(room.data()) : "memory");
    body(walk, level);
    asm volatile("" : : "r"(room.data()) : "memory");
  }
}

template <size_t... Ids>
constexpr std::array<Function, kFunctions> table_of(std::index_sequence<Ids...>) {
  return {&function<Ids>...};
}
const std::array<Function, kFunctions> kTable = table_of(std::make_index_sequence<kFunctions>());

uint64_t now_ns(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

// VmHWM, read without allocating: the figure of this image alone. getrusage's would include the
// process that started it.
unsigned long rss_peak_kib() {
  FILE* file = std::fopen("/proc/self/status", "re");
  if (file == nullptr) return 0;
  std::array<char, 256> line{};
  unsigned long kib = 0;
  while (std::fgets(line.data(), line.size(), file) != nullptr) {
    if (std::sscanf(line.data(), "VmHWM: %lu", &kib) == 1) break;
  }
  std::fclose(file);
  return kib;
}

// Descents per thread at scale 1: some tenths of a second under a recorder.
size_t descents_of(const Workload& workload, double scale) {
  const double steps = workload.shape == Shape::kRandom ? 150'000 : 1'000'000;
  const double steps_per_descent = workload.shape == Shape::kSame   ? 1000.0
                                   : workload.shape == Shape::kTree ? (2 << kTreeLevels) - 1
                                                                    : 1.0;
  return static_cast<size_t>(std::max(1.0, steps * scale / steps_per_descent));
}

struct Thread {
  Thread(const Workload& workload, uint64_t seed) : walk(workload, seed) {}
  Walk walk;
  size_t descents = 0;
  pthread_barrier_t* barrier = nullptr;
};

void* run_thread(void* argument) {
  auto& thread = *static_cast<Thread*>(argument);
  Walk& walk = thread.walk;
  pthread_barrier_wait(thread.barrier);
  for (size_t i = 0; i < thread.descents; ++i) {
    if (walk.workload.shape == Shape::kRandom) {
      for (size_t level = 0; level < walk.workload.depth; ++level) {
        walk.path[level] = static_cast<uint8_t>(walk.random.below(kFunctions));
      }
    }
    kTable[walk.path[0]](walk, 0);
  }
  pthread_barrier_wait(thread.barrier);
  return nullptr;
}

struct Figures {
  uint64_t events = 0, wall_ns = 0, cpu_ns = 0;
};

// What is timed lies between two barriers.
Figures run_calls(const Workload& workload, double scale) {
  pthread_barrier_t barrier{};
  pthread_barrier_init(&barrier, nullptr, static_cast<unsigned>(workload.threads));
  std::array<Thread*, 2> threads{};
  for (size_t i = 0; i < workload.threads; ++i) {
    auto* thread = threads[i] = new Thread(workload, i + 1);
    thread->barrier = &barrier;
    thread->descents = descents_of(workload, scale);
    thread->walk.steps = workload.shape == Shape::kSame ? 1000 : 1;
    if (workload.live) {
      auto* blocks = new void*[kLiveBlocks];
      std::generate_n(blocks, kLiveBlocks, [&] { return make_block(thread->walk.random); });
      thread->walk.blocks = blocks;
    }
  }
  pthread_t other{};
  if (workload.threads == 2 && pthread_create(&other, nullptr, run_thread, threads[1]) != 0) {
    std::abort();
  }
  // The slower thread's end is the second barrier; the clock of the process counts both.
  Figures figures;
  const uint64_t wall = now_ns(CLOCK_MONOTONIC);
  const uint64_t cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID);
  run_thread(threads[0]);
  figures.wall_ns = now_ns(CLOCK_MONOTONIC) - wall;
  figures.cpu_ns = now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu;
  if (workload.threads == 2) pthread_join(other, nullptr);
  for (size_t i = 0; i < workload.threads; ++i) figures.events += threads[i]->walk.events;
  return figures;
}

// Mappings of 32 MiB, one after the other, so that the peak stays small. Only the touches are
// timed.
Figures run_faults(double scale) {
  constexpr size_t kBytes = 8192 * kOsPage;
  Figures figures;
  const auto rounds = static_cast<size_t>(std::max(1.0, 8 * scale));
  for (size_t round = 0; round < rounds; ++round) {
    void* memory =
        mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    madvise(memory, kBytes, MADV_NOHUGEPAGE);
    const uint64_t wall = now_ns(CLOCK_MONOTONIC);
    const uint64_t cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID);
    for (size_t offset = 0; offset < kBytes; offset += kOsPage) {
      static_cast<volatile char*>(memory)[offset] = 1;
    }
    figures.wall_ns += now_ns(CLOCK_MONOTONIC) - wall;
    figures.cpu_ns += now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    figures.events += kBytes / kOsPage;
    munmap(memory, kBytes);
  }
  return figures;
}

// False: not a name.
bool parse(std::string_view name, Workload& workload) {
  const auto take = [&](std::string_view word) {
    const size_t at = name.rfind(word);
    if (at == std::string_view::npos || at + word.size() != name.size()) return false;
    name.remove_suffix(word.size());
    return true;
  };
  if (take("-threads")) workload.threads = 2;
  if (take("-live")) workload.live = true;
  if (name == "faults") return workload.faults = !workload.live && workload.threads == 1;
  constexpr std::array<std::pair<std::string_view, Shape>, 3> kShapes = {
      {{"same-", Shape::kSame}, {"tree-", Shape::kTree}, {"random-", Shape::kRandom}}};
  for (const auto& [word, shape] : kShapes) {
    if (name.substr(0, word.size()) != word) continue;
    workload.shape = shape;
    workload.depth = std::strtoul(name.data() + word.size(), nullptr, 10);
    return workload.depth > kTreeLevels && workload.depth <= kDepthMax;
  }
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::string_view(argv[1]) == "--list") {
    for (const char* name : kListed) std::puts(name);
    return 0;
  }
  Workload workload;
  const double scale = argc > 2 ? std::strtod(argv[2], nullptr) : 1.0;
  if (argc < 2 || argc > 3 || !parse(argv[1], workload) || !(scale > 0)) {
    std::fputs("usage: overhead_workload --list | SHAPE-DEPTH[-live][-threads] [SCALE]\n", stderr);
    return 2;
  }
  const Figures figures = workload.faults ? run_faults(scale) : run_calls(workload, scale);
  std::printf("%llu %llu %llu %lu\n", static_cast<unsigned long long>(figures.events),
              static_cast<unsigned long long>(figures.wall_ns),
              static_cast<unsigned long long>(figures.cpu_ns), rss_peak_kib());
  return 0;
}
