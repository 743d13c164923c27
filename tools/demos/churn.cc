// SPDX-License-Identifier: Apache-2.0
// churn: a few big buffers alive, always replaced by new ones.
//
// The planted fault is in the settings, not in the code. A request at or above the mmap threshold
// gets a mapping of its own, and free() of it is a munmap: the memory is really returned, and the
// next buffer pays a system call and one page fault per page for memory the program had a moment
// ago. Below the threshold a buffer is carved from the heap, free() keeps it in the pool, and the
// next one is served without the kernel. Buffers of 64 KiB to 1.1 MiB lie on both sides of the
// documented default of 128 KiB; glibc moves the threshold by itself, until somebody writes the
// default down: setting it turns the moving off.
//
//   heapledger compare --mmap-threshold default,128K,32M -- churn
#include "tools/demos/demo.h"

namespace {

constexpr size_t kBuffers = 12000;
constexpr size_t kAlive = 8;
constexpr size_t kBytesMin = size_t{64} << 10;
constexpr size_t kBytesMax = (size_t{11} << 20) / 10;

struct Window {
  char* buffers[kAlive] = {};
};

DEMO_FUNCTION char* read_message(size_t size) {
  char* buffer = static_cast<char*>(std::malloc(size));
  if (buffer == nullptr) std::abort();
  demo::touch_pages(buffer, size);
  return buffer;
}

DEMO_FUNCTION void retire_message(char* buffer) { std::free(buffer); }

DEMO_FUNCTION void serve_messages(size_t count) {
  Window window;
  demo::Random random;
  for (size_t i = 0; i < count; ++i) {
    char*& place = window.buffers[random.below(kAlive)];
    retire_message(place);
    place = read_message(kBytesMin + random.below(kBytesMax - kBytesMin));
  }
  for (char* buffer : window.buffers) retire_message(buffer);
}

}  // namespace

int main(int argc, char** argv) {
  const size_t count = demo::scaled(kBuffers, argc, argv);
  serve_messages(count);
  std::printf("churn: %zu buffers served\n", count);
}
