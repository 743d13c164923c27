// SPDX-License-Identifier: Apache-2.0
#include "tests/interposer/heap/differential/sequence.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <random>

namespace heapledger::heap::differential {

namespace {

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = 1024 * kKiB;

// Sizes at which some rule of the policy changes, as requests.
constexpr uint64_t kEdges[] = {
    0,        8,        24,      25,      40,     56,      104,      120,      121,      136,
    152,      160,      168,     1000,    1001,   1008,    1016,     1032,     1033,     1040,
    1048,     3064,     3080,    4032,    4040,   4048,    4080,     4088,     4096,     4104,
    10744,    10760,    40952,   40968,   65504,  65512,   65520,    65528,    65536,    98296,
    131040,   131048,   131049,  131064,  131072, 135160,  163832,   262136,   524280,   1048552,
    1048560,  1048568,  1048576, 2097128, 655352, 4194296, 33550312, 33550320, 33554408, 33554416,
    33554432, 16777192, 8388600, 3400,    4084,   7496,    8184,     12280};
// And sizes that must fail.
constexpr uint64_t kAbsurd[] = {uint64_t{PTRDIFF_MAX},
                                uint64_t{PTRDIFF_MAX} - 32,
                                uint64_t{PTRDIFF_MAX} + 1,
                                SIZE_MAX,
                                SIZE_MAX - 16,
                                SIZE_MAX - 4096,
                                1ULL << 62,
                                1ULL << 48};

constexpr uint32_t kRandomSlots = 4096;

enum class Order { kLast, kFirst, kAny };

// What one seed's program is like.
struct Character {
  unsigned size_weights[9] = {};  // See Maker::size().
  uint64_t favourites[4] = {};    // A few exact sizes.
  unsigned live_max = 100;
  Order order = Order::kAny;
  unsigned resizes = 8;  // Weights of calls, of about 100.
  unsigned zeroed = 5;
  unsigned aligned = 4;
  unsigned trims = 0;
  unsigned options = 0;
  unsigned others = 0;  // Foreign breaks and mappings, walls, limits.
  bool refusals = false;
  unsigned turn_length = 10;  // Calls of a thread in a row, about.
  unsigned threads = 1;       // At a time, thread 0 included.
  unsigned bursts = 0;        // Per thousand: everything or half of it is freed at once.
  uint64_t size_max = 64 * kMiB;
};

class Maker {
 public:
  Maker(uint64_t seed, size_t op_count, bool with_threads)
      : random_(seed * 0x9e3779b97f4a7c15ULL + 1), with_threads_(with_threads) {
    sequence_.seed = seed;
    sequence_.slot_count = kRandomSlots;
    count_ = std::min(op_count, size_t{kOpsMax});
  }

  Sequence make() {
    draw_character();
    draw_environment();
    while (sequence_.ops.size() < count_) step();
    return std::move(sequence_);
  }

 private:
  uint64_t below(uint64_t bound) { return random_() % bound; }
  bool one_in(uint64_t n) { return below(n) == 0; }
  template <class Container>
  auto pick(const Container& from) {
    return from[below(std::size(from))];
  }
  // About as often in each octave.
  uint64_t log_uniform(uint64_t low, uint64_t high) {
    unsigned octaves = 0;
    while ((low << (octaves + 1)) <= high) ++octaves;
    const uint64_t base = low << below(octaves + 1);
    const uint64_t value = base + below(base);
    return value > high ? high : value;
  }

  void draw_character();
  void draw_environment();
  void draw_threads();
  void draw_tunables();
  uint64_t size();
  uint64_t size_of_class(unsigned kind);
  uint64_t touched_size();
  uint64_t alignment();
  void add(uint32_t kind, uint64_t slot, uint64_t a = 0, uint64_t b = 0) {
    if (sequence_.ops.size() < count_) {
      sequence_.ops.push_back(
          {static_cast<uint16_t>(kind), thread_, static_cast<uint32_t>(slot), a, b});
    }
  }
  void step();
  void allocate();
  void release_one();
  void release_many();
  void resize();
  void change_option();
  void disturb();
  void change_thread();

