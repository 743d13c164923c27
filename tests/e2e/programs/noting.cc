// SPDX-License-Identifier: Apache-2.0
// noting FILE THREADS: calls malloc, calloc, realloc and free at random, for ever, and notes every
// call that has returned in FILE, which it shares with the test: a SIGKILL loses no note.
//
// FILE is an array of Notebooks, one per thread. The first note of a thread is a malloc of
// kFirstSize bytes.
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

namespace {

constexpr uint64_t kNotes = 1024;  // Kept; the count goes on.
constexpr size_t kFirstSize = 7654321;
constexpr int kBlocks = 64;

enum Kind : uint64_t { kMalloc = 1, kCalloc = 2, kRealloc = 3, kFree = 4 };

struct Note {
  uint64_t kind, address, size;
};

struct Notebook {
  std::atomic<uint64_t> count;  // Release: the note is written.
  uint64_t pid, tid;
  uint64_t reserved[5];
  Note notes[kNotes];  // Of call i, from 0 on, at i % kNotes.
};

class Writer {
 public:
  explicit Writer(Notebook* book) : book_(book) {
    book_->pid = static_cast<uint64_t>(getpid());
    book_->tid = static_cast<uint64_t>(syscall(SYS_gettid));
  }

  void note(Kind kind, const void* block, size_t size) {
    const uint64_t count = book_->count.load(std::memory_order_relaxed);
    book_->notes[count % kNotes] = {kind, reinterpret_cast<uint64_t>(block), size};
    book_->count.store(count + 1, std::memory_order_release);
  }

 private:
  Notebook* book_;
};

void call_for_ever(Notebook* book) {
  Writer writer(book);
  void* blocks[kBlocks] = {};
  blocks[0] = malloc(kFirstSize);
  writer.note(kMalloc, blocks[0], kFirstSize);
  for (uint32_t random = static_cast<uint32_t>(book->tid);;) {
    random = random * 1664525 + 1013904223;
    void*& block = blocks[(random >> 8) % kBlocks];
    const size_t size = 1 + (random >> 16) % 900;
    if (block == nullptr) {
      const bool zeroed = (random & 64) != 0;
      block = zeroed ? calloc(1, size) : malloc(size);
      writer.note(zeroed ? kCalloc : kMalloc, block, size);
    } else if ((random & 128) != 0) {
      block = realloc(block, size);
      writer.note(kRealloc, block, size);
    } else {
      const auto address = reinterpret_cast<uint64_t>(block);
      free(block);
      block = nullptr;
      writer.note(kFree, reinterpret_cast<const void*>(address), 0);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const int count = atoi(argv[2]);
  const int fd = open(argv[1], O_RDWR);
  void* memory = mmap(nullptr, static_cast<size_t>(count) * sizeof(Notebook),
                      PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (fd < 0 || memory == MAP_FAILED) return 3;
  close(fd);
  auto* books = static_cast<Notebook*>(memory);
  std::vector<std::thread> threads;
  for (int i = 1; i < count; ++i) threads.emplace_back(call_for_ever, books + i);
  call_for_ever(books);
}
