// SPDX-License-Identifier: Apache-2.0
// What the processes of a victim know of their own calls, kept where it outlives them: a file that
// all of them have mapped. Ground truth for the trace.
//
// Each process (or thread, or image) takes an index; from then on it allocates blocks of a size
// that is its index's own, kFirstSize + index, and counts each call after it has returned. No
// descriptor stays open, and nothing here calls malloc. The file: kPartsMax counts of 32 bits, by
// index. Thread safety: any thread of any process, an index having one user at a time.
#pragma once

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>

namespace victim {

inline constexpr size_t kFirstSize = 10000;
inline constexpr uint32_t kPartsMax = 1 << 20;

struct Truth {
  std::atomic<uint32_t> parts;  // Indices that were given out.
  std::atomic<uint32_t> ended;  // Of those, how many are through.
  uint32_t unused[14];
  std::atomic<uint32_t> calls[kPartsMax];
};

inline Truth* truth = nullptr;

inline void open_truth(const char* path) {
  const int fd = open(path, O_RDWR | O_CREAT, 0666);
  if (fd < 0 || ftruncate(fd, sizeof(Truth)) != 0) abort();
  void* memory = mmap(nullptr, sizeof(Truth), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) abort();
  close(fd);
  truth = static_cast<Truth*>(memory);
}

inline uint32_t take_part() { return truth->parts.fetch_add(1); }

// `count` blocks of this part's size, each counted; all are freed, those of two rounds later.
__attribute__((noinline)) inline void play_part(uint32_t part, int count) {
  void* held[2] = {nullptr, nullptr};
  for (int i = 0; i < count; ++i) {
    free(held[i % 2]);
    char* block = static_cast<char*>(malloc(kFirstSize + part));
    if (block == nullptr) abort();
    truth->calls[part].fetch_add(1);
    block[0] = 1;
    held[i % 2] = block;
  }
  free(held[0]);
  free(held[1]);
}

inline void end_part() { truth->ended.fetch_add(1); }

}  // namespace victim
