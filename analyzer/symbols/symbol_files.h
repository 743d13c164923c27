// SPDX-License-Identifier: Apache-2.0
// Where the files with names are: below a sysroot, by build id where the file itself is gone, from
// debuginfod where the environment names a server.
//
// debuginfod's own client is run (debuginfod-find), with what is left of a time limit for the whole
// trace: names are worth some seconds, not minutes.
// Thread safety: none.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "analyzer/symbols/elf_file.h"

namespace heapledger::analyzer {

// main() moves DEBUGINFOD_URLS here: libdw would ask by itself, without a limit.
inline constexpr const char* kServersVariable = "HEAPLEDGER_DEBUGINFOD_URLS";
// Whole seconds that may be spent on them, in place of the default below.
inline constexpr const char* kServersLimitVariable = "HEAPLEDGER_DEBUGINFOD_SECONDS";

struct SymbolOptions {
  std::string sysroot;  // Before every path; empty: this system.
  std::chrono::milliseconds debuginfod_limit{20'000};
};

class SymbolFiles {
 public:
  explicit SymbolFiles(SymbolOptions options);

  // The file that was mapped, or (deleted, replaced) one of the same build id. nullptr: none.
  std::unique_ptr<ElfFile> open(const std::string& path, const std::string& build_id);
  // The file with its debug information, if that is another one.
  std::unique_ptr<ElfFile> open_debug(const ElfFile& file, const std::string& path);

 private:
  std::unique_ptr<ElfFile> by_build_id(const std::string& build_id);
  // `kind`: executable | debuginfo.
  std::unique_ptr<ElfFile> fetch(const char* kind, const std::string& build_id);

  SymbolOptions options_;
  std::string servers_;  // DEBUGINFOD_URLS; empty: nothing is fetched.
};

}  // namespace heapledger::analyzer
