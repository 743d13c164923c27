// SPDX-License-Identifier: Apache-2.0
// A victim's own account of its call stacks: ground truth for the stacks in the trace.
//
// Each function of interest opens with HERE, which puts its name on the shadow stack that is
// current: that of a thread, or of the coroutine it runs. allocate() makes a block of a size that
// no other one has and notes the names, innermost first; release() does so for the free. Since the
// shadow is kept by objects, it follows exceptions; who jumps sets its depth back himself. Notes
// lie in static memory, so that keeping them calls neither malloc nor the kernel, in signal
// handlers neither. Thread safety: a Shadow has one user at a time; notes may come from any thread.
//
// The log has a line per call: "m SIZE name*times name*times ..." ("f" for a free); equal names in
// a row are one word.
#pragma once

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>

#define NOINLINE __attribute__((noinline))
#define HERE const victim::Here here_(__func__)

namespace victim {

inline constexpr int kShadowDepth = 8192;

struct Shadow {
  int depth = 0;
  const char* names[kShadowDepth];
};

inline thread_local Shadow* t_shadow = nullptr;

// Not inlined: a coroutine may go on in another thread, where the variable is another one.
NOINLINE inline Shadow& shadow() {
  Shadow* volatile current = t_shadow;
  if (current == nullptr) abort();
  return *current;
}
NOINLINE inline Shadow* use_shadow(Shadow* next) {
  Shadow* volatile before = t_shadow;
  t_shadow = next;
  return before;
}

class Here {
 public:
  explicit Here(const char* name) {
    Shadow& own = shadow();
    if (own.depth == kShadowDepth) abort();
    own.names[own.depth] = name;
    own.depth = own.depth + 1;
  }
  ~Here() {
    Shadow& own = shadow();
    own.depth = own.depth - 1;
  }
  Here(const Here&) = delete;
  Here& operator=(const Here&) = delete;
};

inline constexpr size_t kLogBytes = 64 << 20;
inline char log_text[kLogBytes];
inline std::atomic<size_t> log_bytes{0};
inline std::atomic<size_t> next_size{5000};  // libc's and libstdc++'s own blocks are smaller.

// Text that is written to `at`, or only measured where that is null. No buffer and no call into
// libc: handlers and the smallest stacks have room for it.
struct Writer {
  char* at;
  size_t bytes = 0;

  void put(char c) {
    if (at != nullptr) at[bytes] = c;
    ++bytes;
  }
  void put(const char* text) {
    for (; *text != 0; ++text) put(*text);
  }
  void put_number(size_t value) {
    if (value >= 10) put_number(value / 10);
    put(static_cast<char>('0' + value % 10));
  }
};

NOINLINE inline size_t write_line(char kind, size_t size, char* at) {
  Writer line{at};
  line.put(kind);
  line.put(' ');
  line.put_number(size);
  const Shadow& own = shadow();
  for (int i = own.depth; i > 0;) {
    const char* name = own.names[i - 1];
    size_t times = 0;
    for (; i > 0 && own.names[i - 1] == name; --i) ++times;
    line.put(' ');
    line.put(name);
    line.put('*');
    line.put_number(times);
  }
  line.put('\n');
  return line.bytes;
}

// The place for the line is taken at once, so that a handler may write its own in between.
NOINLINE inline void note(char kind, size_t size) {
  const size_t bytes = write_line(kind, size, nullptr);
  const size_t at = log_bytes.fetch_add(bytes);
  if (at + bytes > kLogBytes) abort();
  write_line(kind, size, log_text + at);
}

struct Block {
  char* address;
  size_t size;
};

// In its caller, which is therefore the innermost frame.
__attribute__((always_inline)) inline Block allocate(size_t extra = 0) {
  const size_t size = next_size.fetch_add(1) + extra;
  note('m', size);
  char* address = static_cast<char*>(malloc(size));
  if (address == nullptr) abort();
  address[0] = 1;
  return {address, size};
}
__attribute__((always_inline)) inline void release(const Block& block) {
  note('f', block.size);
  free(block.address);
}

struct Section {
  const char* name;
  void (*run)();
};
#define SECTION(name) \
  { #name, name }

// main: VICTIM SECTION LOG runs one section; VICTIM list names them.
template <size_t kCount>
NOINLINE int run_section(const Section (&sections)[kCount], int argc, char** argv,
                         Shadow* main_shadow) {
  static char output[1 << 16];
  setvbuf(stdout, output, _IOFBF, sizeof output);
  for (const Section& section : sections) {
    if (argc == 2 && strcmp(argv[1], "list") == 0) puts(section.name);
    if (argc != 3 || strcmp(argv[1], section.name) != 0) continue;
    use_shadow(main_shadow);
    HERE;
    section.run();
    const int fd = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0644);
    for (size_t written = 0; written < log_bytes;) {
      const ssize_t count = write(fd, log_text + written, log_bytes - written);
      if (count <= 0) abort();
      written += static_cast<size_t>(count);
    }
    close(fd);
    return 0;
  }
  return argc == 2 ? 0 : 2;
}

}  // namespace victim
