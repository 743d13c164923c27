// SPDX-License-Identifier: Apache-2.0
#include "interposer/collector/exec_check.h"

#include <elf.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string_view>
#include <vector>

#include "interposer/collector/unique_fd.h"

namespace heapledger::collector {
namespace {

constexpr const char* kNoPreload = "LD_PRELOAD was removed from its environment";
constexpr std::string_view kPrefixedNames[] = {
    "_rjem_malloc",  // tikv-jemallocator and jemallocator, of Rust.
    "je_malloc",    "mi_malloc", "tc_malloc", "sn_malloc", "rpmalloc",
};
constexpr uint64_t kNamesBytesMax = uint64_t{64} << 20;
constexpr int kInterpretersMax = 4;  // As the kernel's own limit on scripts run by scripts.

bool has_interpreter(int fd, const Elf64_Ehdr& header) {
  for (unsigned i = 0; i < header.e_phnum; ++i) {
    Elf64_Phdr segment{};
    const auto offset = static_cast<off_t>(header.e_phoff + uint64_t{i} * header.e_phentsize);
    if (pread(fd, &segment, sizeof segment, offset) != static_cast<ssize_t>(sizeof segment)) break;
    if (segment.p_type == PT_INTERP) return true;
  }
  return false;
}

// The interpreter a script names in its first line.
std::string interpreter_of(const char* line, size_t bytes) {
  std::string text(line + 2, bytes - 2);
  text = text.substr(0, text.find('\n'));
  const size_t start = text.find_first_not_of(" \t");
  if (start == std::string::npos) return {};
  return text.substr(start, text.find_first_of(" \t", start) - start);
}

// Among the names of symbols, each between two zero bytes. A compiler has megabytes of them, so
// what all wanted ones end with is looked for, once.
std::string find_name(std::string_view names) {
  constexpr std::string_view kEnd("malloc", 7);  // With its zero byte.
  const char* const begin = names.data();
  const char* const end = begin + names.size();
  for (const char* at = begin; at < end; ++at) {
    at = static_cast<const char*>(
        memmem(at, static_cast<size_t>(end - at), kEnd.data(), kEnd.size()));
    if (at == nullptr) break;
    const char* start = at;
    while (start != begin && start[-1] != '\0') --start;
    const std::string_view name(start, static_cast<size_t>(at - start) + kEnd.size() - 1);
    const auto* const found = std::find(std::begin(kPrefixedNames), std::end(kPrefixedNames), name);
    if (start != begin && found != std::end(kPrefixedNames)) return std::string(name);
  }
  return {};
}

}  // namespace

std::string allocator_beside_malloc(const std::string& exe) {
  const UniqueFd fd(open(exe.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  Elf64_Ehdr header{};
  if (!fd || pread(fd.get(), &header, sizeof header, 0) != static_cast<ssize_t>(sizeof header) ||
      std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 ||
      header.e_shentsize != sizeof(Elf64_Shdr)) {
    return {};
  }
  std::vector<Elf64_Shdr> sections(header.e_shnum);
  const size_t bytes = sections.size() * sizeof(Elf64_Shdr);
  if (pread(fd.get(), sections.data(), bytes, static_cast<off_t>(header.e_shoff)) !=
      static_cast<ssize_t>(bytes)) {
    return {};
  }
  std::string names;
  for (const Elf64_Shdr& section : sections) {
    const bool has_symbols = section.sh_type == SHT_SYMTAB || section.sh_type == SHT_DYNSYM;
    if (!has_symbols || section.sh_link >= sections.size()) continue;
    const Elf64_Shdr& strings = sections[section.sh_link];
    if (strings.sh_size > kNamesBytesMax) continue;
    names.resize(strings.sh_size);
    const ssize_t got =
        pread(fd.get(), names.data(), names.size(), static_cast<off_t>(strings.sh_offset));
    names.resize(got > 0 ? static_cast<size_t>(got) : 0);
    std::string found = find_name(names);
    if (!found.empty()) return found;
  }
  return {};
}

std::string why_not_recorded(const std::string& exe) {
  std::string path = exe;
  for (int depth = 0; depth < kInterpretersMax && !path.empty(); ++depth) {
    const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    struct stat status {};
    if (stat(path.c_str(), &status) == 0) {
      if ((status.st_mode & S_ISUID) != 0) return "runs with raised privileges (setuid)";
      if ((status.st_mode & S_ISGID) != 0) return "runs with raised privileges (setgid)";
      if (getxattr(path.c_str(), "security.capability", nullptr, 0) > 0) {
        return "runs with raised privileges (file capabilities)";
      }
    }
    if (!fd) return access(path.c_str(), X_OK) == 0 ? "its file cannot be read" : kNoPreload;
    union {
      char text[256];
      Elf64_Ehdr header;
    } start{};
    const ssize_t got = pread(fd.get(), &start, sizeof start, 0);
    if (got < 4) return kNoPreload;
    if (std::memcmp(start.text, "#!", 2) == 0) {
      path = interpreter_of(start.text, static_cast<size_t>(got));
      continue;
    }
    if (std::memcmp(start.text, ELFMAG, SELFMAG) != 0) return "not an ELF program";
    if (start.header.e_ident[EI_CLASS] == ELFCLASS32) return "32-bit program";
    if (start.header.e_machine != EM_X86_64) return "program of another architecture";
    return has_interpreter(fd.get(), start.header) ? kNoPreload : "statically linked";
  }
  return kNoPreload;
}

}  // namespace heapledger::collector
