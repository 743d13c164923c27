// SPDX-License-Identifier: Apache-2.0
// Fills 200 MB of the heap, keeps one block near its end, frees the rest: keep_one BYTES [free]
// Prints what RSS fell by when the kept block was freed. Reads and prints by system calls alone:
// nothing else of this program is in the heap.
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

constexpr size_t kFillBytes = 200'000'000;
constexpr size_t kUnitBytes = 20'000;
char* blocks[kFillBytes / kUnitBytes];

[[gnu::noinline]] char* keep_one(size_t size) {
  char* block = static_cast<char*>(std::malloc(size));
  std::memset(block, 1, size);
  return block;
}

[[gnu::noinline]] char* fill(size_t size) {
  char* block = static_cast<char*>(std::malloc(size));
  std::memset(block, 2, size);
  return block;
}

long resident_bytes() {
  char text[128] = {};
  const int fd = open("/proc/self/statm", O_RDONLY);
  if (read(fd, text, sizeof text - 1) <= 0) std::abort();
  close(fd);
  return std::atol(std::strchr(text, ' ') + 1) * 4096;
}

}  // namespace

int main(int argc, char** argv) {
  const size_t kept_bytes = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 2000;
  for (char*& block : blocks) block = fill(kUnitBytes);
  char* kept = keep_one(kept_bytes);
  for (char* block : blocks) std::free(block);
  if (argc <= 2) return 0;
  resident_bytes();  // Its stack and libc's pages are there now.
  const long before = resident_bytes();
  std::free(kept);
  const long fell = before - resident_bytes();
  char line[64];
  const int length = std::snprintf(line, sizeof line, "%ld\n", fell);
  return write(1, line, static_cast<size_t>(length)) == length ? 0 : 1;
}
