// SPDX-License-Identifier: Apache-2.0
#include "analyzer/finalize/fault_cost.h"

#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <array>

namespace heapledger::analyzer {

namespace {

constexpr size_t kPages = 2048;
constexpr size_t kPage = 4096;
constexpr int kRounds = 5;
constexpr int64_t kFallbackNs = 1000;  // Where nothing can be mapped: the usual order.

// Of this thread alone: others share the machine.
int64_t now_ns() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

// First touches of fresh anonymous pages; the round in the middle.
int64_t measure() {
  std::array<int64_t, kRounds> rounds{};
  for (int round = 0; round < kRounds; ++round) {
    void* memory =
        mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return kFallbackNs;
    madvise(memory, kPages * kPage, MADV_NOHUGEPAGE);
    volatile char* bytes = static_cast<char*>(memory);
    const int64_t start = now_ns();
    for (size_t page = 0; page < kPages; ++page) bytes[page * kPage] = 1;
    rounds[static_cast<size_t>(round)] = now_ns() - start;
    munmap(memory, kPages * kPage);
  }
  std::nth_element(rounds.begin(), rounds.begin() + kRounds / 2, rounds.end());
  return std::max<int64_t>(1, rounds[kRounds / 2] / static_cast<int64_t>(kPages));
}

}  // namespace

int64_t fault_cost_ns(schema::Database& db) {
  if (const auto known = schema::meta_int(db, "ns_per_fault")) return *known;
  const int64_t measured = measure();
  schema::set_meta(db, "ns_per_fault", measured);
  schema::set_meta(db, "ns_per_fault_source", "measured at analysis");
  return measured;
}

}  // namespace heapledger::analyzer
