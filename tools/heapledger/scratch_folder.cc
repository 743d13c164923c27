// SPDX-License-Identifier: Apache-2.0
#include "tools/heapledger/scratch_folder.h"

#include <cstdlib>
#include <filesystem>

#include "tools/heapledger/command_error.h"

namespace heapledger::front {

ScratchFolder::ScratchFolder(const std::string& name) {
  const char* base = std::getenv("TMPDIR");
  path_ = std::string(base != nullptr && *base != 0 ? base : "/tmp") + "/" + name + "-XXXXXX";
  if (mkdtemp(path_.data()) == nullptr) throw system_error(path_);
}

ScratchFolder::~ScratchFolder() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

}  // namespace heapledger::front
