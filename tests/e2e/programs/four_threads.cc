// SPDX-License-Identifier: Apache-2.0
// four_threads ROUNDS: four threads, each with a window of blocks that it fills: small ones, some
// of hundreds of KiB, now and then one that is mapped. Every third block that leaves a window is
// freed by the next thread. Prints how many blocks were handed over.
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace {

constexpr size_t kThreads = 4;
constexpr size_t kAlive = 48;
constexpr size_t kMailboxMax = 8;
constexpr unsigned kHandedOver = 3;

// What a thread is given to free.
class Mailbox {
 public:
  // False where it is full.
  bool put(void* block) {
    pthread_mutex_lock(&lock_);
    const bool has_room = count_ < kMailboxMax;
    if (has_room) blocks_[count_++] = block;
    pthread_mutex_unlock(&lock_);
    return has_room;
  }
  // Frees what is there; returns how many.
  size_t empty() {
    void* blocks[kMailboxMax];
    pthread_mutex_lock(&lock_);
    const size_t count = count_;
    memcpy(blocks, blocks_, count * sizeof(void*));
    count_ = 0;
    pthread_mutex_unlock(&lock_);
    for (size_t i = 0; i < count; ++i) free(blocks[i]);
    return count;
  }

 private:
  pthread_mutex_t lock_ = PTHREAD_MUTEX_INITIALIZER;
  void* blocks_[kMailboxMax] = {};
  size_t count_ = 0;
};

int rounds = 1000;
Mailbox mailboxes[kThreads];

size_t size_of(uint64_t random) {
  switch (random % 16) {
    case 0:
      return (128 << 10) + random / 16 % (256 << 10);
    case 1:
    case 2:
    case 3:
      return (16 << 10) + random / 16 % (64 << 10);
    default:
      return 16 + random / 16 % 4000;
  }
}

void* work(void* argument) {
  const auto number = static_cast<size_t>(static_cast<Mailbox*>(argument) - mailboxes);
  Mailbox& own = mailboxes[number];
  Mailbox& next = mailboxes[(number + 1) % kThreads];
  char* alive[kAlive] = {};
  uint64_t random = 88172645463325252ULL + number;
  size_t received = 0;
  for (int i = 0; i < rounds; ++i) {
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    char*& slot = alive[random / 65536 % kAlive];
    if (i % kHandedOver == 0) {
      // The giver waits: who frees what is the same in every run.
      while (!next.put(slot)) {
        received += own.empty();
        sched_yield();
      }
    } else {
      free(slot);
    }
    const size_t bytes = size_of(random);
    slot = static_cast<char*>(malloc(bytes));
    if (slot == nullptr) abort();
    memset(slot, static_cast<int>(i), bytes);
    received += own.empty();
  }
  const auto all = static_cast<size_t>((rounds + 2) / static_cast<int>(kHandedOver));
  while (received < all) {
    sched_yield();
    received += own.empty();
  }
  for (char* block : alive) free(block);
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) rounds = atoi(argv[1]);
  pthread_t threads[kThreads];
  for (size_t i = 0; i < kThreads; ++i) {
    if (pthread_create(&threads[i], nullptr, &work, &mailboxes[i]) != 0) abort();
  }
  for (pthread_t thread : threads) pthread_join(thread, nullptr);
  printf("%d\n", static_cast<int>(kThreads) * ((rounds + 2) / static_cast<int>(kHandedOver)));
  return 0;
}
