// SPDX-License-Identifier: Apache-2.0
// A program that is recorded without the shim: it says Hello itself and writes events as told.
//
//     producer touch FILE PAGES        no Hello; touches fresh pages, and writes their address to
//     FILE producer events FILE COUNT       COUNT allocations with ids 1, 2, ...; exits with status
//     3 producer endless FILE            the same without end; FILE (8 bytes, mapped) holds the
//     last id producer fork FILE COUNT         COUNT events each in itself and in a forked child
//     producer scribble FILE SEED      writes events, then random bytes over the region's first
//     pages producer mark FILE               asks for a snapshot; exits 0 if it was served within a
//     second producer speed FILE COUNT        COUNT calls with the stacks of a compiler, as fast as
//     it can
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>

#include "interposer/collector/clock_map.h"
#include "interposer/collector/futex.h"
#include "tests/interposer/collector/event_builder.h"

namespace {

using namespace heapledger;
using namespace heapledger::collector::testing;
using schema::EventKind;

constexpr size_t kPage = 4096;

std::byte* g_base = nullptr;

schema::ControlPage& control() { return *reinterpret_cast<schema::ControlPage*>(g_base); }
uint64_t tick() { return collector::read_clock_pair(control().clock).tick; }

RingWriter begin(uint32_t process_slot, uint32_t ring_slot, uint32_t parent_slot) {
  const auto pid = static_cast<uint32_t>(getpid());
  claim_process(g_base, process_slot, pid, parent_slot, tick());
  RingWriter ring(g_base, ring_slot);
  ring.write(thread_start(tick(), pid, pid, process_slot));
  return ring;
}

Bytes numbered(uint64_t id) {
  return allocation(EventKind::kMalloc, tick(), id, 0x10000 + id * 16, id % 512,
                    stack({0x1000 + id % 5}, 0));
}

int touch(const char* file, size_t pages) {
  auto* start = static_cast<volatile char*>(
      mmap(nullptr, pages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  madvise(const_cast<char*>(start), pages * kPage, MADV_NOHUGEPAGE);
  for (size_t page = 0; page < pages; ++page) start[page * kPage] = 1;
  FILE* out = fopen(file, "w");
  fprintf(out, "%zu", reinterpret_cast<uintptr_t>(start));
  fclose(out);
  return 0;
}

int endless(const char* file) {
  const int fd = open(file, O_RDWR);
  void* mapped = mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  auto& published = *static_cast<std::atomic<uint64_t>*>(mapped);
  RingWriter ring = begin(0, 0, UINT32_MAX);
  for (uint64_t id = 1;; ++id) {
    ring.write(numbered(id));
    published.store(id);
  }
}

int fork_and_write(uint64_t count) {
  RingWriter ring = begin(0, 0, UINT32_MAX);
  for (uint64_t i = 1; i <= count; ++i) ring.write(numbered(i));
  const pid_t child = fork();
  if (child == 0) {
    RingWriter own = begin(1, 1, 0);
    for (uint64_t i = 1; i <= count; ++i) own.write(numbered(schema::make_id(1, i)));
    auto* slots = reinterpret_cast<schema::ProcessSlot*>(g_base + control().process_offset);
    slots[1].exit_status.store(7 + 1);
    _exit(7);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WEXITSTATUS(status) == 7 ? 0 : 1;
}

int scribble(unsigned seed) {
  RingWriter ring = begin(0, 0, UINT32_MAX);
  for (uint64_t i = 1; i <= 1000; ++i) ring.write(numbered(i));
  std::minstd_rand random(seed);
  const size_t slots = control().data_offset;  // Read before it is gone.
  for (int i = 0; i < 200000; ++i) {
    // The first pages hold everything that rules the rings; some bytes of data too.
    const size_t where = random() % (slots + 100000);
    g_base[where] = static_cast<std::byte>(random());
  }
  return 0;
}

int ask_for_snapshot() {
  begin(0, 0, UINT32_MAX);
  auto& slot = *reinterpret_cast<schema::ProcessSlot*>(g_base + control().process_offset);
  slot.snapshot_wanted.store(1);
  control().doorbell.fetch_add(1);
  collector::futex_wake(control().doorbell);
  for (int tries = 0; tries < 1000 && slot.snapshot_done.load() != 1; ++tries) usleep(1000);
  return slot.snapshot_done.load() == 1 ? 0 : 1;
}

// Stacks 20 deep that share all but their last two or three frames with the one before, as measured
// on a compiler.
int speed(uint64_t count) {
  RingWriter ring = begin(0, 0, UINT32_MAX);
  std::minstd_rand random(1);
  ring.write(
      allocation(EventKind::kMalloc, tick(), 1, 16, 1, stack(std::vector<uint64_t>(18, 0x400000))));
  uint64_t now = tick();
  uint64_t id = 2;
  uint64_t freed = 1;
  Bytes alloc = allocation(EventKind::kMalloc, now, 1, 16, 1, stack({1, 2}, 18));
  Bytes end = release(now, 1, 16);
  for (uint64_t i = 0; i < count; ++i) {
    now += 200;
    if (i % 2 == 0) {
      const uint64_t r = random();
      const uint64_t words[] = {
          now,  0x600000 + id * 48 % (1U << 24), 16 + r % 200,
          id++, 0x400000 + (r >> 8) % 40 * 16,   0x500000 + (r >> 16) % 300 * 16};
      std::memcpy(alloc.data() + 8, words, sizeof words);
      ring.write(alloc);
    } else {
      const uint64_t words[] = {now, 0x600000 + freed * 48 % (1U << 24), freed};
      ++freed;
      std::memcpy(end.data() + 8, words, sizeof words);
      ring.write(end);
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const std::string what = argv[1];
  const uint64_t number = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 0;
  if (what == "touch") return touch(argv[2], number);
  g_base = join_session(std::getenv("HEAPLEDGER_SESSION"));
  if (g_base == nullptr) return 4;
  if (what == "endless") return endless(argv[2]);
  if (what == "fork") return fork_and_write(number);
  if (what == "scribble") return scribble(static_cast<unsigned>(number));
  if (what == "mark") return ask_for_snapshot();
  if (what == "speed") return speed(number);
  if (what != "events") return 2;
  RingWriter ring = begin(0, 0, UINT32_MAX);
  for (uint64_t id = 1; id <= number; ++id) ring.write(numbered(id));
  return 3;
}