  std::mt19937_64 random_;
  const bool with_threads_;
  Sequence sequence_;
  size_t count_ = 0;
  Character character_;
  std::vector<uint32_t> live_;  // Slots in order of allocation.
  std::vector<uint32_t> free_slots_;
  uint64_t infos_ = 0;
  uint16_t thread_ = 0;  // Who makes the calls at present: several in a row, as in programs.
  std::vector<uint16_t> threads_ = {0};
  bool walled_ = false;
  bool limited_ = false;
};

// Several threads, so arenas; some of them so large that they need more than one heap.
void Maker::draw_threads() {
  Character& c = character_;
  c.threads = static_cast<unsigned>(2 + below(one_in(3) ? 24 : 4));
  c.turn_length = static_cast<unsigned>(log_uniform(2, 200));
  if (!one_in(3)) return;
  c.size_weights[4] += 40;
  c.live_max = 2000 + static_cast<unsigned>(below(2000));
  c.turn_length = 400;
}

void Maker::draw_character() {
  Character& c = character_;
  for (unsigned& weight : c.size_weights) weight = one_in(2) ? static_cast<unsigned>(below(8)) : 0;
  c.size_weights[below(8)] += 10;  // One kind dominates; never the absurd one.
  if (c.size_weights[8] > 1) c.size_weights[8] = 1;
  for (uint64_t& favourite : c.favourites) favourite = log_uniform(16, one_in(3) ? 200000 : 2000);
  c.live_max = static_cast<unsigned>(log_uniform(4, 1500));
  c.order = static_cast<Order>(below(3));
  c.resizes = static_cast<unsigned>(one_in(3) ? below(30) : below(6));
  c.zeroed = static_cast<unsigned>(one_in(4) ? below(40) : below(6));
  c.aligned = static_cast<unsigned>(one_in(4) ? below(30) : below(4));
  c.trims = one_in(3) ? static_cast<unsigned>(below(4)) : 0;
  c.options = one_in(4) ? static_cast<unsigned>(below(3)) : 0;
  c.others = one_in(4) ? static_cast<unsigned>(below(4)) : 0;
  c.refusals = one_in(2);
  c.bursts = one_in(2) ? static_cast<unsigned>(below(30)) : 0;
  if (with_threads_) draw_threads();
  for (uint32_t slot = kRandomSlots; slot-- > 0;) free_slots_.push_back(slot);
}

void Maker::draw_tunables() {
  std::string text;
  auto append = [&](const char* name, uint64_t value) {
    text += fmt::format("{}glibc.malloc.{}={}", text.empty() ? "" : ":", name, value);
  };
  if (one_in(2)) append("tcache_count", one_in(3) ? 0 : log_uniform(1, one_in(4) ? 65535 : 30));
  // Above 1032 it is ignored before 2.42.
  if (one_in(3)) append("tcache_max", one_in(2) ? below(1100) : log_uniform(kKiB, 8 * kMiB));
  if (one_in(4)) append("tcache_unsorted_limit", below(10));
  if (one_in(3)) append("mxfast", below(180));  // Above 160 likewise.
  if (one_in(6)) append("mmap_threshold", log_uniform(4096, 4 * kMiB));
  if (one_in(6)) append("trim_threshold", log_uniform(4096, 4 * kMiB));
  if (one_in(6)) append("top_pad", one_in(3) ? 0 : log_uniform(16, kMiB));
  if (one_in(6)) append("mmap_max", below(6));
  if (one_in(6)) append("hugetlb", one_in(3) ? 2 * kMiB : below(3));
  if (!text.empty()) sequence_.environment.push_back("GLIBC_TUNABLES=" + text);
}

void Maker::draw_environment() {
  if (one_in(2)) return;
  auto set = [&](const char* name, const std::string& value) {
    sequence_.environment.push_back(fmt::format("{}={}", name, value));
  };
  if (one_in(5)) set("MALLOC_MMAP_THRESHOLD_", fmt::format("{}", log_uniform(1024, 8 * kMiB)));
  if (one_in(12)) set("MALLOC_MMAP_THRESHOLD_", one_in(2) ? "0" : "64K");  // Means 64.
  if (one_in(5)) set("MALLOC_TRIM_THRESHOLD_", fmt::format("{:#x}", log_uniform(512, 8 * kMiB)));
  if (one_in(12)) set("MALLOC_TRIM_THRESHOLD_", "-1");
  if (one_in(5)) set("MALLOC_TOP_PAD_", fmt::format("{}", one_in(3) ? 0 : log_uniform(1, kMiB)));
  if (one_in(4)) set("MALLOC_ARENA_MAX", fmt::format("{}", below(5)));
  if (one_in(6)) set("MALLOC_ARENA_TEST", fmt::format("{}", below(5)));
  if (one_in(6)) set("MALLOC_MMAP_MAX_", fmt::format("{}", below(10)));
  if (one_in(10)) {
    set("MALLOC_PERTURB_", fmt::format("{}", below(300)));
    character_.size_max = 64 * kKiB;  // Each byte is written: no time for large blocks.
  }
  if (one_in(2)) draw_tunables();
}

uint64_t Maker::size_of_class(unsigned kind) {
  switch (kind) {
    case 0:
      return below(129);
    case 1:
      return below(1100);
    case 2:
      return 16 + pick(kEdges) + (one_in(2) ? 0 : below(33)) - (one_in(4) ? below(17) : 16);
    case 3:
      return log_uniform(kKiB, 16 * kKiB - 1);
    case 4:
      return log_uniform(16 * kKiB, 128 * kKiB - 1);
    case 5:
      return log_uniform(100 * kKiB, kMiB);
    case 6:
      return pick(character_.favourites);
    case 7:
      return log_uniform(kMiB, one_in(5) ? 40 * kMiB : 4 * kMiB);
    default:
      return pick(kAbsurd);
  }
}

uint64_t Maker::size() {
  unsigned total = 0;
  for (const unsigned weight : character_.size_weights) total += weight;
  uint64_t at = below(total);
  unsigned kind = 0;
  while (at >= character_.size_weights[kind]) at -= character_.size_weights[kind++];
  const uint64_t drawn = size_of_class(kind);
  if (kind != 8 && drawn > character_.size_max) return drawn % character_.size_max;
  return drawn;
}

// Of blocks that are cleared or copied, few are large: page faults would take all the time.
uint64_t Maker::touched_size() {
  const uint64_t drawn = size();
  const bool absurd = drawn >= uint64_t{1} << 48;
  return drawn > 256 * kKiB && !absurd && !one_in(10) ? drawn % (256 * kKiB) : drawn;
}

uint64_t Maker::alignment() {
  switch (below(12)) {
    case 0:
      return below(300);  // Any number: rounded up.
    case 1:
      return uint64_t{1} << (12 + below(10));
    case 2:
      return one_in(20) ? uint64_t{1} << (40 + below(24)) : 4096;
    default:
      return uint64_t{1} << below(13);
  }
}

void Maker::allocate() {
  const uint32_t slot = free_slots_.back();
  free_slots_.pop_back();
  live_.push_back(slot);
  const uint64_t dice = below(100);
  const Character& c = character_;
  if (dice < c.zeroed) {
    const uint64_t bytes = touched_size();
    const uint64_t parts = one_in(30) ? uint64_t{1} << 40 : 1 + below(4);
    add(kOpCalloc, slot, bytes / (parts < 8 ? parts : 1), parts);
  } else if (dice < c.zeroed + c.aligned) {
    constexpr std::array<uint32_t, 5> kKinds = {kOpMemalign, kOpMemalign, kOpPosixMemalign,
                                                kOpAlignedAlloc, kOpValloc};
    const uint64_t bytes = size();
    add(pick(kKinds), slot, bytes, alignment());
  } else {
    add(kOpMalloc, slot, size());
  }
}

void Maker::release_one() {
  if (live_.empty()) return;
  const size_t index = character_.order == Order::kLast    ? live_.size() - 1
                       : character_.order == Order::kFirst ? 0
                                                           : below(live_.size());
  const uint32_t slot = live_[index];
  live_.erase(live_.begin() + static_cast<ptrdiff_t>(index));
  free_slots_.push_back(slot);
  add(kOpFree, slot);
}

void Maker::release_many() {
  const size_t left = one_in(2) ? 0 : live_.size() / 2;
  while (live_.size() > left) release_one();
}

void Maker::resize() {
  if (live_.empty()) return;
  const uint32_t slot = live_[one_in(2) ? live_.size() - 1 : below(live_.size())];
  // Growth in steps is what programs do most; now and then to nothing, which frees.
  uint64_t bytes = touched_size();
  if (one_in(40)) bytes = 0;
  add(kOpRealloc, slot, bytes);
  if (one_in(3) && bytes < 100000) {
    for (uint64_t i = below(6); i > 0; --i) add(kOpRealloc, slot, bytes += bytes / 2 + 16);
  }
}

void Maker::change_option() {
  constexpr std::array<int, 12> kParameters = {1, -1, -2, -3, -4, -5, -6, -7, -8, 2, 99, -3};
  const int parameter = pick(kParameters);
  int64_t value = static_cast<int64_t>(log_uniform(16, 2 * kMiB));
  if (parameter == 1) value = static_cast<int64_t>(below(200)) - 10;
  if (parameter == -4) value = static_cast<int64_t>(below(8)) - 1;
  if (parameter == -6) {
    // Written bytes cost time, see draw_environment().
    value = character_.size_max < kMiB ? static_cast<int64_t>(below(256)) : 0;
  }
  if (parameter > -4 && parameter < 0 && one_in(6)) value = one_in(2) ? 0 : -1;
  if (parameter == -2 && value < 0) value = 0;
  add(kOpMallopt, 0, static_cast<uint64_t>(int64_t{parameter}), static_cast<uint64_t>(value));
}

// Where the break is refused behind a foreign part that does not end on a page, glibc's top does
// not end on one either, and at its next growth an assertion of glibc's own fails: such sequences
// end there. Behind one that is no multiple of 16, glibc's chunks are none: a sequence has the one
// or the other.
void Maker::disturb() {
  const Character& c = character_;
  if (!c.refusals) {
    const uint64_t odd = one_in(3) ? 1 + below(5000) : 4096 * (1 + below(20));
    add(one_in(2) ? uint32_t{kOpSbrk} : uint32_t{kOpForeignMapping}, 0, odd);
    return;
  }
  switch (below(8)) {
    case 0:
      add(kOpSbrk, 0, one_in(4) ? 16 * (1 + below(600)) : 4096 * (1 + below(20)));
      break;
    case 1:
      add(kOpForeignMapping, 0, 4096 * (1 + below(100)));
      break;
    case 2:
    case 3:
      add(walled_ ? uint32_t{kOpUnwall} : uint32_t{kOpWall}, 0, below(40) * 16 * kKiB);
      walled_ = !walled_;
      break;
    case 4:
    case 5:
      add(limited_ ? uint32_t{kOpUnlimit} : uint32_t{kOpLimit}, 0,
          one_in(2) ? 0 : below(64) * 16 * kKiB);
      limited_ = !limited_;
      break;
    default:
      if (limited_) add(kOpUnlimit, 0);  // Most of the time memory is there.
      limited_ = false;
  }
}

// Threads come and go, and take turns.
void Maker::change_thread() {
  const uint16_t next = static_cast<uint16_t>(1 + below(kThreadsMax - 1));
  const auto alive = std::find(threads_.begin(), threads_.end(), next);
  thread_ = 0;
  if (alive != threads_.end() && one_in(4)) {
    threads_.erase(alive);
    add(kOpThreadEnd, 0, next);
  } else if (alive == threads_.end() && threads_.size() < character_.threads && !limited_) {
    threads_.push_back(next);
    add(kOpThreadStart, 0, next);
  }
  if (one_in(60) && !limited_) {
    threads_ = {0};
    add(kOpFork, 0);
  }
  thread_ = pick(threads_);
}

void Maker::step() {
  const Character& c = character_;
  if (c.threads > 1 && one_in(c.turn_length)) change_thread();
  if (below(1000) < c.bursts) release_many();
  if (one_in(80) && infos_ < kInfosMax) add(kOpInfo, 0, infos_++);
  if (below(1000) < c.trims) add(kOpTrim, 0, one_in(2) ? 0 : log_uniform(1, kMiB));
  if (below(300) < c.options) change_option();
  if (below(200) < c.others) disturb();
  if (below(100) < c.resizes) resize();
  const bool full = live_.size() >= c.live_max || free_slots_.empty();
  // Grows to its number of blocks, then stays about there.
  if (!full && below(100) < 60) {
    allocate();
  } else {
    release_one();
  }
}

std::string call_text(const Op& op) {
  switch (op.kind) {
    case kOpMalloc:
      return fmt::format("slot {} = malloc({})", op.slot, op.a);
    case kOpCalloc:
      return fmt::format("slot {} = calloc({}, {})", op.slot, op.a, op.b);
    case kOpRealloc:
      return fmt::format("realloc(slot {}, {})", op.slot, op.a);
    case kOpMemalign:
      return fmt::format("slot {} = memalign({}, {})", op.slot, op.b, op.a);
    case kOpPosixMemalign:
      return fmt::format("posix_memalign(slot {}, {}, {})", op.slot, op.b, op.a);
    case kOpAlignedAlloc:
      return fmt::format("slot {} = aligned_alloc({}, {})", op.slot, op.b, op.a);
    case kOpValloc:
      return fmt::format("slot {} = valloc({})", op.slot, op.a);
    case kOpFree:
      return fmt::format("free(slot {})", op.slot);
    case kOpTrim:
      return fmt::format("malloc_trim({})", op.a);
    case kOpMallopt:
      return fmt::format("mallopt({}, {})", static_cast<int>(op.a), static_cast<int>(op.b));
    case kOpInfo:
      return "mallinfo2()";
    case kOpSbrk:
      return fmt::format("foreign sbrk({})", op.a);
    case kOpWall:
      return fmt::format("a wall {} bytes above the break", op.a);
    case kOpUnwall:
      return "no wall";
    case kOpLimit:
      return fmt::format("RLIMIT_AS {} bytes above now", op.a);
    case kOpUnlimit:
      return "no RLIMIT_AS";
    case kOpFork:
      return "fork";
    case kOpThreadStart:
      return fmt::format("thread {} begins", op.a);
    case kOpThreadEnd:
      return fmt::format("thread {} ends", op.a);
    case kOpForeignMapping:
      return fmt::format("a foreign mapping of {}", op.a);
    default:
      return fmt::format("unknown op {}", op.kind);
  }
}

}  // namespace

Sequence make_sequence(uint64_t seed, size_t op_count, bool with_threads) {
  return Maker(seed, op_count, with_threads).make();
}

std::string to_text(const Op& op) {
  if (op.thread == 0) return call_text(op);
  return fmt::format("thread {}: {}", op.thread, call_text(op));
}

}  // namespace heapledger::heap::differential
