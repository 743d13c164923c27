// SPDX-License-Identifier: Apache-2.0
//
// Keeps all signals of the calling thread back for a scope. For rare moments in which a handler
// that allocates would wait for ever for what the interrupted call holds. Two system calls; errno
// stays. Faults of the code itself (SIGSEGV and its kin) are not kept back by the kernel.
#pragma once

#include <signal.h>

#include <cstdint>

#include "interposer/base/sys.h"

namespace heapledger::base {

class SignalBlock {
 public:
  SignalBlock() noexcept {
    constexpr uint64_t kAll = ~uint64_t{0};
    sys::sigprocmask(SIG_BLOCK, &kAll, &before_);
  }
  ~SignalBlock() { sys::sigprocmask(SIG_SETMASK, &before_, nullptr); }
  SignalBlock(const SignalBlock&) = delete;
  SignalBlock& operator=(const SignalBlock&) = delete;

 private:
  uint64_t before_ = 0;
};

}  // namespace heapledger::base
