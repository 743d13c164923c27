// SPDX-License-Identifier: Apache-2.0
// A victim's own account of its malloc-family calls: ground truth for what the trace must hold.
//
// Each thread appends to a part of a static array, so that keeping the account calls neither malloc
// nor the kernel. At the end write_call_log() writes it as text, one call a line: "tid kind address
// size alignment old_address", in each thread's order. Thread safety: one writer per log;
// write_call_log() after all writers have stopped.
#pragma once

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <new>

namespace victim {

struct Call {
  const char* kind;
  void* address;
  size_t size;
  size_t alignment;
  void* old_address;
};

inline constexpr int kThreadsMax = 8;
inline constexpr int kCallsMax = 400000;

struct CallLog {
  int tid = 0;
  int count = 0;
  Call calls[kCallsMax];

  void note(const char* kind, void* address, size_t size, size_t alignment = 0,
            void* old = nullptr) {
    if (count == kCallsMax) abort();
    calls[count++] = {kind, address, size, alignment, old};
  }

  // Each makes the call it is named for and notes it.
  void* malloc_(size_t n) {
    void* p = malloc(n);
    note("malloc", p, n);
    return p;
  }
  void* calloc_(size_t n, size_t size) {
    void* p = calloc(n, size);
    note("calloc", p, n * size);
    return p;
  }
  void* realloc_(void* old, size_t n) {
    void* volatile before = old;  // The old pointer is only a number from here on.
    void* p = realloc(old, n);
    note("realloc", p, n, 0, before);
    return p;
  }
  void* posix_memalign_(size_t alignment, size_t n) {
    void* p = nullptr;
    if (posix_memalign(&p, alignment, n) != 0) abort();
    note("posix_memalign", p, n, alignment);
    return p;
  }
  void* aligned_alloc_(size_t alignment, size_t n) {
    void* p = aligned_alloc(alignment, n);
    note("aligned_alloc", p, n, alignment);
    return p;
  }
  void* new_(size_t n) {
    void* p = ::operator new(n);
    note("new", p, n);
    return p;
  }
  void* new_array_(size_t n) {
    void* p = ::operator new[](n);
    note("new[]", p, n);
    return p;
  }
  void free_(void* p) {
    note("free", p, 0);
    free(p);
  }
  void delete_(void* p) {
    note("delete", p, 0);
    ::operator delete(p);
  }
  void delete_array_(void* p) {
    note("delete[]", p, 0);
    ::operator delete[](p);
  }
};

inline CallLog logs[kThreadsMax];

// Claims log `index` for the calling thread.
inline CallLog& my_log(int index) {
  logs[index].tid = static_cast<int>(syscall(SYS_gettid));
  return logs[index];
}

inline void write_call_log(const char* path) {
  const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (fd < 0) abort();
  char line[256];
  for (const CallLog& log : logs) {
    for (int i = 0; i < log.count; ++i) {
      const Call& c = log.calls[i];
      const int n = snprintf(line, sizeof line, "%d %s %lu %zu %zu %lu\n", log.tid, c.kind,
                             reinterpret_cast<unsigned long>(c.address), c.size, c.alignment,
                             reinterpret_cast<unsigned long>(c.old_address));
      if (write(fd, line, static_cast<size_t>(n)) != n) abort();
    }
  }
  close(fd);
}

}  // namespace victim
