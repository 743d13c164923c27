// SPDX-License-Identifier: Apache-2.0
// leak: an early return that forgets its block.
//
// A server parses requests. One request in ten is malformed, and the path that says so returns
// without freeing the copy made before. The copies are small, so they are carved from the heap
// between blocks that live and die; nothing points to them any more, and the heap only grows.
//
//   heapledger leaks TRACE    shows parse_request with its count and bytes, and nothing else of
//   size
#include <cstring>

#include "tools/demos/demo.h"

namespace {

constexpr size_t kRequests = 400'000;
constexpr size_t kMalformedEvery = 10;
constexpr size_t kRequestBytes = 600;

DEMO_FUNCTION char* copy_of_request(const char* request, size_t size) {
  char* copy = static_cast<char*>(std::malloc(size));
  if (copy == nullptr) std::abort();
  std::memcpy(copy, request, size);
  return copy;
}

// The planted fault: the copy is lost where the request is malformed.
DEMO_FUNCTION bool parse_request(const char* request, size_t size) {
  char* copy = copy_of_request(request, size);
  if (copy[0] == '?') return false;
  copy[0] = '\n';
  std::free(copy);
  return true;
}

DEMO_FUNCTION char* compose_reply(size_t size) {
  char* reply = static_cast<char*>(std::malloc(size));
  if (reply == nullptr) std::abort();
  std::memset(reply, 'y', size);
  return reply;
}

DEMO_FUNCTION size_t serve_requests(size_t count) {
  demo::Random random;
  char request[kRequestBytes];
  std::memset(request, 'x', sizeof request);
  size_t refused = 0;
  for (size_t i = 0; i < count; ++i) {
    request[0] = i % kMalformedEvery == 0 ? '?' : 'G';
    if (!parse_request(request, sizeof request)) ++refused;
    std::free(compose_reply(16 + random.below(2000)));
  }
  return refused;
}

}  // namespace

int main(int argc, char** argv) {
  const size_t count = demo::scaled(kRequests, argc, argv);
  const size_t refused = serve_requests(count);
  std::printf("leak: %zu requests, %zu of them malformed\n", count, refused);
}
