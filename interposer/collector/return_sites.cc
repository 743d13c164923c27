// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/return_sites.h"

#include <elf.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace heapledger::collector {
namespace {

constexpr size_t kCallBytesMax = 8;  // A prefix, opcode, ModRM, SIB and four bytes of displacement.
constexpr size_t kSegmentsMax = 64;

// The length of an indirect call (FF /2) beginning here; 0: it is none.
size_t indirect_call_bytes(const uint8_t* at, size_t count) {
  const size_t prefix = count > 0 && (at[0] & 0xf0) == 0x40 ? 1 : 0;
  if (count < prefix + 2 || at[prefix] != 0xff) return 0;
  const uint8_t form = at[prefix + 1];
  if (((form >> 3) & 7) != 2) return 0;
  const uint8_t mode = form >> 6;
  const uint8_t base = form & 7;
  if (mode == 3) return prefix + 2;
  const bool scaled = base == 4;
  size_t bytes = prefix + 2 + (scaled ? 1 : 0);
  if (scaled && count < bytes) return 0;
  const bool absolute = mode == 0 && (scaled ? (at[prefix + 2] & 7) == 5 : base == 5);
  if (mode == 1) bytes += 1;
  if (mode == 2 || absolute) bytes += 4;
  return bytes;
}

}  // namespace

bool ends_with_call(const uint8_t* bytes, size_t count) {
  if (count >= 5 && bytes[count - 5] == 0xe8) return true;
  for (size_t length = 2; length <= count; ++length) {
    if (indirect_call_bytes(bytes + count - length, length) == length) return true;
  }
  return false;
}

ReturnSites::File& ReturnSites::file_of(const std::string& path) {
  const auto [place, is_new] = files_.try_emplace(path);
  File& file = place->second;
  if (!is_new) return file;
  file.fd = UniqueFd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  Elf64_Ehdr head{};
  if (!file.fd || pread(file.fd.get(), &head, sizeof head, 0) != sizeof head) return file;
  const bool is_elf = std::memcmp(head.e_ident, ELFMAG, SELFMAG) == 0 &&
                      head.e_phentsize == sizeof(Elf64_Phdr) && head.e_phnum <= kSegmentsMax;
  if (!is_elf) return file;
  std::vector<Elf64_Phdr> segments(head.e_phnum);
  const size_t bytes = segments.size() * sizeof(Elf64_Phdr);
  const ssize_t got =
      pread(file.fd.get(), segments.data(), bytes, static_cast<off_t>(head.e_phoff));
  if (got != static_cast<ssize_t>(bytes)) return file;
  for (const Elf64_Phdr& segment : segments) {
    if (segment.p_type != PT_LOAD || (segment.p_flags & PF_X) == 0) continue;
    file.code.push_back({segment.p_vaddr, segment.p_vaddr + segment.p_filesz, segment.p_offset});
  }
  return file;
}

bool ReturnSites::is_return_site(const Module& module, uint64_t address) {
  File& file = file_of(module.path);
  const uint64_t place = address - module.base;
  const auto [known, is_new] = file.known.try_emplace(place, false);
  if (!is_new) return known->second;
  for (const Segment& segment : file.code) {
    if (place <= segment.start || place > segment.end) continue;
    const size_t count = std::min<uint64_t>(kCallBytesMax, place - segment.start);
    uint8_t bytes[kCallBytesMax];
    const uint64_t from = segment.file_offset + (place - segment.start) - count;
    const ssize_t got = pread(file.fd.get(), bytes, count, static_cast<off_t>(from));
    known->second = got == static_cast<ssize_t>(count) && ends_with_call(bytes, count);
  }
  return known->second;
}

}  // namespace heapledger::collector
