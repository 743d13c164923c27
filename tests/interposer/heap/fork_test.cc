// SPDX-License-Identifier: Apache-2.0
//
// fork in a process whose other threads are in the middle of calls: the child can use the heap, and
// finds it consistent.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "tests/interposer/heap/heap_fixture.h"

namespace heapledger::heap {
namespace {

class Fork : public HeapTest {};

// Exit status of the child: what it found wrong.
int use_heap(TestAllocator& heap, Thread<Header16>& thread) {
  const char* why = nullptr;
  if (!heap.arena_is_valid(&thread, &why)) return 2;
  for (int i = 0; i < 2000; ++i) {
    void* block = heap.allocate(thread, static_cast<size_t>(i) * 7);
    if (block == nullptr) return 3;
    if (i % 3 != 0) heap.release(thread, block);
  }
  return heap.arena_is_valid(&thread, &why) ? 0 : 4;
}

// Handlers of other libraries, between ours and the fork, find the locks taken by their own thread.
TEST_F(Fork, OtherHandlersCanAllocateBetweenPrepareAndFork) {
  char* block = alloc(5000);
  alloc(40);
  heap().fork_prepare(thread_);
  char* inside = alloc(7000);
  ASSERT_NE(inside, nullptr);
  release(block);
  heap().fork_parent(thread_);
  release(inside);
  EXPECT_EQ(heap().info().mapped_count, 0U);
  alloc(3000);
  EXPECT_EQ(thread_.deferred, nullptr);
  heap().fork_prepare(thread_);
  heap().fork_child(thread_);
  EXPECT_NE(alloc(5000), nullptr);
  EXPECT_EQ(heap().info().mapped_count, 0U);
}

TEST_F(Fork, AChildOfABusyProcessCanAllocate) {
  alloc(1);
  std::atomic<bool> stop = false;
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([this, &stop] {
      Thread<Header16> mine;
      while (!stop) {
        void* blocks[16];
        for (size_t i = 0; i < 16; ++i) blocks[i] = heap().allocate(mine, 3000 * i);
        for (void* block : blocks) heap().release(mine, block);
      }
      heap().thread_exit(mine);
    });
  }
  for (int round = 0; round < 20; ++round) {
    heap().fork_prepare(thread_);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      heap().fork_child(thread_);
      ::_exit(use_heap(heap(), thread_));
    }
    heap().fork_parent(thread_);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
    ASSERT_EQ(WEXITSTATUS(status), 0) << "round " << round;
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace heapledger::heap
