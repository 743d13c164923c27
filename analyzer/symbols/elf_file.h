// SPDX-License-Identifier: Apache-2.0
// An ELF file on disk, opened for reading names: the file itself and, where its debug information
// was split off, the file that has it.
//
// Separate debug files are looked for by build id below /usr/lib/debug/.build-id and by the name in
// .gnu_debuglink (beside the file, in .debug/, below /usr/lib/debug). What is not on this machine:
// symbol_files.h.
// Thread safety: none.
#pragma once

#include <elfutils/libdw.h>
#include <libelf.h>

#include <cstdint>
#include <memory>
#include <string>

namespace heapledger::analyzer {

class ElfFile {
 public:
  // nullptr: there is no such file, or it is not ELF, or `build_id` (hex; empty: any) is not its.
  static std::unique_ptr<ElfFile> open(const std::string& path, const std::string& build_id);
  ~ElfFile();
  ElfFile(const ElfFile&) = delete;
  ElfFile& operator=(const ElfFile&) = delete;

  Elf* elf() const { return elf_; }
  Dwarf* dwarf() const { return dwarf_; }  // nullptr: it has no debug information.
  bool has_section(const char* name) const;
  std::string build_id() const;  // Hex; empty: none.
  std::string debug_link() const;
  // The file with its debug information, if that is another one and was found.
  static std::unique_ptr<ElfFile> find_debug_file(const ElfFile& file, const std::string& path,
                                                  const std::string& sysroot = "");

 private:
  ElfFile() = default;

  int fd_ = -1;
  Elf* elf_ = nullptr;
  Dwarf* dwarf_ = nullptr;
};

}  // namespace heapledger::analyzer
