// SPDX-License-Identifier: Apache-2.0
// counts LOG ROUNDS: makes every kind of call in several threads, frees in other threads, keeps
// some blocks, and writes down each call itself. Prints "kept BYTES BLOCKS", the requested bytes of
// the blocks it never frees.
#include <atomic>
#include <cstring>
#include <thread>

#include "call_log.h"

namespace {

constexpr int kWorkers = 3;
constexpr int kMailboxes = 1024;
std::atomic<void*>
    mailbox[kMailboxes];  // Blocks on their way to the freeing thread (allocated by malloc).
std::atomic<bool> producers_done;
std::atomic<size_t> kept_bytes;
std::atomic<size_t> kept_blocks;

uint32_t next_random(uint32_t& state) {
  state = state * 1664525u + 1013904223u;
  return state >> 8;
}

void reallocs(victim::CallLog& log, uint32_t& random) {
  void* p = log.realloc_(nullptr, 100);
  p = log.realloc_(p, 104);      // In place.
  void* wall = log.malloc_(64);  // So that the next one moves.
  p = log.realloc_(p, 5000 + next_random(random) % 5000);
  p = log.realloc_(p, 300000);  // To a mapped block, or within the heap.
  p = log.realloc_(p, 900000);  // mremap, if mapped.
  p = log.realloc_(p, 200);
  log.free_(wall);
  log.realloc_(p, 0);  // Frees.
}

void send(victim::CallLog& log, uint32_t& random) {
  void* p = log.malloc_(next_random(random) % 3000);
  for (;;) {
    void* expected = nullptr;
    if (mailbox[next_random(random) % kMailboxes].compare_exchange_strong(expected, p)) return;
    if (next_random(random) % 64 == 0) {
      log.free_(p);
      return;
    }
  }
}

void worker(int index, int rounds) {
  victim::CallLog& log = victim::my_log(index);
  uint32_t random = static_cast<uint32_t>(index) * 7919 + 1;
  for (int i = 0; i < rounds; ++i) {
    const size_t n = next_random(random) % (i % 50 == 0 ? 200000 : 2000);
    void* a = log.malloc_(n);
    void* b = log.calloc_(1 + n % 7, 1 + n / 7);
    void* c = log.posix_memalign_(64, n + 1);
    void* d = log.aligned_alloc_(4096, 8192);
    void* e = log.new_(n + 1);
    void* f = log.new_array_(n + 1);
    if (i % 16 == 0) reallocs(log, random);
    memset(a, 1, n);
    send(log, random);
    log.free_(c);
    log.free_(a);
    log.delete_(e);
    log.free_(d);
    log.delete_array_(f);
    if (i % 100 == 7) {
      kept_bytes += (1 + n % 7) * (1 + n / 7);
      kept_blocks += 1;
    } else {
      log.free_(b);
    }
  }
}

void freer(int index) {
  victim::CallLog& log = victim::my_log(index);
  for (;;) {
    const bool last = producers_done;
    for (std::atomic<void*>& slot : mailbox) {
      if (void* p = slot.exchange(nullptr)) log.free_(p);
    }
    if (last) return;
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const int rounds = atoi(argv[2]);
  std::thread freeing(freer, kWorkers);
  std::thread workers[kWorkers];
  for (int i = 0; i < kWorkers; ++i) workers[i] = std::thread(worker, i, rounds);
  for (std::thread& t : workers) t.join();
  producers_done = true;
  freeing.join();
  victim::write_call_log(argv[1]);
  printf("kept %zu %zu\n", kept_bytes.load(), kept_blocks.load());
  return 0;
}
