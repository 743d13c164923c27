// SPDX-License-Identifier: Apache-2.0
// arena_work THREADS ROUNDS: threads that allocate, touch, keep and free at random, from 16 bytes
// to 400 KB, and hand blocks to one another, so that arenas grow and shrink while others look on.
// The same calls in each run, but for which arena a thread gets.
#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

constexpr uint32_t kKept = 400;
constexpr uint32_t kHanded = 64;

std::atomic<char*> handed[kHanded];
uint32_t rounds;

uint32_t next(uint32_t& state) {
  state = state * 1664525 + 1013904223;
  return state >> 8;
}

uint32_t size_of(uint32_t& state) {
  const uint32_t kind = next(state) % 100;
  if (kind < 60) return 16 + next(state) % 500;
  if (kind < 97) return 500 + next(state) % 20000;
  return 20000 + next(state) % 380000;
}

void* work(void* number) {
  uint32_t state = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(number)) + 1;
  std::vector<char*> kept(kKept);
  for (uint32_t i = 0; i < rounds; ++i) {
    // Every so often all that was kept goes at once: the arena's heaps shrink.
    if (i % 4000 == 3999) {
      for (char*& block : kept) {
        std::free(block);
        block = nullptr;
      }
    }
    const uint32_t size = size_of(state);
    char* block = static_cast<char*>(std::malloc(size));
    if (next(state) % 4 != 0) std::memset(block, 1, size);
    if (next(state) % 8 == 0) {
      std::free(handed[next(state) % kHanded].exchange(block));
      continue;
    }
    char*& place = kept[next(state) % kKept];
    std::free(place);
    place = block;
  }
  for (char* block : kept) std::free(block);
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  std::vector<pthread_t> threads(static_cast<size_t>(std::atoi(argv[1])));
  rounds = static_cast<uint32_t>(std::atoi(argv[2]));
  for (size_t i = 0; i < threads.size(); ++i) {
    if (pthread_create(&threads[i], nullptr, work, reinterpret_cast<void*>(i)) != 0) abort();
  }
  for (const pthread_t thread : threads) pthread_join(thread, nullptr);
  for (auto& block : handed) std::free(block.load());
}
