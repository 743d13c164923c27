// SPDX-License-Identifier: Apache-2.0
// A folder in TMPDIR that goes with its owner.
#pragma once

#include <string>

namespace heapledger::front {

class ScratchFolder {
 public:
  // TMPDIR/NAME-XXXXXX. Throws CommandError.
  explicit ScratchFolder(const std::string& name);
  ~ScratchFolder();
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace heapledger::front
