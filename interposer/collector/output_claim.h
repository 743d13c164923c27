// SPDX-License-Identifier: Apache-2.0
// The trace file's name, taken for this recording: an empty file that nobody else records to.
//
// Taken atomically (O_EXCL), so of two recordings that begin at once one is refused; and locked
// (flock) as long as the claim lives, so that --force replaces a finished or an abandoned trace but
// not one that is being written. SQLite's own locks are of another kind and do not meet this one;
// a file system without flock goes without it.
//
// Outlive the database: closing any descriptor of a file drops SQLite's locks on it.
// Thread safety: none.
#pragma once

#include <string>

#include "interposer/collector/unique_fd.h"

namespace heapledger::collector {

class OutputClaim {
 public:
  // Throws schema::Error with the path as what. With `overwrite` a regular file that is there is
  // removed, with SQLite's files beside it.
  OutputClaim(const std::string& path, bool overwrite);

  // Removes the file again: there will be no trace.
  void give_back();
  // Ends the claim; the file stays.
  void release() { fd_.reset(); }

 private:
  std::string path_;
  UniqueFd fd_;
};

}  // namespace heapledger::collector
