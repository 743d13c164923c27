// SPDX-License-Identifier: Apache-2.0
#include "tools/heapledger/companions.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "tools/heapledger/command_error.h"

namespace heapledger::front {

namespace fs = std::filesystem;

std::string own_path() {
  std::error_code error;
  const fs::path path = fs::read_symlink("/proc/self/exe", error);
  if (error) throw CommandError("/proc/self/exe", error.message());
  return path.string();
}

static std::string find_companion(const std::string& name) {
  // The build tree first: there everything is in one folder. Then GNUInstallDirs' layouts.
  constexpr const char* kFolders[] = {
      ".",        "../libexec/heapledger", "../lib", "../lib/x86_64-linux-gnu",
      "../lib64", "../lib/heapledger",     "../bin"};
  const fs::path own_folder = fs::path(own_path()).parent_path();
  for (const char* folder : kFolders) {
    const fs::path candidate = (own_folder / folder / name).lexically_normal();
    if (access(candidate.c_str(), R_OK) == 0) return candidate.string();
  }
  throw CommandError(name,
                     "not found beside " + own_folder.string() + "; is the installation whole?");
}

std::string find_analyzer() { return find_companion("heapledger-analyzer"); }

std::string find_collector() {
  const char* chosen = std::getenv("HEAPLEDGER_COLLECTOR");
  return chosen != nullptr && *chosen != 0 ? chosen : find_companion("heapledger-collector");
}

std::string find_replayer() { return find_companion("heapledger-replayer"); }

std::string find_shim() { return find_companion("libheapledger.so"); }

}  // namespace heapledger::front
