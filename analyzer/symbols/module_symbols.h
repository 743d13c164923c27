// SPDX-License-Identifier: Apache-2.0
// Names for code addresses of one ELF file: function, source file and line, with inlined calls.
//
// All addresses of a file are looked up together: a compilation unit's tree of functions is walked
// once for all of them. (Asking libdw for one address at a time walks it each time, which takes
// minutes for a program with large units.) Where there is no debug information, the symbol table
// gives the function's name.
// Thread safety: none.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "analyzer/symbols/symbol_files.h"

namespace heapledger::analyzer {

struct SourcePlace {
  std::string function;  // Demangled; empty: unknown.
  std::string file;      // Empty: unknown.
  int64_t line = 0;      // 0: unknown.
};
// Outermost first: the function whose machine code it is, then what was inlined into it.
using SourcePlaces = std::vector<SourcePlace>;

class ModuleSymbols {
 public:
  // A file that is missing, or is not the one that was recorded, has no names.
  ModuleSymbols(SymbolFiles& files, const std::string& path, const std::string& build_id);
  ~ModuleSymbols();

  bool is_open() const { return file_ != nullptr; }
  // For each address (as in the file's ELF headers) its places; empty: nothing is known.
  std::vector<SourcePlaces> look_up(const std::vector<uint64_t>& addresses) const;

 private:
  std::unique_ptr<ElfFile> file_;
  std::unique_ptr<ElfFile> debug_file_;
};

}  // namespace heapledger::analyzer
