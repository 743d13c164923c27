// SPDX-License-Identifier: Apache-2.0
// A program that links jemalloc into itself: threads that allocate, resize and free, C++
// containers, large blocks. Prints what it found in them.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

extern "C" int mallctl(const char* name, void* old, size_t* old_bytes, void* fresh, size_t bytes);

namespace {

size_t churn(unsigned seed) {
  std::map<unsigned, std::string> kept;
  for (unsigned i = 0; i < 20000; ++i) {
    seed = seed * 1664525u + 1013904223u;
    kept[seed >> 22] = std::string(seed % 500, 'x');
    void* block = std::realloc(std::malloc(seed % 3000 + 1), seed % 300000 + 1);
    std::memset(block, 1, seed % 300000 + 1);
    std::free(block);
  }
  size_t bytes = 0;
  for (const auto& [key, text] : kept) bytes += text.size();
  return bytes;
}

}  // namespace

int main() {
  const char* version = nullptr;
  size_t size = sizeof version;
  if (mallctl("version", &version, &size, nullptr, 0) != 0)
    return 1;  // It is jemalloc that serves.
  size_t bytes[4] = {};
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < 4; ++i) {
    threads.emplace_back([&bytes, i] { bytes[i] = churn(i + 1); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const size_t count : bytes) std::printf("%zu\n", count);
  return 0;
}
