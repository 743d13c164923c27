// SPDX-License-Identifier: Apache-2.0
// Starts the program so that nothing of it runs before the collector watches it: forked, waiting on
// a socket, then exec'ed. Between fork and exec it gets back the mask and dispositions that we
// inherited; its standard streams and other descriptors are untouched. All of ours are
// close-on-exec.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tools/heapledger/descriptor.h"
#include "tools/heapledger/signals.h"

namespace heapledger::front {

using Environment = std::vector<std::pair<std::string, std::string>>;

class Launch {
 public:
  // Forks. `changes` are variables to set; an empty value removes one.
  Launch(const std::vector<std::string>& command, const Environment& changes,
         const Signals& signals);

  pid_t pid() const { return pid_; }

  // Lets it exec, with this session in its environment.
  void go(const std::string& session);

  // Readable when the exec has succeeded or failed; -1 after outcome().
  int descriptor() const { return socket_.number(); }
  // 0: the program runs (or was killed before); else the errno of exec. Call once readable.
  int outcome();

 private:
  pid_t pid_ = -1;
  Descriptor socket_;
};

// The path by which LD_PRELOAD can name this library. The loader splits the variable at spaces and
// colons and expands `$`, and knows no quoting: a path with one of them is replaced by a link in a
// private folder of the user's.
std::string preloadable_path(const std::string& library);

}  // namespace heapledger::front
