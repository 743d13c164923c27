// SPDX-License-Identifier: Apache-2.0
#include "analyzer/whatif/call_cost.h"

#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

namespace heapledger::analyzer {

namespace {

constexpr double kPage = 4096;
// Fewer recorded calls of a kind say too little.
constexpr size_t kSamplesMin = 8;
// Pairs are taken among so many.
constexpr size_t kSamplesUsed = 256;
constexpr double kLeastNs = 50;  // No system call is faster.

struct Sample {
  double pages;
  double ns;
};

double median(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

CallCost::Line fit(const std::vector<Sample>& all) {
  std::vector<Sample> samples;
  const size_t step = all.size() / kSamplesUsed + 1;
  for (size_t i = 0; i < all.size(); i += step) samples.push_back(all[i]);
  std::vector<double> slopes;
  for (size_t i = 0; i < samples.size(); ++i) {
    for (size_t k = i + 1; k < samples.size(); ++k) {
      const double pages = samples[k].pages - samples[i].pages;
      // Calls of about the same length say nothing about the slope.
      if (std::abs(pages) * 4 < samples[i].pages) continue;
      slopes.push_back((samples[k].ns - samples[i].ns) / pages);
    }
  }
  CallCost::Line line;
  line.samples = all.size();
  if (slopes.size() >= kSamplesMin) line.ns_per_page = std::max(0.0, median(slopes));
  std::vector<double> rests;
  for (const Sample& sample : samples) {
    rests.push_back(sample.ns - line.ns_per_page * sample.pages);
  }
  line.base_ns = std::max(kLeastNs, median(rests));
  return line;
}

// ---- Measured here.

// Of this thread alone: others share the machine.
double now_ns() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_nsec);
}

template <class Call>
double timed(Call call) {
  const double start = now_ns();
  call();
  return now_ns() - start;
}

void touch_all(void* memory, size_t bytes) {
  volatile char* at = static_cast<char*>(memory);
  for (size_t i = 0; i < bytes; i += static_cast<size_t>(kPage)) at[i] = 1;
}

// Every kind on mappings of several lengths; the break's steps are taken to cost as mapping and
// unmapping do, since this process's own break is its allocator's.
std::array<std::vector<Sample>, CallCost::kKinds> measure() {
  std::array<std::vector<Sample>, CallCost::kKinds> samples;
  for (int round = 0; round < 9; ++round) {
    for (const size_t pages : {8, 33, 64, 256}) {
      const size_t bytes = pages * static_cast<size_t>(kPage);
      void* memory = nullptr;
      const auto note = [&](CallCost::Kind kind, double ns) {
        samples[kind].push_back({static_cast<double>(pages), ns});
      };
      const double mapping = timed([&] {
        memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      });
      if (memory == MAP_FAILED) continue;
      note(CallCost::kMmap, mapping);
      note(CallCost::kGrow, mapping);
      touch_all(memory, bytes);
      note(CallCost::kMprotect, timed([&] { mprotect(memory, bytes, PROT_READ | PROT_WRITE); }));
      note(CallCost::kMremap, timed([&] {
             void* moved = mremap(memory, bytes, bytes * 2, MREMAP_MAYMOVE);
             if (moved != MAP_FAILED) memory = moved;
           }));
      note(CallCost::kMadvise, timed([&] { madvise(memory, bytes, MADV_DONTNEED); }));
      touch_all(memory, bytes);
      const double unmapping = timed([&] { munmap(memory, bytes * 2); });
      note(CallCost::kMunmap, unmapping);
      note(CallCost::kShrink, unmapping);
    }
  }
  return samples;
}

std::array<std::vector<Sample>, CallCost::kKinds> recorded(schema::Database& db, int64_t process) {
  std::array<std::vector<Sample>, CallCost::kKinds> samples;
  schema::Statement select = db.prepare(
      "SELECT name, arg0, arg1, arg2, result, duration_ns FROM syscall WHERE process = ?"
      " AND origin = 'allocator' ORDER BY time_ns");
  select.bind_all(process);
  int64_t break_at = 0;
  while (select.step()) {
    const std::string name = select.column_text(0);
    const auto result = select.column_int(4);
    const double ns = select.column_double(5);
    if (result < 0 && result >= -4095) continue;
    const auto add = [&](CallCost::Kind kind, double bytes) {
      samples[kind].push_back({bytes / kPage, ns});
    };
    if (name == "brk") {
      // In doubles: of a damaged trace, the difference may be too large for an integer.
      const double step = static_cast<double>(result) - static_cast<double>(break_at);
      if (break_at != 0 && step != 0) {
        add(step > 0 ? CallCost::kGrow : CallCost::kShrink, std::abs(step));
      }
      break_at = result;
    } else if (name == "mmap") {
      add(CallCost::kMmap, select.column_double(2));
    } else if (name == "munmap") {
      add(CallCost::kMunmap, select.column_double(2));
    } else if (name == "mremap") {
      add(CallCost::kMremap, select.column_double(3));
    } else if (name == "madvise") {
      add(CallCost::kMadvise, select.column_double(2));
    } else if (name == "mprotect") {
      add(CallCost::kMprotect, select.column_double(2));
    }
  }
  return samples;
}

CallCost::Kind kind_of(const heap::SimulatedCall& call) {
  switch (call.name) {
    case heap::CallName::kBrk:
      return call.bytes < 0 ? CallCost::kShrink : CallCost::kGrow;
    case heap::CallName::kMmap:
      return CallCost::kMmap;
    case heap::CallName::kMunmap:
      return CallCost::kMunmap;
    case heap::CallName::kMremap:
      return CallCost::kMremap;
    case heap::CallName::kMadvise:
      return CallCost::kMadvise;
    case heap::CallName::kMprotect:
      return CallCost::kMprotect;
  }
  return CallCost::kGrow;
}

}  // namespace

CallCost CallCost::of(schema::Database& db, int64_t process) {
  const auto from_trace = recorded(db, process);
  std::array<std::vector<Sample>, kKinds> here;
  CallCost cost;
  for (size_t kind = 0; kind < kKinds; ++kind) {
    if (from_trace[kind].size() >= kSamplesMin) {
      cost.lines_[kind] = fit(from_trace[kind]);
      continue;
    }
    if (here[kMmap].empty()) here = measure();
    if (here[kind].empty()) continue;  // Nothing can be mapped: no figure is better than that.
    cost.lines_[kind] = fit(here[kind]);
    cost.lines_[kind].samples = 0;
  }
  return cost;
}

double CallCost::ns(const heap::SimulatedCall& call) const {
  const Line& line = lines_[kind_of(call)];
  // A question for the break has no length.
  const bool asks = call.name == heap::CallName::kBrk && call.address == 0;
  const double pages = asks ? 0 : std::abs(static_cast<double>(call.bytes)) / kPage;
  return line.base_ns + line.ns_per_page * pages;
}

const char* CallCost::name(Kind kind) {
  constexpr const char* kNames[kKinds] = {"brk (grow)", "brk (shrink)", "mmap",    "munmap",
                                          "mremap",     "madvise",      "mprotect"};
  return kNames[kind];
}

}  // namespace heapledger::analyzer
