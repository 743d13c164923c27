// SPDX-License-Identifier: Apache-2.0
#include "analyzer/symbols/elf_file.h"

#include <elfutils/libdwelf.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <gelf.h>
#include <unistd.h>

#include <cstring>

namespace heapledger::analyzer {

std::unique_ptr<ElfFile> ElfFile::open(const std::string& path, const std::string& build_id) {
  elf_version(EV_CURRENT);
  std::unique_ptr<ElfFile> file(new ElfFile);
  file->fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file->fd_ < 0) return nullptr;
  file->elf_ = elf_begin(file->fd_, ELF_C_READ_MMAP, nullptr);
  if (file->elf_ == nullptr || elf_kind(file->elf_) != ELF_K_ELF) return nullptr;
  if (!build_id.empty() && file->build_id() != build_id) return nullptr;
  if (file->has_section(".debug_info")) {
    file->dwarf_ = dwarf_begin_elf(file->elf_, DWARF_C_READ, nullptr);
  }
  return file;
}

ElfFile::~ElfFile() {
  if (dwarf_ != nullptr) dwarf_end(dwarf_);
  if (elf_ != nullptr) elf_end(elf_);
  if (fd_ >= 0) ::close(fd_);
}

bool ElfFile::has_section(const char* name) const {
  size_t names = 0;
  if (elf_getshdrstrndx(elf_, &names) != 0) return false;
  for (Elf_Scn* section = nullptr; (section = elf_nextscn(elf_, section)) != nullptr;) {
    GElf_Shdr header;
    if (gelf_getshdr(section, &header) == nullptr || header.sh_type == SHT_NOBITS) continue;
    const char* found = elf_strptr(elf_, names, header.sh_name);
    if (found == nullptr) continue;
    // Old toolchains name compressed sections .zdebug_*.
    if (std::strcmp(found, name) == 0) return true;
    if (found[0] == '.' && found[1] == 'z' && std::strcmp(found + 2, name + 1) == 0) return true;
  }
  return false;
}

std::string ElfFile::build_id() const {
  const void* bytes = nullptr;
  const ssize_t length = dwelf_elf_gnu_build_id(elf_, &bytes);
  std::string hex;
  for (ssize_t i = 0; i < length; ++i) {
    hex += fmt::format("{:02x}", static_cast<const uint8_t*>(bytes)[i]);
  }
  return hex;
}

std::string ElfFile::debug_link() const {
  GElf_Word crc = 0;
  const char* name = dwelf_elf_gnu_debuglink(elf_, &crc);
  return name == nullptr ? "" : name;
}

std::unique_ptr<ElfFile> ElfFile::find_debug_file(const ElfFile& file, const std::string& path,
                                                  const std::string& sysroot) {
  const std::string id = file.build_id();
  if (id.size() > 2) {
    auto found = open(
        sysroot + "/usr/lib/debug/.build-id/" + id.substr(0, 2) + "/" + id.substr(2) + ".debug",
        id);
    if (found && found->dwarf() != nullptr) return found;
  }
  const std::string name = file.debug_link();
  if (name.empty()) return nullptr;
  const std::string folder = path.substr(0, path.rfind('/') + 1);
  for (const std::string& candidate :
       {folder + name, folder + ".debug/" + name, "/usr/lib/debug" + folder + name}) {
    if (candidate == path) continue;
    auto found = open(sysroot + candidate, id);
    if (found && found->dwarf() != nullptr) return found;
  }
  return nullptr;
}

}  // namespace heapledger::analyzer
