// SPDX-License-Identifier: Apache-2.0
#include "interposer/heap/huge_pages.h"

#include <cstring>

#include "interposer/base/sys.h"

namespace heapledger::heap {

namespace {

constexpr char kThpPath[] = "/sys/kernel/mm/transparent_hugepage/enabled";
constexpr char kThpSizePath[] = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size";
constexpr char kPoolPath[] = "/sys/kernel/mm/hugepages/hugepages-";

// As much of a file as fits, with a terminator; the empty string where it cannot be read.
template <size_t kSize>
void read_file(const char* path, char (&text)[kSize]) {
  size_t length = 0;
  const long fd = base::sys::open(path, O_RDONLY | O_CLOEXEC);
  if (!base::sys::failed(fd)) {
    while (length < kSize - 1) {
      const long got = base::sys::read(static_cast<int>(fd), text + length, kSize - 1 - length);
      if (got <= 0) break;
      length += static_cast<size_t>(got);
    }
    base::sys::close(static_cast<int>(fd));
  }
  text[length] = '\0';
}

size_t leading_number(const char* text) {
  size_t number = 0;
  for (; *text >= '0' && *text <= '9'; ++text)
    number = number * 10 + static_cast<size_t>(*text - '0');
  return number;
}

ThpMode read_thp_mode() {
  char text[64];
  read_file(kThpPath, text);
  if (std::strcmp(text, "[always] madvise never\n") == 0) return ThpMode::kAlways;
  if (std::strcmp(text, "always [madvise] never\n") == 0) return ThpMode::kMadvise;
  if (std::strcmp(text, "always madvise [never]\n") == 0) return ThpMode::kNever;
  return ThpMode::kUnknown;
}

size_t read_default_bytes() {
  constexpr char kTag[] = "Hugepagesize:";
  char text[8192];
  read_file("/proc/meminfo", text);
  const char* line = std::strstr(text, kTag);
  if (line == nullptr) return 0;
  line += sizeof kTag - 1;
  while (*line == ' ') ++line;
  return leading_number(line) * 1024;
}

// The pool of a size is a directory with the size in its name.
bool has_pool(size_t bytes) {
  if (bytes == 0 || bytes % 1024 != 0) return false;
  char digits[24];
  size_t count = 0;
  for (size_t rest = bytes / 1024; rest != 0; rest /= 10) {
    digits[count++] = static_cast<char>('0' + rest % 10);
  }
  char path[sizeof kPoolPath + sizeof digits + 2];
  size_t length = sizeof kPoolPath - 1;
  std::memcpy(path, kPoolPath, length);
  while (count != 0) path[length++] = digits[--count];
  std::memcpy(path + length, "kB", 3);
  const long fd = base::sys::open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (base::sys::failed(fd)) return false;
  base::sys::close(static_cast<int>(fd));
  return true;
}

}  // namespace

HugePages read_huge_pages(size_t requested) {
  HugePages pages;
  pages.thp_mode = read_thp_mode();
  char text[32];
  read_file(kThpSizePath, text);
  pages.thp_bytes = leading_number(text);
  if (requested == 0) {
    pages.bytes = read_default_bytes();
  } else if (has_pool(requested)) {
    pages.bytes = requested;
  }
  return pages;
}

}  // namespace heapledger::heap
