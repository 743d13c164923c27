// SPDX-License-Identifier: Apache-2.0
//
// Signal handlers that allocate. First exactly: the simulated break calls back into the allocator,
// with the same thread, while the arena is being changed. Then by storm: a timer interrupts a
// program wherever it is.
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>

#include <cstring>
#include <string>
#include <vector>

#include "interposer/heap/allocator_impl.h"
#include "interposer/heap/direct_os.h"
#include "tests/interposer/heap/heap_fixture.h"

namespace heapledger::heap {
namespace {

class Nested : public HeapTest {
 protected:
  // Runs `handler` once, in the middle of the next growth of the top.
  void interrupt_growth(const std::function<void()>& handler) {
    bool ran = false;
    space_.set_interruption([&] {
      if (std::exchange(ran, true)) return;
      EXPECT_TRUE(thread_.in_arena);
      handler();
    });
    // More than the top holds: the break must move.
    char* block = alloc(125000);
    char* second = alloc(125000);
    EXPECT_NE(block, nullptr);
    EXPECT_NE(second, nullptr);
    space_.set_interruption(nullptr);
    EXPECT_TRUE(ran);
    EXPECT_FALSE(thread_.in_arena);
    expect_valid();
  }
};

TEST_F(Nested, AllocationsGetMappingsOfTheirOwn) {
  alloc(1);
  char* plain = nullptr;
  char* clear = nullptr;
  char* at_page = nullptr;
  interrupt_growth([&] {
    plain = alloc(5000);
    clear = zeroed(5000);
    at_page = aligned(4096, 5000);
  });
  ASSERT_NE(plain, nullptr);
  ASSERT_NE(at_page, nullptr);
  EXPECT_EQ(base::address_of(at_page) % 4096, 0U);
  EXPECT_EQ(heap().info().mapped_count, 3U);
  for (int i = 0; i < 5000; ++i) ASSERT_EQ(clear[i], 0);
  release(plain);
  release(clear);
  release(at_page);
  EXPECT_EQ(space_.mapping_count(), 0U);
}

// What the cache can serve, it serves: it protects itself.
TEST_F(Nested, TheCacheStillServes) {
  char* cached = alloc(40);
  release(cached);
  char* got = nullptr;
  interrupt_growth([&] { got = alloc(40); });
  EXPECT_EQ(got, cached);
}

TEST_F(Nested, FreesWaitUntilTheArenaIsWhole) {
  char* large = alloc(5000);
  alloc(40);
  interrupt_growth([&] { release(large); });
  EXPECT_NE(thread_.deferred, nullptr);
  EXPECT_DEATH(release(large), "double free");
  release(alloc(3000));  // The next call past the cache frees it first.
  EXPECT_EQ(thread_.deferred, nullptr);
  EXPECT_EQ(alloc(5000), large);
}

TEST_F(Nested, AReallocMovesToAMapping) {
  char* block = alloc(3000);
  std::memset(block, 'n', 3000);
  char* moved = nullptr;
  char* shrunk = nullptr;
  interrupt_growth([&] {
    moved = resize(block, 9000);
    shrunk = resize(moved, 100);  // A mapped block by now: mremap needs no arena.
  });
  ASSERT_NE(shrunk, nullptr);
  EXPECT_EQ(std::string(shrunk, 100), std::string(100, 'n'));
  release(shrunk);
  heap().thread_exit(thread_);
  EXPECT_EQ(thread_.deferred, nullptr);
}

// The very first call of a thread interrupted by the very first call of its handler.
TEST_F(Nested, TheFirstCallCanBeInterrupted) {
  char* nested = nullptr;
  bool ran = false;
  space_.set_interruption([&] {
    if (std::exchange(ran, true)) return;
    nested = alloc(40);
  });
  char* block = alloc(40);
  space_.set_interruption(nullptr);
  EXPECT_NE(nested, nullptr);
  EXPECT_NE(block, nullptr);
  EXPECT_NE(nested, block);
  EXPECT_EQ(thread_.cache, thread_.owned);
  release(nested);
  release(block);
}

// ---- The storm. Not under the thread sanitizer, which keeps signals back until the next call of
// libc.

#if !defined(__SANITIZE_THREAD__)

// The kernel, but with a break of its own in a reserved range. No lock: a handler may come in
// anywhere.
struct ReservedOs : DirectOs {
  uintptr_t begin = 0;
  uintptr_t now = 0;
  bool alone = false;

