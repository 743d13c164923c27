// SPDX-License-Identifier: Apache-2.0
#include "interposer/heap/machine.h"

#include <fcntl.h>

#include "interposer/base/env.h"
#include "interposer/base/sys.h"

namespace heapledger::heap {

namespace {

// The file's beginning as a string; empty where it cannot be read.
template <size_t kSize>
void read_text(const char* path, char (&text)[kSize]) {
  text[0] = '\0';
  const long fd = base::sys::open(path, O_RDONLY | O_CLOEXEC);
  if (base::sys::failed(fd)) return;
  const long length = base::sys::read(static_cast<int>(fd), text, kSize - 1);
  base::sys::close(static_cast<int>(fd));
  text[base::sys::failed(length) ? 0 : length] = '\0';
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

size_t take_number(const char** at) {
  size_t number = 0;
  for (; is_digit(**at); ++*at) number = 10 * number + static_cast<size_t>(**at - '0');
  return number;
}

}  // namespace

size_t online_cpus() {
  constexpr size_t kUnknown = 2;
  char text[1024];
  read_text("/sys/devices/system/cpu/online", text);
  // A list of numbers and ranges: "0-3,6".
  size_t count = 0;
  for (const char* at = text; is_digit(*at);) {
    const size_t first = take_number(&at);
    size_t last = first;
    if (*at == '-') {
      ++at;
      last = take_number(&at);
    }
    if (last >= first) count += last - first + 1;
    if (*at != ',') break;
    ++at;
  }
  return count == 0 ? kUnknown : count;
}

bool must_release_by_remap() {
  if (base::is_secure()) return true;
  char text[4];
  read_text("/proc/sys/vm/overcommit_memory", text);
  return text[0] == '2';
}

}  // namespace heapledger::heap