  bool is_single_threaded() { return alone; }
  uintptr_t brk(uintptr_t address, Cause) {
    constexpr size_t kBytes = size_t{1} << 30;
    if (begin == 0) {
      void* memory = DirectOs::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, Cause::kNone);
      begin = now = base::address_of(memory);
    }
    if (address >= begin && address < begin + kBytes) {
      const uintptr_t page = base::align_up(address, base::kPageBytes);
      if (page < now) {
        DirectOs::madvise(base::pointer_to(page), now - page, MADV_DONTNEED, Cause::kNone);
      }
      now = address;
    }
    return now;
  }
};
using StormAllocator = Allocator<Header16, ReservedOs>;

constinit StormAllocator g_heap;
constinit Thread<Header16> g_thread;
constinit char* g_kept[64] = {};
constinit volatile unsigned g_handled = 0;

// One call of each kind on blocks that outlive the handler.
void storm_handler(int) {
  const unsigned turn = g_handled;
  g_handled = turn + 1;
  char*& slot = g_kept[turn % 64];
  const size_t size = (turn * 97) % 6000;
  if (slot == nullptr) {
    slot = static_cast<char*>(turn % 2 == 0 ? g_heap.allocate(g_thread, size)
                                            : g_heap.allocate_zeroed(g_thread, 1, size));
    if (slot != nullptr) std::memset(slot, 'k', size);
  } else if (turn % 3 == 0) {
    slot = static_cast<char*>(g_heap.reallocate(g_thread, slot, size + 1));
  } else {
    g_heap.release(g_thread, slot);
    slot = nullptr;
  }
}

void run_storm() {
  struct sigaction action = {};
  action.sa_handler = storm_handler;
  ASSERT_EQ(::sigaction(SIGALRM, &action, nullptr), 0);
  const itimerval often = {{0, 60}, {0, 60}};
  ASSERT_EQ(::setitimer(ITIMER_REAL, &often, nullptr), 0);
  std::vector<std::pair<unsigned char*, size_t>> live(300);
  g_handled = 0;
  for (unsigned i = 0; g_handled < 2000; ++i) {
    auto& [block, size] = live[(i * 7919U) % 300];
    if (block == nullptr) {
      size = (i * 31U) % (i % 50 == 0 ? 150000 : 3000) + 1;
      block = static_cast<unsigned char*>(g_heap.allocate(g_thread, size));
      ASSERT_NE(block, nullptr);
      block[0] = block[size - 1] = static_cast<unsigned char>(size);
    } else {
      ASSERT_EQ(block[0], static_cast<unsigned char>(size));
      ASSERT_EQ(block[size - 1], static_cast<unsigned char>(size));
      g_heap.release(g_thread, block);
      block = nullptr;
    }
  }
  const itimerval never = {};
  ::setitimer(ITIMER_REAL, &never, nullptr);
  for (auto& [block, size] : live) g_heap.release(g_thread, block);
  for (char*& slot : g_kept) {
    g_heap.release(g_thread, slot);
    slot = nullptr;
  }
  const char* why = nullptr;
  EXPECT_TRUE(g_heap.arena_is_valid(&g_thread, &why)) << why;
  EXPECT_EQ(g_heap.info().mapped_count, 0U);
}

// The very first call of all, whose handler allocates in the middle of the allocator's own start.
struct InterruptedOs : ReservedOs {
  Settings initial_settings() {
    raise(SIGUSR1);
    return ReservedOs::initial_settings();
  }
};
constinit Allocator<Header16, InterruptedOs> g_interrupted;
constinit Thread<Header16> g_interrupted_thread;
constinit void* g_from_handler = nullptr;

TEST(NestedStorm, TheStartCanBeInterrupted) {
  struct sigaction action = {};
  action.sa_handler = [](int) {
    g_from_handler = g_interrupted.allocate(g_interrupted_thread, 40);
  };
  ASSERT_EQ(::sigaction(SIGUSR1, &action, nullptr), 0);
  alarm(10);  // Ends a process that waits for itself.
  void* block = g_interrupted.allocate(g_interrupted_thread, 40);
  alarm(0);
  EXPECT_NE(block, nullptr);
  EXPECT_NE(g_from_handler, nullptr);
  EXPECT_NE(g_from_handler, block);
}

TEST(NestedStorm, HandlersAllocateAnywhereWithLocks) {
  g_heap.os().alone = false;
  run_storm();
}

TEST(NestedStorm, HandlersAllocateAnywhereWithoutLocks) {
  g_heap.os().alone = true;
  run_storm();
}

#endif

}  // namespace
}  // namespace heapledger::heap
